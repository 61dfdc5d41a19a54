"""The lazy-training criterion of Chizat, Oyallon and Bach, without a Jacobian or a Hessian."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Float, Num

from ntk_jax.checks import as_targets_like, check_integer, check_option
from ntk_jax.closures.programs import compiled
from ntk_jax.compat import is_concrete
from ntk_jax.examples import Examples, num_rows
from ntk_jax.finite.inputs import check_inputs
from ntk_jax.finite.operator import ntk_operator
from ntk_jax.networks.apply_fn import check_outputs, forward_mode
from ntk_jax.operators.lanczos import dominant_eigenvector
from ntk_jax.types import ApplyFn, Params

# Products per Lanczos run, and runs at most: the space is kept small because each vector is as
# large as the network.
LANCZOS_STEPS, MAX_RUNS = 12, 60


class Laziness(NamedTuple):
    """kappa and what it is made of; small means lazy.

    Attributes:
        kappa: residual · hessian / jacobian².
        residual: |f - y|.
        jacobian: |Df|, the largest singular value of the (nO, P) Jacobian (or its Frobenius norm).
        hessian: |D²f|, the largest |D²f[u, u]| over unit parameter directions u (or the Frobenius
            norm).
        standard_error: of kappa; 0 unless the norm was sampled.
    """

    kappa: Float[Array, ""]
    residual: Float[Array, ""]
    jacobian: Float[Array, ""]
    hessian: Float[Array, ""]
    standard_error: Float[Array, ""]


def laziness(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    y: Num[ArrayLike, "n *O"],
    *,
    norm: str = "operator",
    num_starts: int = 4,
    num_samples: int = 256,
    key: Array | None = None,
) -> Laziness:
    """How much the Jacobian changes, relative to itself, over the distance that training has to go.

        kappa = |f(θ) - y| · |D²f(θ)| / |Df(θ)|²

    Training is lazy, the kernel nearly constant, if kappa is much smaller than 1. With squared loss
    the mean over examples cancels. In "ntk" and "standard" parameterization the operator-norm kappa
    of smooth networks falls with the width; under `scale_output` it falls like 1/α only if the
    output starts at zero. Of ReLU networks the second derivative exists almost everywhere but
    misses the kinks: there, look at `jacobian_change` too.

    With "operator" norms, |D²f| = max |Σ_i c_i ∇²f_i| over unit c is found by alternating
    maximization over c and u, each step a Lanczos run on Hessian-vector products. There are local
    maxima, mostly one around each output: the best of the starts from the most curved ones is a
    lower bound that in practice is tight.

    Args:
        apply_fn: `apply_fn(params, x)`.
        params: parameters, usually at initialization.
        x: examples in rows.
        y: targets, of exactly the shape that the network returns.
        norm: "operator", as in the paper, or "frobenius", which is sampled and does not vanish with
            the width.
        num_starts: single outputs from which the maximization starts, those with the largest
            Hessians.
        num_samples: random probes of the Frobenius norm.
        key: of the first vectors and of the probes; None for a fixed one.

    Returns:
        Laziness(kappa, residual, jacobian, hessian, standard_error).

    Raises:
        ValueError: as `empirical_ntk`; targets whose shape is not that of the outputs; a Jacobian
            that is zero.

    Reference: Chizat, Oyallon, Bach 2019, eq. 4 and section 1.1.

    Example:
        >>> network = lambda w, x: x * w**2
        >>> x, y = jnp.ones((1, 1)), jnp.full((1, 1), 3.0)
        >>> lazy = ntk_jax.laziness(network, jnp.array([1.0]), x, y)
        >>> print(*(round(float(v), 3) for v in lazy))  # kappa, |f - y|, |Df|, |D²f|, error
        1.0 2.0 2.0 2.0 0.0
    """
    check_option("norm", norm, ["operator", "frobenius"])
    check_integer("num_starts", num_starts, minimum=1)
    check_integer("num_samples", num_samples, minimum=2)
    a, _ = check_inputs(apply_fn, params, x, None)
    out = jax.eval_shape(apply_fn, params, a)
    targets = as_targets_like("y", y, out.shape, out.dtype)
    diagonal = None if norm == "operator" else ntk_operator(apply_fn, params, a).diagonal()
    with forward_mode("laziness"):
        found, f = _measure(
            apply_fn, params, a, targets, key, diagonal,
            num_starts=min(num_starts, out.size), num_samples=num_samples,
        )  # fmt: skip
    check_outputs(f)
    if is_concrete(found.jacobian) and not float(found.jacobian) > 0:
        raise ValueError(
            "laziness: expected a network whose outputs depend on its parameters; got a Jacobian "
            "of 0 at these parameters and examples. Is the readout, or every input, exactly zero?"
        )
    return found


@compiled
def _measure(
    apply_fn: ApplyFn,
    params: Params,
    x: Examples,
    y: Array,
    key: Array | None,
    diagonal: Float[Array, "..."] | None,
    *,
    num_starts: int,
    num_samples: int,
) -> tuple[Laziness, Array]:
    """With the outputs; in the Frobenius norm if the diagonal of the kernel is given."""
    f, key = apply_fn(params, x), jax.random.key(0) if key is None else key
    residual = jnp.linalg.norm((f - y).reshape(-1))
    standard_error = jnp.zeros_like(residual)
    if diagonal is None:
        jacobian, hessian = _operator_norms(apply_fn, params, x, key, num_starts)
    else:
        jacobian = jnp.sqrt(jnp.sum(diagonal)).astype(f.dtype)
        squares = _frobenius_samples(apply_fn, params, x, jax.random.split(key, num_samples))
        hessian = jnp.sqrt(jnp.mean(squares))
        error_of_square = jnp.std(squares, ddof=1) / num_samples**0.5
        # The error of a root is that of the square over twice the root.
        root = jnp.where(hessian > 0, 2 * hessian, 1)
        standard_error = jnp.where(hessian > 0, error_of_square / root, standard_error)
    unit = residual / jacobian**2
    return Laziness(unit * hessian, residual, jacobian, hessian, unit * standard_error), f


class _Derivatives(NamedTuple):
    """First and second derivatives of the flat outputs along flat parameter directions."""

    push: Callable[[Array], Array]  # J u
    pull: Callable[[Array], Array]  # Jᵀ c
    curve: Callable[[Array], Array]  # D²f[u, u]
    bend: Callable[[Array, Array], Array]  # Σ_i c_i ∇²f_i u
    num_params: int
    num_entries: int
    dtype: jnp.dtype


def _derivatives(apply_fn: ApplyFn, params: Params, x: Examples) -> _Derivatives:
    w, unravel = ravel_pytree(params)

    def f(w: Array) -> Array:
        return apply_fn(unravel(w), x).reshape(-1)

    def push(u: Array) -> Array:
        return jax.jvp(f, (w,), (u,))[1]

    def curve(u: Array) -> Array:
        return jax.jvp(lambda v: jax.jvp(f, (v,), (u,))[1], (w,), (u,))[1]

    def bend(c: Array, u: Array) -> Array:
        return jax.jvp(jax.grad(lambda v: jnp.vdot(c, f(v))), (w,), (u,))[1]

    out, vjp = jax.vjp(f, w)
    return _Derivatives(push, lambda c: vjp(c)[0], curve, bend, w.size, out.size, w.dtype)


def _operator_norms(
    apply_fn: ApplyFn, params: Params, x: Examples, key: Array, num_starts: int
) -> tuple[Array, Array]:
    """The operator norms of the first and of the second derivative."""
    with jax.default_matmul_precision("highest"):
        d = _derivatives(apply_fn, params, x)
        c_key, u_key = jax.random.split(key)
        c = jax.random.normal(c_key, (d.num_entries,), d.dtype)
        u = jax.random.normal(u_key, (d.num_params,), d.dtype)

        def run(_: int | Array, c: Array) -> Array:
            return dominant_eigenvector(
                lambda v: d.push(d.pull(v)), c, min(LANCZOS_STEPS, d.num_entries)
            )[1]

        jacobian = jnp.linalg.norm(d.pull(jax.lax.fori_loop(0, 10, run, c)))

        def curvature(entry: Array) -> Array:
            """The spectral norm of the Hessian of one output of one example, roughly."""
            example = jax.tree.map(lambda leaf: leaf[entry // num_outputs][None], x)
            of_one = _derivatives(apply_fn, params, example)
            unit = jax.nn.one_hot(entry % num_outputs, num_outputs, dtype=d.dtype)
            return jnp.abs(dominant_eigenvector(lambda v: of_one.bend(unit, v), u, 4)[0])

        num_outputs = d.num_entries // num_rows(x)
        # Starts at random would miss maxima: most lie around single outputs.
        sizes = jax.lax.map(curvature, jnp.arange(d.num_entries))
        starts = jax.nn.one_hot(jax.lax.top_k(sizes, num_starts)[1], d.num_entries, dtype=d.dtype)
        return jacobian, jnp.max(jax.lax.map(lambda c: _second_norm(d, c, u), starts))


class _State(NamedTuple):
    """Outputs c and direction u, |D²f[u, u]| now and before the last run, and runs so far."""

    c: Array
    u: Array
    norm: Array
    before: Array
    runs: Array


def _second_norm(d: _Derivatives, c: Array, u: Array) -> Array:
    """The local maximum of |D²f[u, u]| over unit u that is reached from the outputs c."""
    # Smaller rises are rounding, and would keep the loop going up to MAX_RUNS.
    precision = 100 * jnp.finfo(d.dtype).eps

    def going(s: _State) -> Array:
        return (s.runs < MAX_RUNS) & (s.norm > (1 + precision) * s.before)

    def run(s: _State) -> _State:
        """A better u for the outputs c, then the best c for that u: the norm never decreases."""
        u = dominant_eigenvector(lambda v: d.bend(s.c, v), s.u, LANCZOS_STEPS)[1]
        bent = d.curve(u)
        norm = jnp.linalg.norm(bent)
        return _State(
            jnp.where(norm > 0, bent / jnp.where(norm > 0, norm, 1), s.c),
            u,
            norm,
            s.norm,
            s.runs + 1,
        )

    zero = jnp.zeros((), d.dtype)
    return jax.lax.while_loop(going, run, _State(c, u, zero, zero - 1, jnp.asarray(0))).norm


def _frobenius_samples(apply_fn: ApplyFn, params: Params, x: Examples, keys: Array) -> Array:
    """|Σ_i c_i ∇²f_i u|² for random signs c and u: each has mean |D²f|² in the Frobenius norm."""
    with jax.default_matmul_precision("highest"):
        d = _derivatives(apply_fn, params, x)

        def sample(key: Array) -> Array:
            c, u = jax.random.split(key)
            signs = partial(jax.random.rademacher, dtype=d.dtype)
            return jnp.sum(
                jnp.square(d.bend(signs(c, (d.num_entries,)), signs(u, (d.num_params,))))
            )

        return jax.lax.map(sample, keys)
