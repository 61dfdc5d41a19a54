"""Columns on the scale of training rows."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SCALES = ("columns", "all", "none")


class Scaler(NamedTuple):
    """x -> (x - mean) / scale."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Rows on the scale of the training rows."""
        return (x - self.mean) / self.scale


def scaler(x: Float[np.ndarray, "m d"], weights: Float[np.ndarray, " m"], how: str) -> Scaler:
    """Of columns one by one, of all together (one unit, such as pixels), or none.

    A column that does not vary says nothing: it counts as zero, whatever new rows have there.
    """
    if how == "none":
        return Scaler(np.zeros(x.shape[1]), np.ones(x.shape[1]))
    share = weights / weights.sum()
    largest = np.abs(x).max(axis=0)
    # Powers of 2, so that squares of any numbers exist, and no digit changes.
    unit = np.ldexp(1.0, np.frexp(largest.max() if how == "all" else largest)[1] - 1)
    mean = share @ (x / unit)
    square = share @ np.square(x / unit - mean)
    floor = (8 * np.finfo(float).eps * largest / unit) ** 2
    if how == "all":
        square = np.full_like(square, square.mean())
    return Scaler(mean * unit, np.where(square > floor, np.sqrt(square) * unit, np.inf))


def standardized(
    columns: Float[np.ndarray, "n d"], like: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n d"]:
    """By the means and deviations of `like`, column by column."""
    return scaler(like, np.ones(len(like)), "columns")(columns)
