"""The command `tunewise`, also as `python -m tunewise.cli`.

Importing what the command line is made of takes a moment, and so does what Python does at its end. Where the command
line cannot answer Ctrl-C with a sentence, before it runs and afterwards, Ctrl-C just ends the process, without a
traceback.
"""

import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tunewise.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
