"""The real network, trained with Optax, and what its kernel predicted beside it."""
