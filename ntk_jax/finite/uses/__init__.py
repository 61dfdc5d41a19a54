"""Where a traced network uses its weights."""
