"""Small real and synthetic data sets for experiments, as NumPy arrays."""

import ntk_jax.signatures as _signatures
from ntk_jax.data.dataset import Dataset as Dataset
from ntk_jax.data.dataset import digits_data as digits_data
from ntk_jax.data.dataset import linear_data as linear_data
from ntk_jax.data.tables import csv_data as csv_data

_signatures.readable(list(globals().values()))
