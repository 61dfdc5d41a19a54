"""Matrices that are only multiplied with, and what products with them tell."""
