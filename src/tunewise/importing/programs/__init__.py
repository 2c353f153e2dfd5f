"""The programs whose configuration files are read, one module each."""
