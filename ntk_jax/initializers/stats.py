"""Mean and variance of every parameter, read from the trace of its initializer: exact, nothing is
drawn.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import CALLS, REMATS, Literal, bind
from ntk_jax.draws import draw_flat
from ntk_jax.initializers.rules import (
    ELEMENTWISE,
    STRUCTURE,
    concatenate,
    constant,
    elementwise,
    evaluate,
    key_or_words,
    orthogonal,
    qr,
    words,
)
from ntk_jax.initializers.values import Constant, Key, Random, Unknown, Value, Words
from ntk_jax.jaxprs import open_jaxpr

INLINED = {
    **CALLS,
    **dict.fromkeys(REMATS, "jaxpr"),
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


class InitStats(NamedTuple):
    """The law of one parameter's independent entries: floats, or arrays of its shape where entries
    differ.
    """

    mean: Any
    variance: Any
    distribution: str = "given"


def init_stats(
    init_fn: Callable[[Array], Any],
    *,
    given: Mapping[str, tuple[float, float]] | None = None,
) -> Any:
    """Mean, variance and name of the distribution of every entry that `init_fn` draws.

    The jaxpr of `init_fn` is interpreted with laws in place of arrays: random bits become uniform
    variables, the inverse error function of those normal ones, scalars shift and scale them
    exactly, and any other elementwise function of one variable has its moments integrated to 1e-12.
    Orthogonal matrices count as independent entries.

    Args:
        init_fn: `init_fn(key)` -> params, such as `lambda key: model.init(key, x)["params"]`, or
            for NNX `lambda key: nnx.state(Model(rngs=nnx.Rngs(key)), nnx.Param).to_pure_dict()`.
        given: (mean, variance) by path, such as `{"Dense_0/kernel": (0.0, 0.5)}`: used instead of
            what the trace says.

    Returns:
        A pytree like params with an `InitStats(mean, variance, distribution)` for every leaf.
        distribution is "normal", "truncated normal", "uniform", "constant", "orthogonal", "given",
        or says what the entries are made of.

    Raises:
        ValueError: a distribution is not known and not given; a given path is not a parameter.
    """
    closed, shapes = jax.make_jaxpr(init_fn, return_shape=True)(jax.random.key(0))
    walk = Walk()
    values = walk.run(closed.jaxpr, list(closed.consts), [Key(0)])
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [leaf_path(path) for path, _ in leaves]
    given = as_given(given)
    if wrong := sorted(set(given) - set(paths)):
        raise ValueError(
            f"init_stats: expected paths among {', '.join(paths)}; got {', '.join(wrong)}."
        )
    found = []
    for path, (_, leaf), value in zip(paths, leaves, values, strict=True):
        found.append(
            given_stats(path, given[path]) if path in given else _stats(path, leaf.shape, value)
        )
    return jax.tree.unflatten(tree, found)


def gaussian_initializer(init_fn: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """An initializer that draws normal entries with the means and variances of those `init_fn`
    draws.

    Wide networks of such weights are what an infinite-width limit describes: in a layer with few
    inputs the sum over truncated normal or uniform weights is not Gaussian, however many units the
    layer has.

    Raises:
        ValueError: as `init_stats`.
    """
    params = jax.eval_shape(init_fn, jax.random.key(0))
    shapes, tree = jax.tree.leaves(params), jax.tree.structure(params)
    stats = jax.tree.leaves(init_stats(init_fn), is_leaf=lambda s: isinstance(s, InitStats))

    def entries(key: Array, leaf: Any, s: InitStats) -> Array:
        mean = jnp.broadcast_to(jnp.asarray(s.mean, leaf.dtype), leaf.shape)
        if not np.any(s.variance):
            return mean
        scale = jnp.broadcast_to(jnp.asarray(np.sqrt(s.variance), leaf.dtype), leaf.shape)
        return mean + scale * draw_flat(jax.random.normal, key, leaf.shape, leaf.dtype)

    def draw(key: Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return jax.tree.unflatten(
            tree, [entries(k, leaf, s) for k, leaf, s in zip(keys, shapes, stats, strict=True)]
        )

    return draw


def leaf_path(path: tuple[Any, ...]) -> str:
    """A parameter's path as "Dense_0/kernel"."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def _stats(path: str, shape: tuple[int, ...], value: Value) -> InitStats:
    found = None
    if isinstance(value, Constant):
        found = InitStats(_entry(value.value, shape), 0.0, "constant")
    if isinstance(value, Random):
        found = InitStats(_entry(value.mean, shape), _entry(value.variance, shape), value.law.name)
    if found is not None and np.isfinite(found.mean).all() and np.isfinite(found.variance).all():
        return found
    reason = value.reason if isinstance(value, Unknown) else "it holds raw random bits"
    if found is not None:
        reason = f"its entries are {found.distribution}, without a finite mean and variance"
    raise ValueError(
        f"init_stats: expected an initializer of known distribution for {path}; its trace does not "
        f"tell: {reason}. "
        f'Pass init_stats={{"{path}": (mean, variance)}} with the mean and variance of one entry.'
    )


