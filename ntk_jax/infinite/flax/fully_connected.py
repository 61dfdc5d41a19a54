"""Models that are fully connected networks on features of an example: their kernels are those of
the recursion of `mlp_kernels`, which tells nearly parallel examples apart where covariances round.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr
from jax.typing import DTypeLike

from ntk_jax.compat import bind
from ntk_jax.duals.catalogue import dual_rule
from ntk_jax.examples import Examples
from ntk_jax.infinite.flax.errors import out_of_range
from ntk_jax.infinite.flax.moments.contractions import DotContraction
from ntk_jax.infinite.flax.moments.functions import rule_of
from ntk_jax.infinite.flax.traced_model import Program, output_gaussian
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Entries,
    Field,
    Segment,
    Shape,
    Weight,
    Wide,
)
from ntk_jax.infinite.flax.values.expression import ScalarFunction
from ntk_jax.infinite.mlp.kernels import kernels_of, stack
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Network
from ntk_jax.jaxprs import evaluate, shape_of
from ntk_jax.types import Which

MOVES = ("broadcast_in_dim", "reshape", "squeeze", "copy")  # of a trace without axes of examples
Coefficients = tuple[float, float, float, float]  # W, b, W_eta, b_eta
Units = tuple[Hashable, ...]  # which of an infinite axis are taken; empty: all
Part = tuple[float, Weight | Entries, Units]  # a Gaussian, and the number that it is multiplied by
Features = tuple[Det, Shape]  # broadcast to that shape


class _Below(NamedTuple):
    """What a weight multiplies: a function of a Gaussian, or features, and the `factor` of the
    function's second moments, or of the features' mean product.
    """

    factor: float
    gaussian: Field | None = None
    function: ScalarFunction | None = None
    features: Features | None = None


class _Layer(NamedTuple):
    """A Dense layer, of what is below it; `skipped` if that is added to its result."""

    coefficients: Coefficients
    leaves: tuple[str, ...]
    below: Field | None
    function: ScalarFunction | None
    features: Features | None
    skipped: bool


class FullyConnected:
    """Dense layers with one activation between them, on features of an example."""

    def __init__(self, layers: list[_Layer], features: ClosedJaxpr, dtype: DTypeLike):
        self.coefficients = [layer.coefficients for layer in layers]
        self.features, self.dtype = features, dtype
        functions = {layer.function for layer in layers[1:]}
        self.rule = rule_of(functions.pop()) if functions else dual_rule("relu")
        self.residual = len(layers) > 2 and layers[1].skipped
        self.rows = jax.jit(jax.vmap(self._row))

    def kernels(self, x1: Examples, x2: Examples | None, which: Which) -> list[Array]:
        """NNGP, NTK or both of the outputs."""
        a1, a2 = (None if x is None else self._features(x) for x in (x1, x2))
        assert a1 is not None
        layers = Layers(*(stack(c, self.dtype) for c in zip(*self.coefficients, strict=True)))
        network = Network(a1, a2, layers, Architecture(self.rule, self.residual))
        # Warnings point at the call of the kernel.
        return kernels_of(network, which, "infinite_width", out_of_range(self.dtype), 5)

    def _features(self, x: Examples) -> Array:
        """Rows of features; examples as they are where the model only moves their entries."""
        leaves = jax.tree.leaves(x)
        moved = all(eqn.primitive.name in MOVES for eqn in self.features.jaxpr.eqns)
        entries = math.prod(shape_of(self.features.jaxpr.outvars[0]))
        if moved and len(leaves) == 1 and math.prod(leaves[0].shape[1:]) == entries:
            return leaves[0].reshape(len(leaves[0]), -1).astype(self.dtype)
        return self.rows(*leaves)

    def _row(self, *leaves: Array) -> Array:
        jaxpr, consts = self.features.jaxpr, self.features.consts
        return evaluate(jaxpr, consts, leaves, bind)[0].astype(self.dtype).ravel()


def fully_connected(program: Program) -> FullyConnected | None:
    """The network that a program is, or None: it may have positions, different activations,
    normalization, sums of branches...
    """
    if not _may_be(program):
        return None
    found: list[list[_Layer]] = []

    def features(*leaves: Array) -> Array:
        key = None if program.num_samples is None else jax.random.key(0)
        _, out = program.interpret((leaves, leaves), {}, key=key)
        layers = _layers(output_gaussian(out))
        # What is below holds this trace's values: they must not outlive it.
        found.append([layer._replace(below=None, features=None) for layer in layers or []])
        if layers is None or layers[0].features is None:
            return jnp.zeros(())
        inputs, shape = layers[0].features
        return jnp.broadcast_to(jnp.asarray(inputs.sides[0]), shape)

    closed = jax.make_jaxpr(features)(*program.jaxpr.in_avals[len(program.params) :])
    layers = found[-1]
    return FullyConnected(layers, closed, program.dtype) if layers else None


def _may_be(program: Program) -> bool:
    """Whether it is worth interpreting: weights are matrices, and the outputs have no positions."""
    outputs = shape_of(program.jaxpr.jaxpr.outvars[0])
    return len(outputs) <= 1 and all(len(p.shape) <= 2 for p in program.params)


def _layers(g: Field) -> list[_Layer] | None:
    """Of a network with this output, from the inputs on; None if it is not one."""
    layers: list[_Layer] = []
    below: Field | None = g
    while below is not None:
        layer = _layer(below)
        if layer is None:
            return None
        layers.insert(0, layer)
        below = layer.below
    leaves = [leaf for layer in layers for leaf in layer.leaves]
    functions = {layer.function for layer in layers[1:]}
    skips = [layer.skipped for layer in layers[1:]]
    alike = len(functions) <= 1 and len({*skips[:-1]}) <= 1 and not any(skips[-1:])
    return layers if alike and len({*leaves}) == len(leaves) else None


def _layer(g: Field) -> _Layer | None:
    """The last layer of what has this output."""
    parts = _parts(g)
    weights = _weights_of(parts or [])
    for weight in weights:
        below = _below(weight)
        if parts is None or below is None:
            return None
        # What goes around the layer is all that the layer is a function of.
        skipped = len(weights) > 1
        inside = _parts(below.gaussian) if skipped and below.gaussian else []
        own = [part for part in parts if part not in (inside or ())]
        if len(own) + len(inside or ()) == len(parts) and _weights_of(own) == [weight]:
            return _layer_of(own, weight, below, skipped)
    return None


def _weights_of(parts: list[Part]) -> list[Part]:
    return [part for part in parts if isinstance(part[1], Weight)]


def _layer_of(own: list[Part], weight: Part, below: _Below, skipped: bool) -> _Layer:
    """Its coefficients add up those of its own parameters."""
    law = {"W": 0.0, "b": 0.0, "W_eta": 0.0, "b_eta": 0.0}
    for part in own:
        scale, field, _ = part
        by = scale**2 * (below.factor if part is weight else 1.0)
        name = "W" if part is weight else "b"
        law[name] += by * field.variance
        law[f"{name}_eta"] += by * field.eta
    leaves = tuple(field.leaf for _, field, _ in own)
    coefficients = law["W"], law["b"], law["W_eta"], law["b_eta"]
    return _Layer(coefficients, leaves, below.gaussian, below.function, below.features, skipped)


def _parts(g: Field) -> list[Part] | None:
    """What it is a sum of, at one position; None if it is of something else."""
    if math.prod(g.shape) != 1:
        return None
    if isinstance(g, Weight | Entries):
        return [(1.0, g, ())]
    if isinstance(g, Segment):
        whole = _parts(g.source)
        return None if whole is None else [(s, f, (*units, g.tag)) for s, f, units in whole]
    found: list[Part] = []
    for by, h in g.parts if isinstance(g, Combination) else ():
        scale, inner = 1.0 if by is None else by.scale, _parts(h)
        if scale is None or inner is None:
            return None
        found += [(scale * s, f, units) for s, f, units in inner]
    return found or None


def _below(weight: Part) -> _Below | None:
    """What a weight multiplies: a function of a Gaussian, or a deterministic input."""
    field = weight[1]
    assert isinstance(field, Weight)
    value, contract = field.value, field.contract
    if not field.variance or not isinstance(contract, DotContraction):
        return None
    if math.prod(contract.shape[a] for a in (*contract.free, *contract.batch)) != 1:
        return None
    entries = math.prod(contract.shape)
    if isinstance(value, Det):
        return _Below(entries, features=(value, contract.shape)) if contract.units == 1 else None
    if entries != 1 or not isinstance(value, Wide) or value.offset is not None:
        return None
    (term, *others) = value.random
    scale = 1.0 if term.map is None else term.map.scale
    if others or term.masked or scale is None or len(term.factors) != 1:
        return None
    (factor,) = term.factors
    if factor.node is None or factor.operands or len(factor.gaussians) != 1:
        return None
    (g,) = factor.gaussians
    return (
        None if g.degenerate else _Below(contract.units * scale**2, g, ScalarFunction(factor.node))
    )
