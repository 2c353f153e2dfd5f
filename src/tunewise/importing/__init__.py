"""Turns other programs' configuration files into tunewise's own, and says of every setting what became of it."""
