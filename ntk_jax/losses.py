"""Training losses by name: functions of outputs and targets, of a network or of its kernel."""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.checks import check_number, check_option
from ntk_jax.compat import is_concrete
from ntk_jax.signatures import readable

LossFn = Callable[[Array, Array], Array]


def mse(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """Half the mean over all entries of (f - y)²: the squared loss of all closed forms here.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.mse(f, y)), 3)
        0.312
    """
    return jnp.mean(jnp.square(f - y)) / 2


def cross_entropy(f: Float[Array, "n O"], y: Float[Array, "n O"]) -> Float[Array, ""]:
    """The mean over examples of -Σ_o y_o log softmax(f)_o; targets are probabilities.

    Example:
        >>> f, y = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]])
        >>> round(float(ntk_jax.losses.cross_entropy(f, y)), 3)
        0.313
    """
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(f), axis=-1))


def logistic(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of log(1 + exp(-y f)); targets are -1 and 1.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.logistic(f, y)), 3)
        0.301
    """
    return jnp.mean(jax.nn.softplus(-y * f))


def huber(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of (f - y)² / 2 up to distance 1, of |f - y| - 1/2 beyond.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.huber(f, y)), 3)
        0.312
    """
    gap = jnp.abs(f - y)
    return jnp.mean(jnp.where(gap < 1, jnp.square(gap) / 2, gap - 0.5))


