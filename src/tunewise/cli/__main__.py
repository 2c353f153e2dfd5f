"""The command `tunewise`, also as `python -m tunewise.cli`.

Importing what the command line is made of takes a moment. Until it can answer Ctrl-C with a sentence, Ctrl-C just ends
the process, without a traceback.
"""

import signal


def main() -> None:
    """Run the command line."""
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # it is ignored in the background of a shell
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tunewise.cli.main import main as run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
