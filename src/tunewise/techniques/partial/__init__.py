"""The partial family."""
