"""`python -m tunewise.cli` is the command `tunewise`."""

from tunewise.cli.main import main

main()
