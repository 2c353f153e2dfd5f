"""The project's recorded comparisons, one JSON file each, and published tables: the evidence that advice draws on."""
