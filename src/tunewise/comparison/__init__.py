"""Many techniques under one budget: trials, search, rows and worker processes."""
