"""Fits, saves, loads and interpolates adaptations."""
