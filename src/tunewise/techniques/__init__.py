"""One file per technique; the folders are the taxonomy."""
