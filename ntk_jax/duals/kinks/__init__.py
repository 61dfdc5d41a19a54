"""What kinks and jumps of a function contribute to its dual, exactly."""
