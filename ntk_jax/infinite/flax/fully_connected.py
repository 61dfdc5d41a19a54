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
from ntk_jax.duals.dual_rule import DualRule
from ntk_jax.examples import Examples
from ntk_jax.host import by_numpy_if_few
from ntk_jax.infinite.flax.errors import out_of_range
from ntk_jax.infinite.flax.moments.contractions import DotContraction
from ntk_jax.infinite.flax.moments.duals import answered
from ntk_jax.infinite.flax.moments.expectations import scalar_function
from ntk_jax.infinite.flax.moments.functions import multiple_of, rule_of
from ntk_jax.infinite.flax.traced_model import Program, output_gaussian
from ntk_jax.infinite.flax.values import (
    Combination,
    Det,
    Entries,
    Factor,
    Field,
    Segment,
    Shape,
    Weight,
    Wide,
)
from ntk_jax.infinite.flax.values.expression import ScalarFunction
from ntk_jax.infinite.mlp.kernels import kernels_of
from ntk_jax.infinite.mlp.layers import Architecture, Layers, Network, as_rows, stack
from ntk_jax.jaxprs import evaluate, shape_of
from ntk_jax.small_programs import LESS, jit_by_size
from ntk_jax.types import Which

MOVES = ("broadcast_in_dim", "reshape", "squeeze", "copy")  # of a trace without axes of examples
Coefficients = tuple[float, float, float, float, float]  # those of `Layers`
Units = tuple[Hashable, ...]  # which of an infinite axis are taken; empty: all
Part = tuple[float, Weight | Entries, Units]  # a Gaussian, and the number that it is multiplied by
Features = tuple[Det, Shape]  # broadcast to that shape


class _Below(NamedTuple):
    """What a weight multiplies: a function of a Gaussian, or features, and the `factor` of the
    function's second moments, or of the features' mean product.

    The Gaussian may be multiplied, as by a normalization, by one number for each example. Trained
    constants are a `shift` and a `gain` of what the function sees: their learning rates.
    """

    factor: float
    gaussian: Field | None = None
    function: ScalarFunction | None = None
    features: Features | None = None
    multiplier: Det | None = None
    shift: float = 0.0
    gain: float = 0.0
    leaves: tuple[str, ...] = ()


class _Layer(NamedTuple):
    """A Dense layer, of what is below it; `skipped` if that is added to its result."""

    coefficients: Coefficients
    leaves: tuple[str, ...]
    below: _Below | None
    function: ScalarFunction | None
    skipped: bool


class FullyConnected:
    """Dense layers with one activation between them, on features of an example."""

    def __init__(self, layers: list[_Layer], features: ClosedJaxpr, dtype: DTypeLike):
        each = zip(*(layer.coefficients for layer in layers), strict=True)
        self.layers = Layers(*(stack(c, dtype) for c in each))
        if not any(layer.coefficients[-1] for layer in layers):
            self.layers = self.layers._replace(shift=None)
        self.features, self.dtype = features, dtype
        self.rule = _rules(layers).pop() if layers[1:] else dual_rule("relu")
        self.residual = len(layers) > 2 and layers[1].skipped
        self.rows = by_numpy_if_few(jit_by_size(jax.vmap(self._row), options=LESS))

    def kernels(self, x1: Examples, x2: Examples | None, which: Which) -> list[Array]:
        """NNGP, NTK or both of the outputs."""
        nothing = None, None
        (a1, f1), (a2, f2) = (nothing if x is None else self._features(x) for x in (x1, x2))
        assert a1 is not None
        arch = Architecture(self.rule, self.residual)
        network = Network(a1, a2, self.layers, arch, (f1, f2))
        # Warnings point at the call of the kernel.
        return kernels_of(network, which, "infinite_width", out_of_range(self.dtype), 5)

    def _features(self, x: Examples) -> tuple[Array, Array | None]:
        """Rows of features, examples as they are where the model only moves their entries; factors
        before activations, if there are any.
        """
        leaves = jax.tree.leaves(x)
        moved = all(eqn.primitive.name in MOVES for eqn in self.features.jaxpr.eqns)
        entries = math.prod(shape_of(self.features.jaxpr.outvars[0]))
        if moved and len(leaves) == 1 and math.prod(leaves[0].shape[1:]) == entries:
            return as_rows(leaves[0], self.dtype), None
        features, *factors = self.rows(*leaves)
        return features, factors[0] if factors else None

    def _row(self, *leaves: Array) -> list[Array]:
        jaxpr, consts = self.features.jaxpr, self.features.consts
        return [a.astype(self.dtype).ravel() for a in evaluate(jaxpr, consts, leaves, bind)]


