"""The values of a tensor program: deterministic arrays, views of parameters, wide random
vectors.
"""
