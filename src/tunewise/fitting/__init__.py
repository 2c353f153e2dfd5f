"""Trains attachments, scores them and measures what the base forgot."""
