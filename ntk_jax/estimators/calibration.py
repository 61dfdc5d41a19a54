"""Probabilities from decision values: one temperature, fitted to values of rows left out.

The values of a row are those that a fit without it gives; so the training set itself says how far
they are to be trusted, and no held-out set is needed (Platt 2000; Guo et al. 2017).
"""

import numpy as np
from jaxtyping import Float

SMALLEST, LARGEST = 0.1, 1e3
STEPS = 25


def smoothed(
    targets: Float[np.ndarray, "n C"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n C"]:
    """Shares of classes, mixed with one observation of each class (Platt 2000, section 2.2).

    Without it, values that separate the classes would make all probabilities 0 or 1.
    """
    total, num_classes = weights.sum(), targets.shape[1]
    return (total * targets + 1) / (total + num_classes)


def best_temperatures(
    values: Float[np.ndarray, "R n C"],
    targets: Float[np.ndarray, "n C"],
    weights: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """For every set of values the a of smallest log loss of softmax(a values), and that loss.

    The loss is convex in a: Newton's method on log a, with bounded steps.
    """
    share = weights / weights.sum()
    aim = np.einsum("rnc,nc,n->r", values, targets, share)
    log_a = np.ones(len(values))
    for _ in range(STEPS):
        a = np.exp(log_a)
        p, _ = _softmax(a[:, None, None] * values)
        mean = np.einsum("rnc,rnc->rn", p, values)
        curvature = np.einsum("rnc,rnc->rn", p, np.square(values)) - np.square(mean)
        slope = a * (mean @ share - aim)
        bend = np.square(a) * (curvature @ share)
        step = np.clip(slope / np.maximum(bend, 1e-12), -1, 1)
        before, log_a = log_a, np.clip(log_a - step, np.log(SMALLEST), np.log(LARGEST))
        if np.abs(log_a - before).max() < 1e-4:  # the next step would be 1e-8
            break
    a = np.exp(log_a)
    _, log_sum = _softmax(a[:, None, None] * values)
    return a, log_sum @ share - a * aim


def softmax(logits: Float[np.ndarray, "*n C"]) -> Float[np.ndarray, "*n C"]:
    """Probabilities of the classes."""
    return _softmax(logits)[0]


def _softmax(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and the logarithm of the sum of exponentials."""
    top = logits.max(axis=-1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(axis=-1, keepdims=True)
    return e / total, (np.log(total) + top)[..., 0]
