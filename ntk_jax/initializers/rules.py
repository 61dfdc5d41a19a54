"""One rule per family of operations in an initializer: constants, random words and entries."""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ntk_jax import jaxprs
from ntk_jax.compat import bind, double_precision
from ntk_jax.initializers.laws import CUT, UNIFORM, Law, function_of, inverse_erf_of_uniform
from ntk_jax.initializers.on_host import on_host
from ntk_jax.initializers.values import (
    Constant,
    Entries,
    Key,
    Random,
    Unknown,
    Value,
    Values,
    Words,
)
from ntk_jax.jaxprs import Eqn, dtype_of, shape_of

STRUCTURE = frozenset(
    "reshape transpose squeeze expand_dims rev slice copy copy_p stop_gradient device_put "
    "sharding_constraint reduce_precision optimization_barrier split".split()
)
ELEMENTWISE = jaxprs.ELEMENTWISE.union(
    "bitcast_convert_type digamma lgamma shift_left shift_right_arithmetic "
    "shift_right_logical".split()
)
# What an initializer computes of its scale, without the rounding of its dtype.
IN_DOUBLE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "div": np.divide,
    "erf": np.vectorize(math.erf, otypes=[float]),
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "sqrt": np.sqrt,
    "stop_gradient": np.asarray,
    "sub": np.subtract,
}
GRID = 4096  # words from which a uniform variable is told


def all_constant(values: list[Value]) -> TypeGuard[list[Constant]]:
    """Whether none of them is random."""
    return all(isinstance(v, Constant) for v in values)


def folded(eqn: Eqn, values: list[Constant]) -> list[Value]:
    """Any operation on constants alone."""
    name, dtype = eqn.primitive.name, dtype_of(eqn.outvars[0])
    arrays = [value.value for value in values]
    flat = all(np.ndim(a) == 0 for a in arrays)
    if name in IN_DOUBLE and jnp.issubdtype(dtype, jnp.floating):
        with np.errstate(all="ignore"):
            return [constant(IN_DOUBLE[name](*arrays))]
    if flat and name in STRUCTURE | {"broadcast_in_dim"}:
        return [Constant(arrays[0]) for _ in eqn.outvars]
    if name == "convert_element_type" and flat and jnp.issubdtype(dtype, jnp.floating):
        return [Constant(np.float64(arrays[0]))]
    shapes = [() if flat and name in ELEMENTWISE else shape_of(var) for var in eqn.invars]
    full = [
        np.broadcast_to(np.asarray(a, dtype_of(v)), s)
        for a, v, s in zip(arrays, eqn.invars, shapes, strict=True)
    ]
    with jax.ensure_compile_time_eval():
        return [constant(np.asarray(out)) for out in on_host(eqn, full)]


def constant(value: Entries) -> Constant:
    """A constant, 0-d if it is the same everywhere; floats in double precision."""
    value = np.asarray(value)
    value = value.astype(np.float64) if jnp.issubdtype(value.dtype, jnp.floating) else value
    same = value.size and np.all(value == value.ravel()[0])
    return Constant(value.ravel()[0] if same else value)


