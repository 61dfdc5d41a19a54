"""Networks with complex numbers, or whose rows interact, as real functions of examples apart."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import is_concrete, on_device
from ntk_jax.examples import Examples, as_batch, num_rows
from ntk_jax.types import ApplyFn, Params


class Parts(NamedTuple):
    """A complex parameter as two real ones."""

    real: Params
    imag: Params


def holds_complex(params: Params) -> bool:
    """Whether a parameter is complex."""
    return any(map(jnp.iscomplexobj, jax.tree.leaves(params)))


def in_parts(params: Params) -> Params:
    """The parameters with `Parts` in place of complex ones."""
    return jax.tree.map(lambda leaf: _parts(leaf) if jnp.iscomplexobj(leaf) else leaf, params)


def in_reals(apply_fn: ApplyFn) -> ApplyFn:
    """The network as a function of `in_parts(params)`; of complex outputs (n, ...) the real and the
    imaginary part are two, (n, ..., 2).
    """
    return partial(_in_reals, apply_fn)


def as_one_example(apply_fn: ApplyFn) -> ApplyFn:
    """The network with a whole batch (n, ...) as one example, (1, n, ...), of n O outputs."""
    return partial(_as_one_example, apply_fn)


def _in_reals(apply_fn: ApplyFn, params: Params, x: Examples) -> Array:
    joined = lambda p: jax.lax.complex(*p) if isinstance(p, Parts) else p
    params = jax.tree.map(joined, params, is_leaf=lambda p: isinstance(p, Parts))
    out = apply_fn(params, x)
    return jnp.stack([out.real, out.imag], axis=-1) if jnp.iscomplexobj(out) else out


def _as_one_example(apply_fn: ApplyFn, params: Params, x: Examples) -> Array:
    one = lambda batch: apply_fn(params, batch).reshape(-1)
    if num_rows(x) > 1:
        return jax.vmap(one)(x)
    # One batch, as a rule: what cannot be mapped need not be.
    return as_batch(one(jax.tree.map(lambda leaf: leaf[0], x)))


def _parts(leaf: Params) -> Parts:
    if not is_concrete(leaf):
        return Parts(jnp.real(leaf), jnp.imag(leaf))
    leaf = np.asarray(leaf)  # NumPy compiles nothing
    return Parts(on_device(leaf.real), on_device(leaf.imag))
