"""Hyperparameters of a kernel by maximum likelihood of the data."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Num

from ntk_jax.checks import (
    as_array,
    as_targets,
    check_finite,
    check_integer,
    check_number,
    working_dtype,
)
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.closures.programs import compiled
from ntk_jax.inference.gaussian_process import log_marginal_likelihood
from ntk_jax.types import KernelFn

# The noise stays above this fraction of the mean square of the targets: Cholesky factors exist all
# the way.
NOISE_FLOOR = 1e-6

Chosen: TypeAlias = tuple[tuple[str, Any], ...]
"""Names and values of discrete hyperparameters, hashable: a kernel is compiled once for each."""


class Fit(NamedTuple):
    """The best hyperparameters, and of each choice of the discrete ones the best evidence."""

    hyperparameters: dict[str, Any]
    noise: float
    log_marginal_likelihood: float
    candidates: list[tuple[dict[str, Any], float]]


def fit_hyperparameters(
    kernel_fn: KernelFn,
    x: Num[ArrayLike, "n *d"],
    y: Num[ArrayLike, "n *O"],
    *,
    initial: Mapping[str, Any],
    choices: Mapping[str, Sequence[Any]] | None = None,
    noise: float = 0.1,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 100,
    tolerance: float = 1e-4,
) -> Fit:
    """The scales, depth and noise under which the data are most probable.

    That is where the log marginal likelihood is largest. Continuous hyperparameters and the noise
    move on a logarithmic scale, by L-BFGS; discrete ones are tried in turn.

        fit = fit_hyperparameters(ntk_jax.mlp_kernels, x, y,
                                  initial={"W_std": 1.5, "b_std": 0.1},
                                  choices={"depth": (1, 2, 3)})

    Args:
        kernel_fn: `kernel_fn(x, **hyperparameters)` -> kernel, or Kernels, whose NNGP is taken.
        x: training examples.
        y: observations, (n,) or (n, O).
        initial: continuous hyperparameters and where to start, above 0: numbers, or vectors such as
            one scale per layer.
        choices: discrete hyperparameters and the values to try, in all combinations.
        noise: variance of the noise to start from, above 0; at least 1e-6 of the mean square of y
            in the result.
        optimizer: an Optax optimizer, for example `optax.adam(0.05)`; None for L-BFGS.
        num_steps: at most this many steps for every combination.
        tolerance: stop when the gradient with respect to every logarithm, per observation, is
            smaller.

    Returns:
        Fit(hyperparameters, noise, log_marginal_likelihood, candidates).

    Raises:
        ValueError: starting values that are not above 0; a likelihood that is not finite at the
            start.

    Reference: Rasmussen, Williams 2006, section 5.4.1.

    Example:
        >>> linear = lambda x, scale: scale * x @ x.T
        >>> x = jnp.array([[1.0], [2.0], [-1.0]])
        >>> y = jnp.array([2.1, 3.9, -2.0])
        >>> fit = ntk_jax.fit_hyperparameters(linear, x, y, initial={"scale": 1.0})
        >>> round(fit.hyperparameters["scale"], 1)  # about the square of the slope 2
        3.9
    """
    check_number("noise", noise, strict=True, max_ndim=0)
    check_number("tolerance", tolerance, max_ndim=0)
    check_integer("num_steps", num_steps, minimum=1)
    for name, value in initial.items():
        check_number(f"initial[{name!r}]", value, strict=True, max_ndim=1)
    choices = {} if choices is None else choices
    optimizer = optax.lbfgs() if optimizer is None else optimizer
    examples = as_array("x", x)
    check_finite("x", examples)
    dtype = working_dtype(examples.dtype)
    y = as_targets("y", y, examples.shape[0], dtype)
    check_finite("y", y)
    start = {
        name: np.log(np.asarray(value, dtype))
        for name, value in (dict(initial) | {"noise": noise}).items()
    }
    candidates = []
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        with jax.numpy_dtype_promotion("standard"):  # L-BFGS and Adam promote their step counts
            found, fitted_noise, loss = _minimize(
                (kernel_fn, optimizer), start, examples, y, np.asarray(tolerance, dtype),
                chosen=tuple(chosen.items()), num_steps=num_steps,
            )  # fmt: skip
        if not np.isfinite(loss):
            raise ValueError(
                f"initial: expected a finite likelihood; got {float(loss)} with {chosen}. Start "
                "elsewhere."
            )
        fitted = {name: _as_numbers(value) for name, value in found.items()}
        candidates.append((fitted | chosen, float(fitted_noise), -float(loss) * y.size))
    best = max(candidates, key=lambda candidate: candidate[2])
    return Fit(*best, [(hyperparameters, evidence) for hyperparameters, _, evidence in candidates])


class _Search(NamedTuple):
    """Where the optimizer is."""

    logs: dict[str, Array]
    optimizer_state: optax.OptState
    value: Array
    gradient: dict[str, Array]
    step: Array


def _as_numbers(value: Array) -> float | tuple[float, ...]:
    values = np.asarray(value).tolist()
    return tuple(values) if value.ndim else values


def _objective(
    kernel_fn: KernelFn, chosen: Chosen, logs: dict[str, Array], x: Array, y: Array
) -> Array:
    """Minus the log marginal likelihood per observation."""
    values, noise = _values(logs, y)
    k = kernel_fn(x, **values, **dict(chosen))
    return -log_marginal_likelihood(k.nngp if hasattr(k, "nngp") else k, y, noise=noise) / y.size


def _values(logs: dict[str, Array], y: Array) -> tuple[dict[str, Array], Array]:
    """The hyperparameters and the noise."""
    values = {name: jnp.exp(value) for name, value in logs.items()}
    return values, values.pop("noise") + NOISE_FLOOR * jnp.mean(jnp.square(y))


@compiled
def _minimize(
    functions: Reading,
    start: dict[str, Array],
    x: Array,
    y: Array,
    tolerance: Array,
    *,
    chosen: Chosen,
    num_steps: int,
) -> tuple[dict[str, Array], Array, Array]:
    """The hyperparameters and the noise where the objective ends, and its value there."""
    kernel_fn, optimizer = functions.function
    value_fn = partial(_objective, kernel_fn, chosen, x=x, y=y)
    update = optax.with_extra_args_support(optimizer).update

    def going(search: _Search) -> Array:
        slopes = jnp.concatenate([slope.reshape(-1) for slope in search.gradient.values()])
        steep = jnp.max(jnp.abs(slopes)) > tolerance
        return steep & (search.step < num_steps) & jnp.isfinite(search.value)

    def move(search: _Search) -> _Search:
        logs, state, value, gradient, step = search
        updates, state = update(
            gradient, state, logs, value=value, grad=gradient, value_fn=value_fn
        )
        logs = optax.apply_updates(logs, updates)
        return _Search(logs, state, *jax.value_and_grad(value_fn)(logs), step + 1)

    at_start = jax.value_and_grad(value_fn)(start)
    end = jax.lax.while_loop(
        going, move, _Search(start, optimizer.init(start), *at_start, jnp.asarray(0))
    )
    return *_values(end.logs, y), end.value
