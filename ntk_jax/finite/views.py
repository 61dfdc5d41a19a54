"""Kernels of complex networks, of rows that interact, and centered ones: led back to real ones.

What a complex number or a batch is in the kernel of real, independent outputs, n O of one example
or 2 O of each, is put together again here.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ntk_jax.closures.fingerprint import read
from ntk_jax.examples import Examples, as_batch, num_rows
from ntk_jax.finite.inputs import Checked
from ntk_jax.finite.strategy.choose import Options
from ntk_jax.finite.strategy.run import ntk
from ntk_jax.finite.strategy.two_functions import ntk_of_two
from ntk_jax.networks.apply_fn import trace_of
from ntk_jax.networks.views import as_one_example, in_parts, in_reals
from ntk_jax.tiling import swap_sides
from ntk_jax.types import ApplyFn, Params


def ntk_of_views(
    functions: tuple[ApplyFn, ...],
    params: Params,
    examples: Checked,
    options: Options,
    *,
    coupled: bool,
    center: bool,
    progress: bool = False,
) -> Array:
    """J_1 J_2ᴴ of one function or two, over real and imaginary parts of the parameters."""
    x1, x2, is_complex = examples
    sides: tuple[Examples, ...] = (x1,) if x2 is None else (x1, x2)
    rows, pair = [num_rows(x) for x in sides], list(functions)
    parts = [
        _num_parts(f, params, x) for f, x in zip((pair[0], pair[-1]), (x1, sides[-1]), strict=True)
    ]
    if is_complex:
        pair, params = list(map(in_reals, pair)), in_parts(params)
    if coupled:
        pair, sides = list(map(as_one_example, pair)), tuple(map(as_batch, sides))
    # Outputs are told apart again after the machinery: it pairs all with all.
    real = options._replace(outputs="full") if coupled or is_complex else options
    if len(sides) == 2 and (len(pair) == 2 or coupled):
        both = pair[0], pair[-1]
        k = ntk_of_two(both, params, sides[0], sides[1], real, progress=progress)
    else:
        whole = None if len(sides) == 1 else sides[1]
        k = ntk(read(pair[0]), params, sides[0], whole, real, progress=progress)
    outputs = options.outputs if real.outputs == "full" else None
    symmetric = len(sides) == 1
    return _gathered(k, (rows[0], rows[-1], *parts), outputs, center, symmetric)


def _num_parts(apply_fn: ApplyFn, params: Params, x: Examples) -> int:
    """2 for complex outputs, 1 for real ones."""
    return 1 + bool(jnp.issubdtype(trace_of(apply_fn, params, x)[1].dtype, jnp.complexfloating))


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _gathered(
    k: Array, shape: tuple[int, int, int, int], outputs: str | None, center: bool, symmetric: bool
) -> Array:
    """The kernel with rows, parts and outputs in their places; `outputs`: what is kept of (O, O).

    What is done to an entry is done to its mirror image: symmetry stays, to the bit.
    """
    n1, n2, parts1, parts2 = shape
    if k.shape[:2] != (n1, n2):
        k = k.reshape(n1, k.shape[2] // n1, n2, k.shape[3] // n2).transpose(0, 2, 1, 3)
    if parts1 * parts2 > 1:
        k = _complex(k.reshape(n1, n2, k.shape[2] // parts1, parts1, -1, parts2))
    if outputs in ("mean", "diagonal"):
        k = jnp.diagonal(k, axis1=2, axis2=3)
    if outputs == "mean":
        k = jnp.mean(k, axis=2)
    return _centered(k, symmetric) if center else k


def _complex(k: Array) -> Array:
    """(u + iv)(u' + iv')ᴴ from products (n1, n2, O1, parts, O2, parts) of real parts."""
    (p, q), part = (k.shape[3], k.shape[5]), lambda a, b: k[:, :, :, a, :, b]
    real = part(0, 0) + part(1, 1) if p == q else part(0, 0)
    first = part(1, 0) if p == 2 else jnp.zeros_like(real)
    return jax.lax.complex(real, first - part(0, 1) if q == 2 else first)


def _centered(k: Array, symmetric: bool) -> Array:
    """H K H with H = 1 - mean over examples."""
    adjoint = lambda k: jnp.conj(swap_sides(k))
    rows = jnp.mean(k, axis=1, keepdims=True)
    columns = adjoint(rows) if symmetric else jnp.mean(k, axis=0, keepdims=True)
    mean = jnp.mean(rows, axis=0, keepdims=True)
    mean = (mean + adjoint(mean)) / 2 if symmetric else mean
    return k - (rows + columns) + mean
