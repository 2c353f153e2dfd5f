"""Results from publications, with the source of every figure."""