def words(eqn: Eqn, values: Values) -> Value:
    """An elementwise operation on random words; once a float is uniform to its precision, it is
    called uniform.
    """
    drawn = next(v for v in values if isinstance(v, Words))
    others = [v for v in values if v is not drawn]
    if not all(isinstance(v, Constant) and np.ndim(v.value) == 0 for v in others):
        return Unknown(f"`{eqn.primitive.name}` of random words and other arrays")

    def fn(w: np.ndarray) -> ArrayLike:
        z = np.asarray(drawn.fn(w))
        args = [
            z if v is drawn else np.full(z.shape, v.value, dtype_of(var))
            for v, var in zip(values, eqn.invars, strict=True)
        ]
        return on_host(eqn, args)[0]

    dtype = dtype_of(eqn.outvars[0])
    if not jnp.issubdtype(dtype, jnp.floating):
        return Words(drawn.bits, fn, drawn.source)
    size = min(GRID, 2**drawn.bits)
    step = 2**drawn.bits // size
    grid = np.array([i * step + step // 2 for i in range(size)], dtype=f"uint{drawn.bits}")
    with jax.ensure_compile_time_eval():
        found = np.asarray(fn(grid)).astype(np.float64)
    u, epsilon = (np.arange(size) + 0.5) / size, float(jnp.finfo(dtype).eps)
    low = round(found[0] - u[0])
    if np.max(np.abs(found - low - u)) <= 2 * max(epsilon, 2.0**-drawn.bits):
        return Random(UNIFORM, frozenset([drawn.source]), 0, shift=np.float64(low))
    return Unknown("random bits that are not made into a uniform variable")


def elementwise(eqn: Eqn, values: Values) -> Value:
    """An elementwise operation on random entries and constants."""
    name = eqn.primitive.name
    drawn = [v for v in values if isinstance(v, Random)]
    if not all(isinstance(v, Random | Constant) for v in values):
        return Unknown(f"`{name}` of random entries and an array of unknown law")
    exact = _affine(eqn, values) if len(drawn) == 1 else _two(name, values)
    if exact is not None:
        return exact
    x = drawn[0]
    together = all(
        v.sources == x.sources and v.layout == x.layout and v.law.base == x.law.base for v in drawn
    )
    flat = all(v.uniform if isinstance(v, Random) else np.ndim(v.value) == 0 for v in values)
    if not (together and flat and x.law.base is not None):
        return Unknown(
            f"`{name}` of random entries: no elementwise function of one random variable"
        )
    if name == "erf_inv" and x.law is UNIFORM:
        low, high = float(x.shift), float(x.shift + x.scale)
        law = inverse_erf_of_uniform(low, high, 4 * float(jnp.finfo(dtype_of(eqn.outvars[0])).eps))
        return Random(law, x.sources, x.layout, scale=np.float64(2**-0.5))
    base = Law("", 0.0, 1.0, x.law.base)
    return Random(function_of(base, _bound(eqn, values)), x.sources, x.layout)


def _affine(eqn: Eqn, values: Values) -> Random | None:
    """The result where it is affine in the one random operand."""
    name = eqn.primitive.name
    i, x = next((i, v) for i, v in enumerate(values) if isinstance(v, Random))
    dtype, shape = dtype_of(eqn.outvars[0]), shape_of(eqn.outvars[0])
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    if name == "convert_element_type":
        return x if jnp.issubdtype(dtype_of(eqn.invars[0]), jnp.floating) else None
    if name == "neg":
        return x.affine(0.0, -1.0)
    if len(values) != 2:
        return None
    c = values[1 - i].value
    c = c if np.ndim(c) == 0 else np.broadcast_to(c, shape)
    shifted = {"add": (c, 1.0), "add_any": (c, 1.0), "sub": (-c, 1.0) if i == 0 else (c, -1.0)}
    if name in shifted:
        return x.affine(*shifted[name])
    if name == "div" and i == 0 and np.all(c != 0):
        return x.affine(0.0, 1 / c)
    if name == "mul":
        y = x.affine(0.0, c)
        # A standard normal is written sqrt(2) erf⁻¹(u), with sqrt(2) rounded to the dtype.
        near_one = np.ndim(y.scale) == 0 and abs(y.scale - 1) <= 2 * float(jnp.finfo(dtype).eps)
        return Random(x.law, x.sources, x.layout, y.shift, np.float64(1.0)) if near_one else y
    if (
        name in ("max", "min")
        and x.uniform
        and x.law.base is not None
        and x.law.fn is None
        and np.ndim(c) == 0
    ):
        ends = sorted(
            float(x.shift + x.scale * max(-CUT, min(CUT, end)))
            for end in (x.law.base.low, x.law.base.high)
        )
        margin = 8 * float(jnp.finfo(dtype).eps) * max(1.0, abs(float(c)))
        if (c <= ends[0] + margin) if name == "max" else (c >= ends[1] - margin):
            return x  # the clip of a truncated variable to its own support
    return None


def _two(name: str, values: Values) -> Random | None:
    """Sum, difference or product of two independent arrays: only the moments are known."""
    if len(values) != 2:
        return None
    x, y = values
    assert isinstance(x, Random) and isinstance(y, Random)
    if x.sources & y.sources:
        return None
    if name in ("add", "add_any", "sub"):
        sign = -1 if name == "sub" else 1
        return with_moments(x.mean + sign * y.mean, x.variance + y.variance, "sum", [x, y])
    if name == "mul":
        variance = x.variance * y.variance + x.variance * y.mean**2 + y.variance * x.mean**2
        return with_moments(x.mean * y.mean, variance, "product", [x, y])
    return None


def with_moments(mean: Entries, variance: Entries, name: str, parts: list[Random]) -> Random:
    """Independent entries of which only mean and variance are known."""
    sources = frozenset().union(*(part.sources for part in parts))
    return Random(Law(name, 0.0, 1.0), sources, 0, shift=mean, scale=np.sqrt(variance))


def _bound(eqn: Eqn, values: Values) -> Callable[[Any], np.ndarray]:
    """The operation as a function of the base variable, in double precision."""

    def fn(z: Any) -> Any:
        with double_precision(), jax.ensure_compile_time_eval():
            args = []
            for v, var in zip(values, eqn.invars, strict=True):
                dtype = (
                    jnp.float64 if jnp.issubdtype(dtype_of(var), jnp.floating) else dtype_of(var)
                )
                entry = v.value(z) if isinstance(v, Random) else v.value
                args.append(jnp.broadcast_to(jnp.asarray(entry, dtype), z.shape))
            return np.asarray(bind(eqn, args)[0]).astype(np.float64)

    return fn


def concatenate(eqn: Eqn, values: Values) -> Value:
    """Blocks side by side: one law if it is the same for all, otherwise the moments of every
    entry.
    """
    if not all(isinstance(v, Random | Constant) for v in values):
        return Unknown("a block of unknown law among those that are put together")
    drawn = [v for v in values if isinstance(v, Random)]
    if any(a.sources & b.sources for i, a in enumerate(drawn) for b in drawn[:i]):
        return Unknown("the same random entries twice in one array")
    x, sources = drawn[0], frozenset().union(*(v.sources for v in drawn))
    alike = (
        v.uniform and v.law is x.law and v.shift == x.shift and v.scale == x.scale for v in drawn
    )
    if len(drawn) == len(values) and all(alike):
        return Random(x.law, sources, x.layout, x.shift, x.scale)
    full = lambda a, var: jnp.broadcast_to(a, shape_of(var))
    means = [v.mean if isinstance(v, Random) else v.value for v in values]
    variances = [v.variance if isinstance(v, Random) else 0.0 for v in values]
    mean, variance = (
        np.asarray(bind(eqn, list(map(full, entries, eqn.invars)))[0])
        for entries in (means, variances)
    )
    names = {v.law.name if isinstance(v, Random) else "constant" for v in values}
    return with_moments(mean, variance, names.pop() if len(names) == 1 else "mixed", drawn)


def qr(eqn: Eqn, value: Value) -> list[Value]:
    """Q of a matrix of independent normal entries, to be multiplied by the signs of R's
    diagonal.
    """
    if not (
        isinstance(value, Random)
        and value.law.name == "normal"
        and value.uniform
        and value.shift == 0
    ):
        return [Unknown("QR decomposition of entries that are not normal")] * len(eqn.outvars)
    ident = value.sources
    rows = shape_of(eqn.invars[0])[-2]
    reason = "QR decomposition without the signs of R's diagonal: its entries have no simple law"
    return [Unknown(reason, ("q", ident, rows)), Unknown(reason, ("r", ident))]


def orthogonal(name: str, values: Values) -> Value | None:
    """Uniformly distributed orthogonal matrices: entries of mean 0 and variance 1/rows."""
    tags = [v.tag for v in values if isinstance(v, Unknown) and v.tag]
    if name == "mul" and len(tags) == 2:
        q, sign = sorted(tags, key=lambda tag: tag[0])
        if (q[0], sign[0]) == ("q", "sign") and q[1] == sign[1]:
            return Random(Law("orthogonal", 0.0, 1 / q[2]), q[1], 0)
    if (
        len(tags) == 1
        and tags[0][0] in ("r", "sign")
        and all(isinstance(v, Unknown | Constant) for v in values)
    ):
        kind = "sign" if name == "sign" else tags[0][0]
        return Unknown("a factor of a QR decomposition", (kind, tags[0][1]))
    return None


def key_or_words(eqn: Eqn, values: Values, idents: list[int]) -> list[Value]:
    """An operation on random keys; `idents` are the numbers of its results."""
    loops = frozenset().union(*(v.loops for v in values if isinstance(v, Key)))
    if eqn.primitive.name == "random_bits":
        return [Words(eqn.params["bit_width"], lambda w: w, Key(idents[0], loops))]
    outs: list[Value] = []
    for ident, var in zip(idents, eqn.outvars, strict=True):
        dtype = dtype_of(var)
        is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32
        outs.append(
            Key(ident, loops) if is_key else Unknown(f"`{eqn.primitive.name}` of a random key")
        )
    return outs
