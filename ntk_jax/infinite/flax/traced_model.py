"""A network traced for one example, and its interpretation for one pair."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core as jex_core

from ntk_jax.compat import abstract_value, is_concrete
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.examples import Examples, as_batch, num_rows
from ntk_jax.infinite.flax import rules as rules
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter
from ntk_jax.infinite.flax.moments.duals import Filled, left_open
from ntk_jax.infinite.flax.moments.factors import Observed
from ntk_jax.infinite.flax.moments.moments import Moments
from ntk_jax.infinite.flax.moments.pair import AskDual, Sides
from ntk_jax.infinite.flax.moments.samples import Sampling
from ntk_jax.infinite.flax.pair_trace import PairTrace, traced_pair
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Field,
    InnerProduct,
    Opened,
    Param,
    Segment,
    Shape,
    Value,
    Weight,
    Wide,
    fields_of,
    is_key,
)
from ntk_jax.infinite.flax.values.expression import Function
from ntk_jax.initializers.stats import InitStats, leaf_path
from ntk_jax.types import ApplyFn, Kernels, Params

# Those of the scalar functions that a program meets, where the default of `rule_of` is not meant.
Duals: TypeAlias = tuple[tuple[Function, DualRule], ...]
# A parameter's path and statistics -> its learning-rate multiplier.
Rate: TypeAlias = Callable[[str, InitStats], float]


@dataclass(frozen=True, eq=False)
class Program:
    """What is traced once per shape of an example.

    Attributes:
        jaxpr: of `(params, example) -> outputs`.
        params: every parameter leaf, as it is at initialization.
        dtype: of the kernels.
        options: of the interpreter.
        num_samples: for what has no closed form; None refuses it.
        positions: "mean" of the outputs, or "full" for all pairs of them.
        batch_coupled: whether an example is a whole batch, whose rows are positions; it meets
            itself alone.
        checked: equations whose custom derivatives are known to be right.
        traces: its interpretations, for `pair`.
    """

    jaxpr: jex_core.ClosedJaxpr
    params: list[Param]
    dtype: np.dtype
    options: Mapping[str, Any]
    num_samples: int | None = None
    positions: str = "mean"
    batch_coupled: bool = False
    checked: dict[int, Any] = field(default_factory=dict)
    traces: dict[Any, PairTrace] = field(default_factory=dict)

    def interpret(
        self,
        examples: tuple[Examples, Examples],
        duals: AskDual,
        *,
        same: Array | None = None,
        observed: Observed | None = None,
        log: list[Any] | None = None,
        key: Array | None = None,
    ) -> tuple[Moments, Value]:
        """(moments, value of the outputs) for a pair of examples, which may be the `same`; `key` is
        that of the samples, if there are any.
        """
        sampling = None if self.num_samples is None else Sampling(key, self.num_samples)
        moments = Moments(self.dtype, duals, observed, sampling, same)
        walk = Interpreter(moments, checked=self.checked, log=log, **self.options)
        leaves = [self._det(*pair) for pair in zip(*map(jax.tree.leaves, examples), strict=True)]
        (out,) = walk.run(self.jaxpr.jaxpr, self.jaxpr.consts, [*self.params, *leaves])
        return moments, out

    def _det(self, one: Array, other: Array) -> Det:
        """A leaf of two examples."""
        floating = jnp.issubdtype(one.dtype, jnp.floating)
        sides = tuple(x.astype(self.dtype) if floating else x for x in (one, other))
        return Det((sides[0], sides[1]), (1,) * one.ndim)

    def kernels(
        self,
        examples: tuple[Examples, Examples],
        duals: AskDual,
        sides: Sides,
        *,
        same: Array | None = None,
        observed: Observed | None = None,
        key: Array | None = None,
    ) -> Kernels:
        """Of the outputs, scalars averaged over their positions, or of all pairs of these."""
        moments, out = self.interpret(examples, duals, same=same, observed=observed, key=key)
        g, mean = output_gaussian(out), self.positions == "mean" and not self.batch_coupled
        both = (ask(g, g, sides, mean) for ask in (moments.covariance, moments.tangent))
        shape = () if mean else (math.prod(g.shape),) * 2
        zero, of = (
            jnp.zeros(shape, self.dtype),
            jnp.mean if mean else partial(jnp.reshape, shape=shape),
        )
        return Kernels(*(zero if k is None else of(k) for k in both))

    def pair(self, duals: Duals, key: Array | None) -> PairTrace:
        """One pair with these duals: interpreted once, and filled in for each of them once."""
        question = self.num_samples, duals, None if key is None else abstract_value(key)
        if question not in self.traces:
            self.traces[question] = (
                replace(self.pair((), key), inner=Filled(dict(duals)), programs={})
                if duals
                else self._interpreted(key)
            )
        return self.traces[question]

    def _interpreted(self, key: Array | None) -> PairTrace:
        def kernels(
            examples: tuple[Examples, Examples], same: Array, observed: Observed, key: Array | None
        ) -> Kernels:
            sides = 0, 0 if self.batch_coupled else 1
            return self.kernels(examples, left_open, sides, same=same, observed=observed, key=key)

        return traced_pair(kernels, self.jaxpr.in_avals[len(self.params) :], key)


def traced(
    apply_fn: ApplyFn,
    params: Params,
    stats: Params,
    rate: Rate,
    example: Examples,
    options: Mapping[str, str],
    num_samples: int | None = None,
    batch_coupled: bool = False,
) -> Program:
    """The program of a network for an example of this shape and dtype."""
    leaves, tree = cast(Any, jax.tree_util.tree_flatten_with_path(params))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    jaxpr = jax.make_jaxpr(lambda p, x: _of_example(apply_fn, p, x, batch_coupled))(shapes, example)
    # Copies: what the model reads is not kept alive, nor are its changes followed.
    jaxpr = jex_core.ClosedJaxpr(jaxpr.jaxpr, list(map(_copied, jaxpr.consts)))
    found = [
        _param(leaf_path(path), leaf.shape, s, rate)
        for (path, leaf), s in zip(leaves, tree.flatten_up_to(stats), strict=True)
    ]
    # Integers may be indices: their kernel has JAX's default dtype.
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(example)]
    dtype = jnp.float64 if jnp.float64 in dtypes else jnp.float32
    if not any(jnp.issubdtype(d, jnp.floating) for d in dtypes):
        dtype = jnp.result_type(float)
    return Program(
        jaxpr, found, jnp.dtype(dtype), options, num_samples, batch_coupled=batch_coupled
    )


def _copied(const: Array | np.ndarray) -> Array | np.ndarray:
    known = is_concrete(const) and not is_key(const)
    return np.array(const) if known else const


def _of_example(apply_fn: ApplyFn, params: Params, x: Examples, batch_coupled: bool) -> Array:
    batch = x if batch_coupled else as_batch(x)
    out = apply_fn(params, batch)
    if not isinstance(out, jax.Array) or out.ndim == 0 or len(out) != num_rows(batch):
        raise ValueError(
            f"model: expected one array with a row per example; got {jax.tree.map(jnp.shape, out)}."
        )
    return out if batch_coupled else out[0]


def _param(path: str, shape: Shape, stats: InitStats, rate: Rate) -> Param:
    mean, variance = (
        _one_number(path, name, v)
        for name, v in (("mean", stats.mean), ("variance", stats.variance))
    )
    eta = float(rate(path, InitStats(mean, variance, stats.distribution)))
    return Param(path, tuple(shape), mean, variance, eta, tuple(range(len(shape))), (tuple(shape),))


def _one_number(path: str, name: str, value: Any) -> float:
    if np.ndim(value) and np.ptp(value):
        raise NoLimitError(
            f"the entries of parameter {path} differ in their {name} at initialization: its units "
            "are not alike,",
            "Give one mean and variance through init_stats if that is what you mean.",
        )
    return float(np.mean(value))


def output_gaussian(out: Value) -> Field:
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
    if g is None and any(h.degenerate for h in fields_of([out])):
        raise NoLimitError(
            "a trained scale multiplies the outputs: its gradient is an output, which is random,",
            "Leave it out of the last layer (use_scale=False), or freeze it: learning_rates with 0 "
            "for this parameter.",
        )
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
    seen: set[tuple[Field, bool]] = set()
    while stack:
        h, top = stack.pop()
        if (h, top) in seen:
            continue
        seen.add((h, top))
        if isinstance(h, Combination):
            stack += [(part, top) for _, part in h.parts]
        elif isinstance(h, Segment | Opened):
            stack.append((h.source, top))
        elif isinstance(h, Weight | InnerProduct):
            if isinstance(h, Weight):
                (readout if top else inside).add(h.leaf)
            below = [h.value] if isinstance(h, Weight) else [h.left, h.right]
            stack += [(a, False) for v in below if isinstance(v, Wide) for a in _inside(v)]
    if shared := sorted(readout & inside):
        raise NoLimitError(
            f"the readout weight {', '.join(shared)} is used inside the network as well: the "
            "gradients depend on it (Yang 2020, arXiv:2006.14548),",
            "Give the readout a weight of its own, or estimate with ntk_jax.monte_carlo_kernels.",
        )


def _inside(value: Wide) -> list[Field]:
    """All Gaussians that a value is made of."""
    found = [a for t in value.random for f in t.factors for a in f.gaussians]
    return found + [a for t in value.random if t.masked for a in _inside(t.masked.value)]
