"""Duals without a closed form: Hermite series with a remainder that is known."""
