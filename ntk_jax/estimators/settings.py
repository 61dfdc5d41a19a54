"""Parameters of an estimator, checked, as the kernels to choose from; and the choice."""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from ntk_jax.checks import check_integer, check_number, check_option
from ntk_jax.data.scaling import SCALES
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.estimators.beyond_memory import Multiplied
from ntk_jax.estimators.choice import MOST_REFINED, RIDGES, Criterion, Grid, choose, sample
from ntk_jax.estimators.fitted import Factored, Fitted
from ntk_jax.estimators.kernels import most_factored
from ntk_jax.estimators.ridges import Candidates
from ntk_jax.estimators.rows import Rows
from ntk_jax.estimators.sources import (
    FiniteSource,
    MLPSource,
    Source,
    Traceable,
    own_of_blocks,
)
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.networks.mlp import MLP

DEPTHS = (1, 3)
B_STDS = (0.0, 0.3, 1.0)
HOMOGENEOUS = ("relu", "leaky_relu", "linear", "identity")  # W_std is a unit of the kernel
CRITICAL = 2**0.5
W_STDS = (1.0, 2.0)  # of other activations
KERNELS = ("ntk", "nngp")
METHODS = ("ridge", "gp")


class ModelSource(NamedTuple):
    """Any Flax model in the limit of infinite width, in float32; rows are shaped `input_shape`."""

    kind: str
    model: object
    input_shape: tuple[int, ...]

    def block(self, x1: np.ndarray, x2: np.ndarray | None) -> np.ndarray:
        """K(x1, x2)."""
        a1, a2 = (None if x is None else x.reshape(-1, *self.input_shape) for x in (x1, x2))
        return np.asarray(getattr(infinite_width(self.model)(a1, a2), self.kind))

    def own(self, x: np.ndarray) -> np.ndarray:
        """K of each row with itself."""
        return own_of_blocks(self.block, x)

    def traceable(self, x: np.ndarray) -> Traceable:
        """Arguments of `kernel_operator` for these rows."""
        return infinite_width(self.model), x.reshape(-1, *self.input_shape), self.kind


class Options(NamedTuple):
    """Parameters that both estimators and the transformer have."""

    kernel: object
    depth: object
    activation: object
    W_std: object
    b_std: object
    scale: object
    width: object
    model: object
    input_shape: object
    random_state: object


def grid_of(options: Options, ridge: object, num_features: int) -> Grid:
    """What an estimator chooses from: "auto" stands for a few values, anything else for itself.

    Raises:
        ValueError: options out of range, or that do not go together.
    """
    check_option("kernel", options.kernel, KERNELS)
    check_option("scale", options.scale, ("auto", *SCALES))
    if _is_auto(ridge):
        ridges = RIDGES
    else:
        check_number("ridge", ridge, strict=True, max_ndim=0)
        ridges = np.array([float(np.asarray(ridge))])
    sources, depths = _sources(options, num_features)
    # Columns of a model's inputs, such as pixels, have one unit.
    auto = ("all",) if options.model is not None else ("columns", "all")
    scales = auto if _is_auto(options.scale) else (str(options.scale),)
    return Grid(scales, sources, depths, ridges)


def _sources(options: Options, num_features: int) -> tuple[tuple[Source, ...], tuple[int, ...]]:
    """Kernels of every depth; a model has none."""
    kind = str(options.kernel)
    if options.model is not None:
        if options.width is not None:
            raise ValueError("model, width: expected one of them; got both.")
        shape = (num_features,) if options.input_shape is None else options.input_shape
        assert isinstance(shape, Iterable)
        shape = tuple(shape)
        if prod(shape) != num_features:
            raise ValueError(
                f"input_shape: expected the shape of one row, of {num_features} features; got "
                f"{shape}, which has {prod(shape)}."
            )
        return (ModelSource(kind, options.model, shape),), (0,)
    activation = options.activation
    dual_rule(activation)  # raises for an unknown one
    assert isinstance(activation, str) or callable(activation)
    if options.width is not None:
        return (_finite(options, kind, num_features),), (0,)
    depths = DEPTHS if _is_auto(options.depth) else (_depth(options.depth),)
    W = (CRITICAL,) if activation in HOMOGENEOUS else W_STDS
    scales = [
        (w, b) for w in _scales("W_std", options, W) for b in _scales("b_std", options, B_STDS)
    ]
    return tuple(MLPSource(kind, activation, depths[-1], w, b) for w, b in scales), depths


def _finite(options: Options, kind: str, num_features: int) -> FiniteSource:
    """A network drawn at random; "auto" stands for two hidden layers at a usual scale."""
    check_integer("width", options.width, minimum=1)
    assert isinstance(options.width, int | np.integer)
    depth = 2 if _is_auto(options.depth) else _depth(options.depth)
    (W,), (b,) = (_scales(n, options, (v,)) for n, v in (("W_std", CRITICAL), ("b_std", 0.3)))
    model = MLP((int(options.width),) * depth, 1, options.activation, W, b)  # type: ignore[arg-type]
    seed = int(check_random_state(options.random_state).randint(2**31 - 1))
    draw = jax.jit(model.init)
    variables = draw(jax.random.key(seed), np.zeros((1, num_features), np.float32))
    return FiniteSource(kind, model, jax.tree.map(np.asarray, variables))


def _depth(value: object) -> int:
    check_integer("depth", value, minimum=0)
    assert isinstance(value, int | np.integer)
    return int(value)


def _scales(name: str, options: Options, auto: tuple[float, ...]) -> tuple[float, ...]:
    value = getattr(options, name)
    if _is_auto(value):
        return auto
    check_number(name, value, strict=name == "W_std", max_ndim=0)
    return (float(value),)


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def fit_rows(estimator: BaseEstimator, rows: Rows, criterion: Criterion) -> Fitted:
    """Choose and solve; sets `kernel_`, `scale_`, `ridge_`, `selection_loss_` and `solver_`; where
    the memory holds no kernel, also `selection_rows_`, `n_iter_` and `residual_`.
    """
    check_option("method", estimator.method, METHODS)
    limit = estimator.memory_limit
    if limit is not None:
        check_number("memory_limit", limit, strict=True, max_ndim=0)
    options = Options(**{name: getattr(estimator, name) for name in Options._fields})
    grid = grid_of(options, estimator.ridge, rows.x.shape[1])
    criterion = by_evidence if estimator.method == "gp" else criterion
    most = most_factored(limit)
    if len(rows.x) <= most:
        kernel, solution, choice = choose(rows, grid, criterion)
        fitted: Fitted = Factored(rows, kernel, solution)
        estimator.solver_ = "cholesky"
    else:
        chosen = sample(len(rows.x), max(2, min(MOST_REFINED, most)))
        choice = choose(rows.take(chosen), grid, criterion)[2]
        fitted = found = Multiplied(rows, choice, limit)
        estimator.selection_rows_ = np.sort(rows.first[chosen])
        estimator.solver_ = "conjugate_gradients"
        estimator.n_iter_, estimator.residual_ = found.steps, found.residual
    estimator.kernel_, estimator.scale_ = choice.source, choice.scale
    estimator.ridge_, estimator.selection_loss_ = choice.ridge, choice.loss
    return fitted


def by_evidence(rows: Rows, found: Candidates) -> Float[np.ndarray, " R"]:
    """The negative log evidence."""
    return -found.evidence
