"""Any Flax model: the limit of its traced computation, read as a tensor program."""
