"""Checks of the parameters of a network."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.checks.values import all_finite, check_alive, check_finite
from ntk_jax.compat import is_concrete
from ntk_jax.types import Params


def check_params(params: Params, *, complex_too: bool = False) -> None:
    """Raise unless `params` is a non-empty pytree of floating-point arrays, and nothing else; of
    complex ones where these are taken, too.
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise ValueError("params: expected a pytree with at least one array; got an empty one.")
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = sorted(set(map(str, params)) - {"params"})
        raise ValueError(
            "params: expected parameters alone; got Flax variables that also hold "
            f"{', '.join(others)}. Use apply_fn, params = ntk_jax.from_linen(model, variables), "
            "which keeps those fixed."
        )
    if not all(map(_is_real_array, leaves)):
        for name, leaf in _named(params):
            _check_parameter(name, leaf, complex_too)
    # All leaves in one program: one at a time, a deep network would wait seconds for it to compile.
    known = [array for array in map(_as_array, leaves) if is_concrete(array)]
    if known and not all_finite(known):
        for name, leaf in _named(params):
            check_finite(name, _as_array(leaf))


def _as_array(leaf: Params) -> Array:
    return leaf if isinstance(leaf, Array) else jnp.asarray(leaf)


def _named(params: Params) -> list[tuple[str, Params]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(f"params{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]


def _is_real_array(leaf: object) -> bool:
    """Whether there is nothing to say of a leaf, as of most."""
    if not isinstance(leaf, Array) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    return not (is_concrete(leaf) and leaf.is_deleted())


def _check_parameter(name: str, leaf: object, complex_too: bool) -> None:
    """Raise unless a leaf is a floating-point array of a dtype that JAX has."""
    array = leaf if isinstance(leaf, Array) else np.asarray(leaf)
    if array.dtype == np.dtype(object):
        raise ValueError(
            f"{name}: expected a floating-point array; got {type(leaf).__name__}. Of an Equinox "
            "module, pass the first part of eqx.partition(model, eqx.is_inexact_array) and combine "
            "it with the second in apply_fn."
        )
    is_complex = jnp.issubdtype(array.dtype, jnp.complexfloating)
    if is_complex and not complex_too:
        raise ValueError(
            f"{name}: expected a real array; got {array.dtype}. Complex kernels are there in "
            "empirical_ntk alone; elsewhere pass real and imaginary part as two parameters, and "
            "join them in apply_fn: jax.lax.complex(p['real'], p['imag'])."
        )
    if not is_complex and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a floating-point array; got {array.dtype}. Pass what is trained, "
            "and close over the rest."
        )
    if isinstance(array, Array):
        check_alive(name, array)
    elif array.dtype.itemsize > (16 if is_complex else 8) or not array.dtype.isnative:
        raise ValueError(
            f"{name}: expected a dtype that JAX has; got {array.dtype}. Convert with "
            ".astype(float)."
        )
