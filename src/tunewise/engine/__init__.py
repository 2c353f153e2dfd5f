"""Handles one base model: loading, anatomy, tokens, packed rows, forward passes, loss and memory."""
