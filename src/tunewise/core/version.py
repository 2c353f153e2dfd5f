"""Holds the version of the package, as files and reports record it."""

__version__ = "0.1.0"