def as_given(given: Any) -> dict[str, Any]:
    """What the user gave as a dictionary."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f'init_stats: expected a mapping such as {{"Dense_0/kernel": (0.0, 0.5)}}; got '
            f"{given!r}."
        )
    return dict(given or {})


def given_stats(path: str, pair: Any) -> InitStats:
    """The statistics that the user gave for a parameter.

    Raises:
        ValueError: anything but a finite mean and a finite variance of at least 0.
    """
    try:
        mean, variance = map(float, pair)
    except (TypeError, ValueError):
        mean = variance = math.nan
    if not (math.isfinite(mean) and math.isfinite(variance) and variance >= 0):
        raise ValueError(
            f"init_stats, {path}: expected (mean, variance), finite numbers with a variance of at "
            f"least 0; got {pair!r}."
        )
    return InitStats(mean, variance)


def _entry(value: Any, shape: tuple[int, ...]) -> Any:
    value = constant(value).value
    return float(value) if np.ndim(value) == 0 else np.broadcast_to(value, shape)


@dataclass
class Walk:
    """One pass over the trace of an initializer."""

    idents: dict[Any, int] = field(default_factory=dict)

    def ident(self, *what: Any) -> int:
        """A number for `what`, the same for equal ones."""
        return self.idents.setdefault(what, len(self.idents) + 1)

    def run(self, jaxpr: Any, consts: list[Any], args: list[Value]) -> list[Value]:
        """The values of the results; what they do not need is not looked at."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {var: self._const(value) for var, value in zip(jaxpr.constvars, consts, strict=True)}
        read = lambda a: constant(a.val) if isinstance(a, Literal) else env[a]
        for eqn in _needed(jaxpr):
            values = [read(a) for a in eqn.invars]
            env.update(zip(eqn.outvars, self.evaluate(eqn, values), strict=True))
        return [read(a) for a in jaxpr.outvars]

    def _const(self, value: Any) -> Value:
        if isinstance(value, jax.core.Tracer):
            return Unknown("it depends on a value that is traced by an outer transformation")
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
            return Key(self.ident("constant key", id(value)))
        return constant(value)

    def evaluate(self, eqn: Any, values: list[Value]) -> list[Value]:
        """The results of one equation."""
        name = eqn.primitive.name
        if name in INLINED:
            return self.run(*open_jaxpr(eqn.params[INLINED[name]]), values)
        if name == "scan":
            return self.scan(eqn, values)
        if any(isinstance(v, Key) for v in values):
            return key_or_words(eqn, values, self._key_idents(eqn, values))
        if name != "platform_index" and all(isinstance(v, Constant) for v in values):
            return evaluate(eqn, values)  # type: ignore[arg-type]
        if (found := orthogonal(name, values)) is not None:
            return [found] * len(eqn.outvars)
        if unknown := [v for v in values if isinstance(v, Unknown)]:
            return [Unknown(unknown[0].reason)] * len(eqn.outvars)
        if name == "qr":
            return qr(eqn, values[0])
        return self.random(eqn, values)

    def _key_idents(self, eqn: Any, values: list[Value]) -> list[int]:
        operands = tuple(v.ident if isinstance(v, Key) else _hashable(v) for v in values)
        return [
            self.ident(eqn.primitive.name, repr(eqn.params), operands, i)
            for i in range(len(eqn.outvars))
        ]

    def random(self, eqn: Any, values: list[Value]) -> list[Value]:
        """An operation on random words or entries."""
        name = eqn.primitive.name
        if name in STRUCTURE or (name == "broadcast_in_dim" and _only_reshapes(eqn)):
            return self.structure(eqn, values[0])
        if name in ELEMENTWISE:
            return [
                (words if any(isinstance(v, Words) for v in values) else elementwise)(eqn, values)
            ]
        if name in ("concatenate", "stack"):
            return [concatenate(eqn, values)]
        if name == "broadcast_in_dim":
            return [Unknown("the same random entries are repeated along an axis")]
        return [Unknown(f"`{name}` of random entries")] * len(eqn.outvars)

    def structure(self, eqn: Any, value: Value) -> list[Value]:
        """Entries at other places: the same law; where entries differ, their moments move along."""
        outs: list[Value] = []
        for i in range(len(eqn.outvars)):
            if not isinstance(value, Random):
                outs.append(value)
                continue
            move = lambda a, i=i: (
                a if np.ndim(a) == 0 else np.asarray(bind(eqn, [jnp.asarray(a)])[i])
            )
            layout = self.ident(value.layout, eqn.primitive.name, repr(eqn.params), i)
            outs.append(
                replace(value, layout=layout, shift=move(value.shift), scale=move(value.scale))
            )
        return outs

    def scan(self, eqn: Any, values: list[Value]) -> list[Value]:
        """Stacked results of a loop whose iterations draw with keys of their own, as `nn.scan` over
        layers does.
        """
        p = eqn.params
        num_consts, num_carry, loop = p["num_consts"], p["num_carry"], self.ident("loop", id(eqn))
        args = list(values)
        for i in range(num_consts, len(args)):
            args[i] = self._inside(args[i], loop, is_carry=i < num_consts + num_carry)
        outs = self.run(*open_jaxpr(p["jaxpr"]), args)
        carried: list[Value] = [Unknown("the last value of a loop")] * num_carry
        return carried + [
            self._stacked(out, loop, p["length"], var)
            for out, var in zip(outs[num_carry:], eqn.outvars[num_carry:], strict=True)
        ]

    def _inside(self, value: Value, loop: int, *, is_carry: bool) -> Value:
        if isinstance(value, Key):
            return Key(self.ident("in loop", value.ident, loop), value.loops | {loop})
        if is_carry or not (isinstance(value, Constant) and np.ndim(value.value) == 0):
            return Unknown("a value that changes along a loop")
        return value

    def _stacked(self, value: Value, loop: int, length: int, var: Any) -> Value:
        if isinstance(value, Random) and not all(loop in source.loops for source in value.sources):
            return Unknown("the same random entries in every iteration of a loop")
        grow = lambda a: a if np.ndim(a) == 0 else np.broadcast_to(a, var.aval.shape)
        if isinstance(value, Random):
            return replace(value, shift=grow(value.shift), scale=grow(value.scale))
        return Constant(grow(value.value)) if isinstance(value, Constant) else value


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on."""
    wanted = {a for a in jaxpr.outvars if not isinstance(a, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            kept.append(eqn)
            wanted.update(a for a in eqn.invars if not isinstance(a, Literal))
    return kept[::-1]


def _only_reshapes(eqn: Any) -> bool:
    return bool(np.prod(eqn.invars[0].aval.shape) == np.prod(eqn.outvars[0].aval.shape))


def _hashable(value: Value) -> Any:
    return (
        (np.shape(value.value), np.asarray(value.value).tobytes())
        if isinstance(value, Constant)
        else id(value)
    )
