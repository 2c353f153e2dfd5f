"""Documents, the passages that they are cut into, and ways to find the right ones."""
