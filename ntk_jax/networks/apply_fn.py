"""Checks of the network as a function: that it is one, that it can be differentiated, that it
returns numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax import Array

from ntk_jax.checks import all_finite, as_array, as_examples, as_outputs
from ntk_jax.closures.fingerprint import Reading
from ntk_jax.compat import is_concrete
from ntk_jax.types import ApplyFn, Params


def check_apply_fn(apply_fn: Any, params: Any) -> None:
    """Raise unless `apply_fn` is a function of parameters and examples, and `params` is none."""
    function = apply_fn.function if isinstance(apply_fn, Reading) else apply_fn
    name = type(function).__name__
    if isinstance(function, nn.Module):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got a Flax Linen model, {name}. "
            "Use apply_fn, params = ntk_jax.from_linen(model, variables)."
        )
    if isinstance(function, nnx.Module):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got a Flax NNX module, {name}. "
            "Use apply_fn, params = ntk_jax.from_nnx(module)."
        )
    if _is_equinox(function):
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got an Equinox module, {name}. "
            "Split it, params, rest = "
            "eqx.partition(module, eqx.is_inexact_array), and use lambda p, x: "
            "jax.vmap(eqx.combine(p, rest))(x)."
        )
    if not callable(function):
        swapped = callable(params) and not _is_equinox(params)
        way_out = (
            "These two are swapped: the function comes first."
            if swapped
            else "Pass the function itself."
        )
        raise ValueError(
            f"apply_fn: expected a function apply_fn(params, x); got {name}. {way_out}"
        )


def as_targets_of(name: str, y: Any, out: Array | jax.ShapeDtypeStruct, dtype: Any = None) -> Array:
    """Targets of exactly the shape that the network returns, in its dtype or in another one."""
    y = as_array(name, y)
    if y.shape != out.shape:
        raise ValueError(
            f"{name}: expected the shape that apply_fn returns, {out.shape}; got {y.shape}. "
            "Reshape the targets (y[:, None] makes one output column): broadcasting would be "
            "silently wrong."
        )
    return as_outputs(name, y, out.shape, out.dtype if dtype is None else dtype)


def examples_and_targets(
    apply_fn: ApplyFn, params: Params, x: Any, y: Any, suffix: str = ""
) -> tuple[Array, Array]:
    """Examples, and targets of exactly the shape that the network returns for them."""
    a = as_examples(f"x{suffix}", x)
    return a, as_targets_of(f"y{suffix}", y, jax.eval_shape(apply_fn, params, a))


def _is_equinox(value: Any) -> bool:
    return any(base.__module__.startswith("equinox.") for base in type(value).__mro__)


@contextmanager
def forward_mode(name: str) -> Iterator[None]:
    """Say what to do where a network has no forward derivative."""
    try:
        yield
    except (TypeError, NotImplementedError) as error:
        if not any(name in str(error) for name in ("custom_vjp", "custom_lin")):
            raise
        raise ValueError(
            f"{name}: expected a network with a forward-mode derivative; got one with a "
            "jax.custom_vjp function, which has "
            "a rule for reverse mode alone. Write its rule with jax.custom_jvp, which serves both, "
            "or use what needs "
            "reverse mode only: empirical_ntk(method='layerwise' or 'jacobian'), tangent_features."
        ) from error


def check_outputs(values: Any, what: str = "outputs") -> Any:
    """`values`, or an error if they can be looked at and are not finite."""
    if is_concrete(values) and not all_finite([values]):
        bad = int(np.sum(~np.isfinite(np.asarray(values).astype(float))))
        raise ValueError(
            f"apply_fn: expected finite {what} at these parameters and examples; got {bad} NaN or "
            "infinite of "
            f"{values.size}. Look for logarithms, roots and quotients outside their domain, or for "
            "overflow."
        )
    return values
