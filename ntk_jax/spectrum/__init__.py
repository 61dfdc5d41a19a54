"""Eigenvalues of a kernel, and what they say about learning."""
