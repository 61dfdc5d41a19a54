"""Wide random values with their terms and factors, and random numbers."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values.deterministic import AnyArray, Det, Shape
from ntk_jax.infinite.flax.values.expression import Expression
from ntk_jax.infinite.flax.values.fields import Field
from ntk_jax.infinite.flax.values.linear import Linear, then
from ntk_jax.infinite.flax.values.parameters import Param, Squares


@dataclass(eq=False)
class Sampled:
    """A function of Gaussians without a closed form, which may mix positions: known by running it
    on samples.

    Attributes:
        apply: (side, arrays) -> array, on stored shapes.
        inputs: the values (Wide or Det) that it takes.
        variables: the Gaussians that all of theirs are linear maps of.
        shape: of the result.
    """

    apply: Callable[[int, list[AnyArray]], Array]
    inputs: "list[Wide | Det]"
    variables: tuple[Field, ...]
    shape: Shape


@dataclass(eq=False)
class Factor:
    """A function of Gaussians: `node` over variables (the Gaussians) and operands, entry by entry;
    `sampled`; or one itself.
    """

    gaussians: tuple[Field, ...]
    node: Expression | None = None
    operands: tuple[Det, ...] = ()
    sampled: Sampled | None = None

    @property
    def is_gaussian(self) -> bool:
        """Whether it is its Gaussian."""
        return self.node is None and self.sampled is None and len(self.gaussians) == 1

    @property
    def nondegenerate(self) -> list[int]:
        """Which Gaussians are random at initialization."""
        return [i for i, g in enumerate(self.gaussians) if not g.degenerate]

    @property
    def shape(self) -> Shape:
        """The broadcast shape of its Gaussians and operands, or that of the samples."""
        if self.sampled is not None:
            return self.sampled.shape
        return np.broadcast_shapes(
            *(g.shape for g in self.gaussians), *(d.shape for d in self.operands)
        )


class Masked(Factor):
    """A value times a dropout mask of mean 1: independent entries 1 / keep with probability keep,
    else 0.

    Attributes:
        value: what is masked.
        source: which random numbers the mask is made of; equal for equal masks.
        mask_shape: its stored shape: 1 along infinite axes, and along finite ones whose entries
            share it.
        keep: the probability.
    """

    def __init__(self, value: "Wide", source: Hashable, mask_shape: Shape, keep: float):
        super().__init__(())
        self.value, self.source, self.mask_shape, self.keep = value, source, mask_shape, keep

    @property
    def shape(self) -> Shape:
        """That of the value."""
        return self.value.shape


@dataclass(eq=False)
class Term:
    """A linear map of a product of functions of independent Gaussians.

    Attributes:
        factors: the functions.
        map: the linear map; None for the identity.
        base: the shape of the product.
    """

    factors: tuple[Factor, ...]
    map: Linear | None = None
    base: Shape = field(init=False)

    def __post_init__(self):
        self.base = np.broadcast_shapes(*(f.shape for f in self.factors))

    @property
    def shape(self) -> Shape:
        """Of the result."""
        return self.base if self.map is None else self.map.shape

    @property
    def gaussian(self) -> Field | None:
        """The Gaussian that it is a linear map of, if it is one."""
        (f, *others) = self.factors
        return f.gaussians[0] if f.is_gaussian and not others else None

    @property
    def law(self) -> Hashable:
        """Equal for terms that are linear maps of the same."""
        return self.gaussian or self.factors

    @property
    def masked(self) -> Masked | None:
        """The masked value that it is a linear map of, if it is one; that is then its only
        factor.
        """
        return self.factors[0] if isinstance(self.factors[0], Masked) else None

    def mapped(self, linear: Linear) -> "Term":
        """`linear` of this term."""
        return Term(self.factors, then(self.map, linear))


@dataclass(eq=False)
class Wide:
    """A random vector: offset + sum of terms.

    Attributes:
        shape: internal, 1 along wide axes.
        wide: multiplicity of each axis.
        terms: random parts; None if only `product` is known.
        offset: deterministic part.
        interleaved: whether an axis lists finite entries within each unit, not units within each
            entry: good for a product only.
        product: the two values whose product this is, good for a mean over a wide axis even where
            terms are not.
    """

    shape: Shape
    wide: Shape
    terms: list[Term] | None
    offset: Det | None = None
    product: "tuple[Wide, Wide] | None" = None
    interleaved: bool = False

    @property
    def gaussian(self) -> Field | None:
        """The Gaussian that it is, apart from an offset."""
        if self.terms is None or len(self.terms) != 1 or self.terms[0].map is not None:
            return None
        return self.terms[0].gaussian

    @property
    def random(self) -> list[Term]:
        """The terms; an error if there are none to be had."""
        if self.terms is None:
            raise NoLimitError(
                "a product of correlated wide vectors is used other than inside a mean over their "
                "features,"
            )
        return self.terms

    @property
    def degenerate(self) -> bool:
        """Whether it is constant at initialization."""
        return self.terms is not None and all(
            t.masked.value.degenerate
            if t.masked
            else any(g.degenerate for g in fields_of_terms([t]))
            for t in self.terms
        )


@dataclass(eq=False)
class Joined:
    """Values one after the other along an infinite axis, which is the given one; parts may be
    deterministic. Or parameters, such as kernels of several gates that are used as one.

    With `repeats` above 1 the axis is a flattened one: for each of that many positions, the units
    of all parts in turn.
    """

    axis: int
    sizes: tuple[int, ...]
    parts: "list[Part]"
    repeats: int = 1

    @property
    def places(self) -> tuple[int, tuple[int, ...], int]:
        """Equal for values whose parts meet each other."""
        return self.axis, self.sizes, self.repeats


@dataclass(eq=False)
class Noise:
    """Random numbers of the model's own, as of dropout: harmless until they meet a value.

    Attributes:
        of_bits: each entry as a function of its random bits, if it is one.
        shape: with size 1 along axes where one number is repeated.
        bits: dtype of the random bits.
        nominal: the number that they were compared with: the probability of one answer.
        origin: the drawing that they come from; `part` which part of it.
    """

    of_bits: Callable[[Array], Array] | None = None
    shape: Shape | None = None
    bits: np.dtype | None = None
    nominal: float | None = None
    origin: object = field(default_factory=object)
    part: tuple[int, ...] = ()


Part = Det | Param | Wide | Joined
Value = Part | Squares | Noise


def gaussian(g: Field, wide: Sequence[int]) -> Wide:
    """A Gaussian as a value."""
    return Wide(g.shape, tuple(wide), [Term((Factor((g,)),))])


def fields_of_terms(terms: Sequence[Term]) -> list[Field]:
    """All Gaussians of the terms, in order."""
    return [g for t in terms for f in t.factors for g in f.gaussians]


def fields_of(values: Sequence[object]) -> list[Field]:
    """All Gaussians of the wide values, each once."""
    wides = [v for v in values if isinstance(v, Wide)]
    return list(dict.fromkeys(fields_of_terms([t for v in wides for t in v.random])))


def offsets(value: Wide, dtype: np.dtype) -> list[Array]:
    """The deterministic part on both sides, in full internal shape."""
    if value.offset is None:
        return [jnp.zeros(value.shape, dtype)] * 2
    return [jnp.broadcast_to(jnp.asarray(a, dtype), value.shape) for a in value.offset.sides]