def fully_connected(program: Program) -> FullyConnected | None:
    """The network that a program is, or None: it may have positions, different activations, sums of
    branches...
    """
    if not _may_be(program):
        return None
    found: list[list[_Layer]] = []

    def features(*leaves: Array) -> list[Array]:
        key = None if program.num_samples is None else jax.random.key(0)
        _, out = program.interpret((leaves, leaves), answered({}), key=key)
        layers = _layers(output_gaussian(out))
        # What is below holds this trace's values: they must not outlive it.
        found.append([layer._replace(below=None) for layer in layers or []])
        below = [layer.below for layer in layers or [] if layer.below]
        if not below or below[0].features is None:
            return []
        inputs, shape = below[0].features
        return [jnp.broadcast_to(jnp.asarray(inputs.sides[0]), shape), *_factors(below[1:])]

    closed = jax.make_jaxpr(features)(*program.jaxpr.in_avals[len(program.params) :])
    layers, multiplied = found[-1], len(closed.out_avals) > 1
    # a series is not summed before the variances are known, on which multipliers may depend
    if not layers or (multiplied and not all(rule.exact for rule in _rules(layers))):
        return None
    return FullyConnected(layers, closed, program.dtype)


def _factors(below: list[_Below]) -> list[Array]:
    """What multiplies the Gaussians of the hidden layers: (depth,) of them, or nothing."""
    multipliers = [b.multiplier for b in below]
    one = [1.0 if m is None else jnp.asarray(m.sides[0]).reshape(()) for m in multipliers]
    return [jnp.stack([jnp.asarray(m) for m in one])] if any(multipliers) else []


def _rules(layers: list[_Layer]) -> set[DualRule]:
    """The duals of the activations."""
    return {rule_of(layer.function) for layer in layers[1:]}


def _may_be(program: Program) -> bool:
    """Whether it is worth interpreting: the outputs have no positions, and weights are matrices, or
    kernels of convolutions that have one tap or meet all of an example.
    """
    outputs = shape_of(program.jaxpr.jaxpr.outvars[0])
    examples = program.jaxpr.in_avals[len(program.params) :]
    matrices = (1, *(math.prod(a.shape[:-1]) for a in examples))
    return len(outputs) <= 1 and all(math.prod(p.shape[:-2]) in matrices for p in program.params)


def _layers(g: Field) -> list[_Layer] | None:
    """Of a network with this output, from the inputs on; None if it is not one."""
    layers: list[_Layer] = []
    below: Field | None = g
    while below is not None:
        layer = _layer(below)
        if layer is None or layer.below is None:
            return None
        layers.insert(0, layer)
        below = layer.below.gaussian
    leaves = [leaf for layer in layers for leaf in layer.leaves]
    skips = [layer.skipped for layer in layers[1:]]
    alike = len(_rules(layers)) <= 1 and len({*skips[:-1]}) <= 1 and not any(skips[-1:])
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
    law = {"W": 0.0, "b": 0.0, "W_eta": 0.0, "b_eta": 0.0, "shift": below.shift}
    for part in own:
        scale, field, _ = part
        by = scale**2 * (below.factor if part is weight else 1.0)
        name = "W" if part is weight else "b"
        law[name] += by * field.variance
        law[f"{name}_eta"] += by * field.eta
    law["W_eta"] += below.gain * law["W"]
    leaves = (*(field.leaf for _, field, _ in own), *below.leaves)
    coefficients = law["W"], law["b"], law["W_eta"], law["b_eta"], law["shift"]
    return _Layer(coefficients, leaves, below, below.function, skipped)


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
    return None if factor.node is None else _activation(factor, contract.units * scale**2)


def _activation(f: Factor, of_moments: float) -> _Below | None:
    """A function of one random Gaussian, which trained constants shift or scale at most."""
    function = scalar_function(f, None)
    if not isinstance(function, ScalarFunction):
        return None
    (main,) = f.nondegenerate
    g, multiplier, constants = _multiplied(f.gaussians[main])
    gained: list[Field] = []
    for i, constant in enumerate(f.gaussians):
        if i != main:
            by, of_slope = multiple_of(scalar_function(f, i), function)
            if abs(by) != 1 and abs(of_slope) != 1:
                return None
            (gained if by else constants).append(constant)
    parts = [[_parts(h) for h in fields] for fields in (constants, gained)]
    if None in [*parts[0], *parts[1]]:
        return None
    shifts, gains = ([part for found in kind for part in found or ()] for kind in parts)
    shift, gain = (sum(s**2 * field.eta for s, field, _ in kind) for kind in (shifts, gains))
    leaves = tuple(field.leaf for _, field, _ in (*shifts, *gains))
    return _Below(of_moments, g, function, None, multiplier, shift, gain, leaves)


def _multiplied(g: Field) -> tuple[Field, Det | None, list[Field]]:
    """The Gaussian, the number of each example that it is multiplied by, if it is, and trained
    constants that are added then.
    """
    parts = g.parts if isinstance(g, Combination) else []
    random = [(by, h) for by, h in parts if not h.degenerate]
    if len(random) == 1 and all(by is None for by, h in parts if h.degenerate):
        ((by, inner),) = random
        factor = None if by is None or by.scale is not None else by.factor
        if factor is not None and math.prod(factor.shape) == 1:
            return inner, factor, [h for _, h in parts if h.degenerate]
    return g, None, []
