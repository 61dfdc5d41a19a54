"""Products with the Jacobian of a network whose examples are shared out over a mesh."""

from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float

from ntk_jax.devices.mesh import filled, on_every_device, replicated
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.jacobian_products import pulled, pushed
from ntk_jax.types import ApplyFn, Params


def pulled_together(
    mesh: Mesh | None,
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    v: Float[Array, "n O"],
    size: int,
) -> Params:
    """`pulled`: the gradients of all shares, summed over the mesh once."""

    def pull(share: tuple[Examples, Array], params: Params) -> Params:
        return jax.tree.map(lambda g: g[None], pulled(apply_fn, params, *share, size))

    parts = on_every_device(mesh, pull, (filled(x, mesh), filled(v, mesh, zeros=True)), params)
    return jax.tree.map(lambda g: replicated(mesh, g.sum(0)), parts)


def pushed_together(
    mesh: Mesh | None,
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    direction: Params,
    size: int,
    dtype: DTypeLike,
) -> Float[Array, "n O"]:
    """`pushed`, with the rows of all shares."""

    def push(share: Examples, whole: tuple[Params, Params]) -> Array:
        return pushed(apply_fn, whole[0], share, whole[1], size, dtype)

    return rows_together(mesh, push, x, (params, direction))[: num_rows(x)]


def rows_together(
    mesh: Mesh | None, run: Callable[[Examples, Params], Array], x: Examples, whole: Params
) -> Array:
    """`run(share, whole)` of all shares, joined, on every device; what fills up x is at the end."""
    return replicated(mesh, on_every_device(mesh, run, filled(x, mesh), whole))
