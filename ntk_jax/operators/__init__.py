"""Matrices that are only multiplied, and what products with them tell."""