def hinge(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of max(0, 1 - y f); targets are -1 and 1.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.hinge(f, y)), 3)
        0.25
    """
    return jnp.mean(jnp.maximum(1 - y * f, 0))


def l1(f: Float[Array, "n *O"], y: Float[Array, "n *O"]) -> Float[Array, ""]:
    """The mean over all entries of |f - y|: the median of the targets.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.l1(f, y)), 3)
        0.75
    """
    return jnp.mean(jnp.abs(f - y))


def quantile(level: float) -> LossFn:
    """The loss whose least value is at the quantile of the targets: level 0.9 has 9 in 10 below.

    The mean over all entries of level (y - f) where f is below y, of (1 - level) (f - y) elsewhere.

    Raises:
        ValueError: a level that is not between 0 and 1.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.quantile(0.9)(f, y)), 3)
        0.675
    """
    return partial(_quantile, level=_checked(level))


def expectile(level: float) -> LossFn:
    """The asymmetric squared loss: the mean over all entries of level (f - y)² where f is below y,
    of (1 - level) (f - y)² elsewhere; `mse` at 1/2.

    Raises:
        ValueError: a level that is not between 0 and 1.

    Example:
        >>> f, y = jnp.array([0.5, -2.0]), jnp.array([1.0, -1.0])
        >>> round(float(ntk_jax.losses.expectile(0.9)(f, y)), 3)
        0.562
    """
    return partial(_expectile, level=_checked(level))


def _quantile(f: Array, y: Array, *, level: float) -> Array:
    return jnp.mean(jnp.maximum(level * (y - f), (level - 1) * (y - f)))


def _expectile(f: Array, y: Array, *, level: float) -> Array:
    return jnp.mean(jnp.where(f < y, level, 1 - level) * jnp.square(f - y))


def _checked(level: float) -> float:
    check_number("level", level, strict=True, max_ndim=0)
    if not level < 1:
        raise ValueError(f"level: expected a number between 0 and 1; got {level!r}.")
    return float(level)


LOSSES: dict[str, LossFn] = {
    "mse": mse,
    "cross_entropy": cross_entropy,
    "logistic": logistic,
    "huber": huber,
    "hinge": hinge,
    "l1": l1,
}
LEVELS: dict[str, Callable[[float], LossFn]] = {"quantile": quantile, "expectile": expectile}


def loss_function(loss: str | LossFn, y: Array) -> LossFn:
    """The function that a name stands for, after a look at the targets, or a function as it is."""
    if callable(loss):
        return loss
    if with_level := re.fullmatch(r"(quantile|expectile)\(([0-9.eE-]+)\)", str(loss)):
        return LEVELS[with_level[1]](float(with_level[2]))
    if loss in LEVELS:
        raise ValueError(f"loss: expected a level, such as '{loss}(0.9)'; got {loss!r}.")
    check_option("loss", loss, LOSSES)
    if loss == "cross_entropy":
        _check_probabilities(y)
    if loss in SIGNED and is_concrete(y) and not np.all(np.abs(np.asarray(y)) == 1):
        raise ValueError(
            f"y: expected targets -1 and 1 for the {loss} loss; got others. Use 2 y - 1 for 0 and "
            "1."
        )
    return LOSSES[loss]


SIGNED = ("logistic", "hinge")
"""Losses of targets -1 and 1."""


class Kinks(NamedTuple):
    """Where the derivative by each output jumps, and what it is on either side."""

    at: np.ndarray
    left: np.ndarray
    right: np.ndarray


def kinks_of(loss: LossFn, y: Array) -> Kinks | None:
    """The kinks of a loss of this file that is made of lines; None of all others."""
    level = 0.5 if loss is l1 else float(getattr(loss, "keywords", {}).get("level", 0.5))
    of_level = loss is l1 or getattr(loss, "func", None) is _quantile
    if not (of_level or loss is hinge):
        return None
    if not is_concrete(y):
        raise ValueError(
            "y_train: expected known targets of a loss with kinks, outside jit; got traced ones. "
            "Take the discrete steps of gradient_descent."
        )
    known = np.asarray(y, np.float64)
    if of_level:
        slope = np.full_like(known, (2 if loss is l1 else 1) / known.size)
        return Kinks(known, -level * slope, (1 - level) * slope)
    at = np.where(known == 0, np.inf, 1 / np.where(known == 0, 1, known))  # f = 1 / y
    return Kinks(at, np.minimum(-known, 0) / known.size, np.maximum(-known, 0) / known.size)


def as_probabilities(name: str, y: ArrayLike, loss: object, num_classes: int | None) -> ArrayLike:
    """Class labels (n,), integers from 0, as probabilities (n, O) for cross-entropy; else `y`.

    `num_classes` is O; None takes the largest label for the last class.
    """
    if loss != "cross_entropy" or np.ndim(y) != 1:
        return y
    labels = y if isinstance(y, Array) else np.asarray(y)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return y
    if not is_concrete(labels):
        if num_classes is None:
            raise ValueError(
                f"{name}: expected probabilities (n, O) inside jit, where the number of classes "
                "cannot be told from labels. Use jax.nn.one_hot."
            )
        return jax.nn.one_hot(labels, num_classes)
    known = np.asarray(labels)
    classes = int(known.max(initial=0)) + 1 if num_classes is None else num_classes
    if known.size and not (known.min() >= 0 and known.max() < classes):
        raise ValueError(
            f"{name}: expected class labels from 0 to {classes - 1}; got {known.min()} to "
            f"{known.max()}."
        )
    return np.eye(classes)[known]


def _check_probabilities(y: Array) -> None:
    if y.ndim != 2 or y.shape[1] < 2:
        raise ValueError(
            "y: expected probabilities of shape (n, O) with O >= 2 for cross-entropy; got "
            f"{y.shape}. Use loss='logistic' for two classes and one output."
        )
    if not is_concrete(y):
        return
    known = np.asarray(y)
    # Rows of float16 targets add up to 1 to three digits.
    if not (np.all(known >= 0) and np.all(np.abs(known.sum(axis=1) - 1) < 1e-3)):
        raise ValueError(
            "y: expected rows of probabilities, at least 0 and with sum 1, for cross-entropy; got "
            "others. One-hot targets that were centered by -1/O become probabilities again by "
            "adding 1/O."
        )


readable([*globals().values()])
