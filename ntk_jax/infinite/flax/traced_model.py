"""A network traced for one example, and its interpretation for one pair."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax import rules as rules
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter
from ntk_jax.infinite.flax.moments.factors import Observed
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.moments.samples import Sampling
from ntk_jax.infinite.flax.values.fields import Combination, Field, InnerProduct, Segment, Weight
from ntk_jax.infinite.flax.values.values import Det, Param, Wide
from ntk_jax.initializers.stats import InitStats, leaf_path
from ntk_jax.types import Kernels


@dataclass(frozen=True, eq=False)
class Program:
    """What is traced once per shape of an example.

    Attributes:
        jaxpr: of `(params, example) -> outputs`.
        params: every parameter leaf, as it is at initialization.
        dtype: of the kernels.
        options: of the interpreter.
        num_samples: for what has no closed form; None refuses it.
        checked: equations whose custom derivatives are known to be right.
    """

    jaxpr: Any
    params: list[Param]
    dtype: Any
    options: Mapping[str, Any]
    num_samples: int | None = None
    checked: dict[int, Any] = field(default_factory=dict)

    def interpret(
        self,
        sides: tuple[Any, Any],
        table: Mapping[Any, Any],
        observe: bool = False,
        log: Any = None,
        key: Any = None,
    ):
        """(moments, value of the outputs) for a pair of examples; `key` is that of the samples, if
        there are any.
        """
        sampling = None if self.num_samples is None else Sampling(key, self.num_samples)
        observed = Observed([], []) if observe else None
        moments = Moments(self.dtype, table, observed, sampling)
        walk = Interpreter(moments, checked=self.checked, log=log, **self.options)
        sides = tuple(
            x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in sides
        )
        example = Det(sides, (1,) * sides[0].ndim)
        (out,) = walk.run(self.jaxpr.jaxpr, self.jaxpr.consts, [*self.params, example])
        return moments, out

    def kernels(
        self,
        sides: tuple[Any, Any],
        table: Mapping[Any, Any],
        which: tuple[int, int],
        observe: bool = False,
        key: Any = None,
    ):
        """(moments, Kernels of scalars) of the outputs, averaged over their positions."""
        moments, out = self.interpret(sides, table, observe, key=key)
        g = output_gaussian(out)
        both = (ask(g, g, which, True) for ask in (moments.covariance, moments.tangent))
        zero = jnp.zeros((), self.dtype)
        return moments, Kernels(*(zero if k is None else jnp.mean(k) for k in both))


def trace(
    apply_fn: Callable[..., Any],
    params: Any,
    stats: Any,
    eta: Callable[[str, InitStats], float],
    example: Any,
    options: Any,
    num_samples: int | None = None,
) -> Program:
    """Trace a network for an example of this shape and dtype."""
    leaves, tree = cast(Any, jax.tree_util.tree_flatten_with_path(params))
    jaxpr = jax.make_jaxpr(lambda p, x: _one(apply_fn, p, x))(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params), example
    )
    found = [
        _param(leaf_path(path), leaf.shape, s, eta)
        for (path, leaf), s in zip(leaves, tree.flatten_up_to(stats), strict=True)
    ]
    dtype = jnp.float64 if example.dtype == jnp.float64 else jnp.float32
    if not jnp.issubdtype(example.dtype, jnp.floating):
        dtype = jnp.zeros(()).dtype
    return Program(jaxpr, found, jnp.dtype(dtype), options, num_samples)


def _one(apply_fn, params, x):
    out = apply_fn(params, x[None])
    if not isinstance(out, jax.Array) or out.ndim == 0 or out.shape[0] != 1:
        raise ValueError(
            f"model: expected one array with a row per example; got {jax.tree.map(jnp.shape, out)}."
        )
    return out[0]


def _param(
    path: str, shape: tuple[int, ...], stats: InitStats, eta: Callable[[str, InitStats], float]
) -> Param:
    mean, variance = (
        _one_number(path, name, v)
        for name, v in (("mean", stats.mean), ("variance", stats.variance))
    )
    rate = float(eta(path, InitStats(mean, variance, stats.distribution)))
    return Param(
        path, tuple(shape), mean, variance, rate, tuple(range(len(shape))), (tuple(shape),)
    )


def _one_number(path: str, name: str, value: Any) -> float:
    if np.ndim(value) and np.ptp(value):
        raise NoLimitError(
            f"the entries of parameter {path} differ in their {name} at initialization: its units "
            "are not alike,",
            "Give one mean and variance through init_stats if that is what you mean.",
        )
    return float(np.mean(value))


def output_gaussian(out: Any) -> Field:
    """The Gaussian that the outputs are.

    Raises:
        NoLimitError: they are deterministic or not Gaussian, or a readout weight is used below the
            readout.
    """
    if not isinstance(out, Wide):
        raise NoLimitError(
            "the outputs are deterministic in the limit: an average over infinitely many units was "
            "the last step,",
            "Return what a linear layer makes of it.",
        )
    g = out.gaussian
    if g is None:
        raise NoLimitError(
            "the outputs are not Gaussian: their tangent kernel would be random,",
            "Return the values before the last nonlinearity (logits).",
        )
    _check_readout(g)
    return g


def _check_readout(g: Field) -> None:
    """A readout that is used inside as well breaks the independence of gradients."""
    readout: set[str] = set()
    inside: set[str] = set()
    stack: list[tuple[Field, bool]] = [(g, True)]
    seen = set()
    while stack:
        h, top = stack.pop()
        if (h, top) in seen:
            continue
        seen.add((h, top))
        if isinstance(h, Combination):
            stack += [(part, top) for _, part in h.parts]
        elif isinstance(h, Segment):
            stack.append((h.source, top))
        elif isinstance(h, Weight | InnerProduct):
            if isinstance(h, Weight):
                (readout if top else inside).add(h.leaf)
            below = [h.value] if isinstance(h, Weight) else [h.left, h.right]
            stack += [(a, False) for v in below if isinstance(v, Wide) for a in _inside(v)]
    if shared := sorted(readout & inside):
        raise NoLimitError(
            f"the readout weight {', '.join(shared)} is used inside the network as well: the "
            "gradients depend on it,"
        )


def _inside(value: Wide) -> list[Field]:
    """All Gaussians that a value is made of."""
    found = [a for t in value.random for f in t.factors for a in f.gaussians]
    return found + [a for t in value.random if t.masked for a in _inside(t.masked.value)]


def largest_variances(observed: Observed) -> tuple[list[Any], list[Array]]:
    """The scalar functions met, and for each the largest variance of its argument."""
    functions = list(dict.fromkeys(f for f, _ in observed.functions))
    return functions, [
        jnp.max(jnp.stack([jnp.max(q) for f, q in observed.functions if f == g])) for g in functions
    ]
