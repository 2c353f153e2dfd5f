"""The command `tunewise`, also as `python -m tunewise.cli`.

Importing what the command line is made of takes a moment, and so does what Python does at its end. Where the command
line cannot answer Ctrl-C with a sentence, before it runs and afterwards, Ctrl-C just ends the process, without a
traceback.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress

_interrupted: list[int] = []  # the exit code, once a signal has ended the command


def main() -> None:
    """Run the command line."""
    atexit.register(_end_as_interrupted)  # registered before libraries register anything, it runs after all of it
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a shell
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tunewise.cli.main import main as run

    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:
            _interrupted.append(end.code)
        raise


def _end_as_interrupted() -> None:
    """End an interrupted process with the code of its signal.

    Python would end itself by SIGINT where the interruption has passed through code that a library runs from C, as
    torch does while it is imported; whatever handled it afterwards (CPython's `unhandled_keyboard_interrupt`).
    """
    if _interrupted:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(_interrupted[0])


if __name__ == "__main__":
    main()
