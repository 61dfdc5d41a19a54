"""The kernel of a network while it trains: how far it moves, how fast, where and towards what."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_example_tree, check_params
from ntk_jax.closures.programs import compiled
from ntk_jax.diagnostics.change import kernel_change
from ntk_jax.examples import Examples
from ntk_jax.finite.by_layer import empirical_ntk_by_layer
from ntk_jax.finite.empirical import empirical_ntk
from ntk_jax.networks.apply_fn import check_apply_fn, examples_and_targets, forward_mode
from ntk_jax.norms import norm_ratio
from ntk_jax.spectrum.alignment import alignment
from ntk_jax.spectrum.eigenvalues import effective_rank
from ntk_jax.types import ApplyFn, Params


class KernelRecord(NamedTuple):
    """The kernel at one step, or with a leading axis at all recorded steps; what needs targets is
    None without them.

    `change` is that of the kernel from its start, `velocity` its relative change per unit of time
    t; `share_by_layer` holds each parameter leaf's share of the trace; `change_by_output` and
    `alignment_by_output` are of the kernel of each output (class) alone, the latter with its own
    targets; `kernel` is None unless it was asked for.
    """

    change: Float[Array, "*T"]
    velocity: Float[Array, "*T"] | None
    alignment: Float[Array, "*T"] | None
    alignment_by_output: Float[Array, "*T O"] | None
    effective_rank: Float[Array, "*T"]
    change_by_output: Float[Array, "*T O"]
    change_by_layer: dict[str, Float[Array, "*T"]]
    share_by_layer: dict[str, Float[Array, "*T"]]
    kernel: Float[Array, "*T n n"] | None


def kernel_evolution(
    apply_fn: ApplyFn,
    params_0: Params,
    x: Examples,
    y: Num[ArrayLike, "n *O"] | None = None,
    *,
    keep_kernels: bool = False,
) -> Callable[[Params], KernelRecord]:
    """A function of the parameters that describes the kernel, for `train(...,
    record=kernel_evolution(...))`.

    `History.recorded` is then a KernelRecord whose arrays have the recorded steps as first axis.
    Alignments are centered and the effective rank is the participation ratio: no eigenvalues are
    computed at any step.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params_0: parameters at the start, from whose kernel changes are measured.
        x: examples on which to follow the kernel: a few tens to hundreds.
        y: their targets, shaped like the outputs; None leaves out alignment and velocity.
        keep_kernels: record the kernel itself ("mean" over outputs) too.

    Returns:
        A function from parameters to KernelRecord.

    Raises:
        ValueError: bad examples or parameters; targets whose shape is not that of the outputs.

    Reference: Fort et al. 2020, section 3 (change, velocity); Baratin et al. 2021, section 3
    (alignment by class).

    Example:
        >>> network = lambda w, x: x * w**2
        >>> describe = ntk_jax.kernel_evolution(network, jnp.array(1.0), jnp.array([[1.0], [2.0]]))
        >>> record = describe(jnp.array(2.0))  # K = 4 w² x x'
        >>> round(float(record.change), 3), round(float(record.effective_rank), 3)
        (3.0, 1.0)
    """
    check_apply_fn(apply_fn, params_0)
    check_params(params_0)
    if y is None:
        examples, targets = as_example_tree("x", x), None
    else:
        examples, targets = examples_and_targets(apply_fn, params_0, x, y)
    by_layer_0 = _by_layer(apply_fn, params_0, examples)

    def describe(params: Params) -> KernelRecord:
        return _describe(apply_fn, params, examples, targets, by_layer_0, keep_kernel=keep_kernels)

    return describe


@compiled
def _describe(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    y: Array | None,
    by_layer_0: dict[str, Array],
    *,
    keep_kernel: bool,
) -> KernelRecord:
    by_layer, k_0 = _by_layer(apply_fn, params, x), _sum(by_layer_0)
    # One evaluation by layer gives every quantity below by sums.
    by_output = _sum(by_layer)
    k = jnp.mean(by_output, axis=2)
    means = {layer: jnp.mean(part, axis=2) for layer, part in by_layer.items()}
    return KernelRecord(
        change=kernel_change(k, jnp.mean(k_0, axis=2)),
        velocity=None if y is None else kernel_velocity(apply_fn, params, x, y),
        alignment=None if y is None else alignment(k, y, centered=True),
        alignment_by_output=None if y is None else _alignment_by_output(by_output, y),
        effective_rank=effective_rank(k, kind="participation"),
        change_by_output=jax.vmap(kernel_change, in_axes=2)(by_output, k_0),
        change_by_layer={
            layer: kernel_change(part, jnp.mean(by_layer_0[layer], axis=2))
            for layer, part in means.items()
        },
        share_by_layer={layer: jnp.trace(part) / jnp.trace(k) for layer, part in means.items()},
        kernel=k if keep_kernel else None,
    )


def kernel_velocity(
    apply_fn: ApplyFn, params: Params, x: Examples, y: Num[ArrayLike, "n *O"]
) -> Float[Array, ""]:
    """How fast gradient flow changes the kernel now, |dK/dt|_F / |K|_F, with t = learning rate x
    steps.

    dK/dt is the derivative of the "mean" kernel along dθ/dt = -∇L, the half-mean squared loss, by
    forward differentiation of the kernel: no second step and no step size.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters now.
        x: examples, for the loss and for the kernel.
        y: targets, shaped like the outputs.

    Returns:
        A scalar, per unit of time.

    Raises:
        ValueError: bad examples or parameters; targets whose shape is not that of the outputs.

    Reference: Fort et al. 2020, section 3 (there between two steps).

    Example:
        >>> network = lambda w, x: x * w**2
        >>> x, y = jnp.ones((1, 1)), jnp.full((1, 1), 2.0)
        >>> round(float(ntk_jax.kernel_velocity(network, jnp.array(1.0), x, y)), 3)
        4.0
    """
    check_apply_fn(apply_fn, params)
    check_params(params)
    examples, targets = examples_and_targets(apply_fn, params, x, y)
    with forward_mode("kernel_velocity"):
        return _velocity(apply_fn, params, examples, targets)


@compiled
def _velocity(apply_fn: ApplyFn, params: Params, x: Examples, y: Array) -> Float[Array, ""]:
    params = jax.tree.map(jnp.asarray, params)
    out, vjp = jax.vjp(lambda p: apply_fn(p, x), params)
    (direction,) = vjp(((y - out) / out.size).astype(out.dtype))
    k, k_dot = jax.jvp(lambda p: empirical_ntk(apply_fn, p, x), (params,), (direction,))
    return norm_ratio(k_dot, k)


def _by_layer(apply_fn: ApplyFn, params: Params, x: Examples) -> dict[str, Float[Array, "n n O"]]:
    return empirical_ntk_by_layer(apply_fn, params, x, outputs="diagonal")


def _sum(by_layer: dict[str, Array]) -> Array:
    return jnp.sum(jnp.stack(list(by_layer.values())), axis=0)


def _alignment_by_output(k: Float[Array, "n n O"], y: Array) -> Float[Array, " O"]:
    """Each output's own kernel against its own targets."""
    columns = y.reshape(y.shape[0], -1)
    return jax.vmap(lambda k, y: alignment(k, y, centered=True), in_axes=(2, 1))(k, columns)
