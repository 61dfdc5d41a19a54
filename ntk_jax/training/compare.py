"""A trained network beside what its kernel predicted, at the same times."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import as_targets_like, check_number
from ntk_jax.dynamics.any_loss import Flow
from ntk_jax.losses import LossFn, as_probabilities, loss_function
from ntk_jax.modes.modes import Prediction
from ntk_jax.training.record import History


class Curves(NamedTuple):
    """One side, train or test, over T records, network first and prediction second: (2, T), outputs
    (2, T, n, O).
    """

    loss: np.ndarray | None
    accuracy: np.ndarray | None
    outputs: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """The largest difference of any output of any example between network and prediction,
        (T,).
        """
        return np.abs(self.outputs[0] - self.outputs[1]).max(
            axis=tuple(range(1, self.outputs.ndim - 1))
        )


class Comparison(NamedTuple):
    """Network and prediction at T records; printed, it is a table, and `plots.plot_comparison`
    draws it.
    """

    steps: np.ndarray
    t: np.ndarray
    train: Curves
    test: Curves | None
    learning_rate: float
    critical_learning_rate: float | None

    def __str__(self) -> str:
        rows = np.unique(np.linspace(0, len(self.steps) - 1, min(12, len(self.steps))).astype(int))
        columns = [("step", self.steps), ("t", self.t), *_columns("train", self.train)]
        columns += [] if self.test is None else _columns("test", self.test)
        cells = [[name, *(f"{values[i]:.4g}" for i in rows)] for name, values in columns]
        widths = [max(map(len, column)) for column in cells]
        lines = [
            "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True))
            for line in zip(*cells, strict=True)
        ]
        return "\n".join([*lines, self.stability])

    @property
    def stability(self) -> str:
        """The learning rate in units of the critical one."""
        if self.critical_learning_rate is None:
            return f"learning rate {self.learning_rate:.4g}"
        ratio = self.learning_rate / self.critical_learning_rate
        state = "stable" if ratio < 1 else "unstable"
        return (
            f"learning rate {self.learning_rate:.4g} = {ratio:.3g} × critical "
            f"({self.critical_learning_rate:.4g}): {state}"
        )


def compare(
    history: History,
    prediction: Prediction | Flow,
    y_train: Num[ArrayLike, "n *O"],
    *,
    learning_rate: float,
    y_test: Num[ArrayLike, "n_test *O"] | None = None,
    loss: str | LossFn = "mse",
    critical_learning_rate: ArrayLike | None = None,
) -> Comparison:
    """Losses, accuracies and outputs of a network and its prediction, at all records, and how far
    they are apart: the gap max_ij |f_ij(network) - f_ij(prediction)|.

    Args:
        history: of `train(..., record_outputs=True)`.
        prediction: with `train` (T, n, O) and `test`, at the times of the records: of
            `gradient_descent_mse(modes, y, history.steps, learning_rate, ...)`, `gradient_flow_mse`
            or `gradient_flow`.
        y_train: training targets.
        learning_rate: of the training; t = learning_rate x steps.
        y_test: test targets, for the test loss and accuracy.
        loss: as in `train`.
        critical_learning_rate: `max_learning_rate(...)`, to be marked.

    Returns:
        Comparison(steps, t, train, test, learning_rate, critical_learning_rate); `str()` of it is a
        table. Accuracies are those of the largest output, for two outputs or more.

    Raises:
        ValueError: a history without outputs; predictions at other times or of other shapes.

    Reference: Lee et al. 2019, figures 3, 4 and S5.

    Example:
        >>> import optax
        >>> network, x, y = lambda w, x: x @ w, jnp.eye(2), jnp.array([1.0, -1.0])
        >>> history = ntk_jax.train(
        ...     network, jnp.zeros(2), x, y, optimizer=optax.sgd(1.0), num_steps=2,
        ...     record_outputs=True, progress=False,
        ... )
        >>> modes = ntk_jax.diagonalize(ntk_jax.empirical_ntk(network, jnp.zeros(2), x))
        >>> prediction = ntk_jax.gradient_descent_mse(modes, y, history.steps, 1.0)
        >>> comparison = ntk_jax.compare(history, prediction, y, learning_rate=1.0)
        >>> float(comparison.train.gap.max()) < 1e-5
        True
    """
    check_number("learning_rate", learning_rate, strict=True)
    if history.fx_train is None:
        raise ValueError("history: expected outputs; got none. Train with record_outputs=True.")
    num_outputs = history.fx_train.shape[-1]
    of_classes = lambda y: jnp.asarray(as_probabilities("y", y, loss, num_outputs))
    y = of_classes(y_train)
    loss_fn = loss_function(loss, y)
    train = _curves("train", history.fx_train, prediction.train, y, loss_fn)
    test = None
    if history.fx_test is not None and prediction.test is not None:
        targets = None if y_test is None else of_classes(y_test)
        test = _curves("test", history.fx_test, prediction.test, targets, loss_fn)
    critical = None if critical_learning_rate is None else float(np.asarray(critical_learning_rate))
    return Comparison(
        history.steps, learning_rate * history.steps, train, test, float(learning_rate), critical
    )


def _curves(
    name: str, network: np.ndarray, predicted: Array | None, y: Array | None, loss_fn: LossFn
) -> Curves:
    values = np.asarray(predicted)
    if values.shape != network.shape:
        raise ValueError(
            f"prediction.{name}: expected shape {network.shape}, one entry per record of the "
            f"history; got {values.shape}. Predict at `history.steps`, or at t = learning_rate * "
            "history.steps."
        )
    # In the precision of the network: a gap finer than that says nothing.
    outputs = np.stack([network, values.astype(network.dtype)])
    if y is None:
        return Curves(None, None, outputs)
    y = as_targets_like(f"y_{name}", y, network.shape[1:], outputs.dtype)
    loss = np.array([[float(loss_fn(jnp.asarray(f), y)) for f in side] for side in outputs])
    if y.ndim < 2 or y.shape[1] < 2:
        return Curves(loss, None, outputs)
    return Curves(loss, np.mean(outputs.argmax(-1) == np.asarray(y).argmax(-1), axis=-1), outputs)


def _columns(name: str, side: Curves) -> list[tuple[str, np.ndarray]]:
    named = {"loss": side.loss, "accuracy": side.accuracy}
    known = {f"{name} {quantity}": pair for quantity, pair in named.items() if pair is not None}
    columns = [
        column for key, pair in known.items() for column in ((key, pair[0]), ("predicted", pair[1]))
    ]
    return [*columns, (f"{name} gap", side.gap)]
