"""What a comparison found: its statistics, its verdict and its report."""
