"""What to expect of each technique before anything runs."""
