"""What a fit leaves on disk, and how it comes back."""
