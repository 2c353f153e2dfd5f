"""The command `tunewise` as `python -m tunewise`."""

from tunewise.cli.__main__ import main

if __name__ == "__main__":
    main()
