"""The words of the command line, and how results look in a terminal."""
