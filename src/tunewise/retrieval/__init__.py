"""Reads documents, cuts them into passages, and finds the passages that fit a question."""
