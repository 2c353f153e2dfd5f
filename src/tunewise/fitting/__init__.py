"""The training loop, and the scoring of an attachment."""
