"""Exports: an adaptation in a form that other programs read, and the proof that it is still the same model."""
