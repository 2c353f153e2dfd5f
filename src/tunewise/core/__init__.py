"""Errors, seeds, units, text for people, and files on disk: what knows nothing of models."""
