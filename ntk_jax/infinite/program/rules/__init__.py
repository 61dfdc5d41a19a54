"""What each operation does to random values, one file per family."""
