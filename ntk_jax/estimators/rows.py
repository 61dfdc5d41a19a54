"""Training rows as the kernel sees them: equal ones merged, weighted."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Rows(NamedTuple):
    """Rows with positive weights, each different from all others.

    `y` holds weighted means of the targets of equal rows, `scatter` the weighted squares around
    them (O,); `owner` says which row each given one became (-1 for weight 0), `first` the first
    given one of each.
    """

    x: Float[np.ndarray, "m d"]
    y: Float[np.ndarray, "m O"]
    weights: Float[np.ndarray, " m"]
    scatter: Float[np.ndarray, " O"]
    owner: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " m"]

    def take(self, rows: Int[np.ndarray, " k"]) -> "Rows":
        """Some of the rows, without a memory of the given ones."""
        nothing = np.zeros(0, int)
        return Rows(
            self.x[rows], self.y[rows], self.weights[rows], self.scatter * 0, nothing, nothing
        )


def merged(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n O"], weights: Float[np.ndarray, " n"]
) -> Rows:
    """Equal rows as one with the sum of their weights: the same ridge regression.

    A row that is given twice counts as one of weight 2, and leaves the training set as one: its
    twin would tell its target.
    """
    kept = np.flatnonzero(weights > 0)
    w, targets = weights[kept], y[kept]
    values, first, inverse = np.unique(x[kept], axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    total = np.bincount(inverse, w, len(values))
    sums = np.stack([np.bincount(inverse, w * column, len(values)) for column in targets.T], 1)
    means = sums / total[:, None]
    scatter = np.sum(w[:, None] * (targets - means[inverse]) ** 2, axis=0)
    owner = np.full(len(x), -1)
    owner[kept] = inverse
    return Rows(values, means, total, scatter, owner, kept[first])
