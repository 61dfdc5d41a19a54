"""Kernels as models of data: regression, Gaussian processes, and the choice of their parameters."""
