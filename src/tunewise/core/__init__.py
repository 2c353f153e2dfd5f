"""Errors, seeds, units, text for people, and files on disk. Nothing here knows about models."""
