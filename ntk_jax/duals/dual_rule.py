"""What a dual activation is: values for pairs, split into what depends on one example and what
depends on both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike
from jaxtyping import Float

from ntk_jax.closures.fingerprint import Reading
from ntk_jax.compat import is_concrete
from ntk_jax.duals.gaussian_pair import as_moments
from ntk_jax.host import by_numpy_if_few
from ntk_jax.small_programs import LESS, jit_by_size


class Dual(NamedTuple):
    """k = E[phi(u) phi(v)] and k_dot = E[phi'(u) phi'(v)]."""

    k: Float[Array, "..."]
    k_dot: Float[Array, "..."]


class Gap(NamedTuple):
    """A correlation rho by its gap to the nearer pole, exact relative to itself: 1 - rho, or
    -(1 + rho) for a negative one.

    Near a pole, rho itself has rounded the gap away.
    """

    signed: Array

    @property
    def positive(self) -> Array:
        """Whether the nearer pole is +1."""
        return self.signed >= 0

    @property
    def pole_gap(self) -> Array:
        """1 - |rho|."""
        return jnp.where(self.positive, self.signed, -self.signed)

    @property
    def rho(self) -> Array:
        """The correlation, rounded."""
        return jnp.where(self.positive, 1 - self.signed, -1 - self.signed)

    @property
    def both(self) -> "PoleGaps":
        """To either pole."""
        u = self.pole_gap
        return PoleGaps(self.by_pole(u, 2 - u), self.by_pole(2 - u, u))

    def by_pole(self, at_plus_one: Any, at_minus_one: Any) -> Array:
        """The first where the nearer pole is +1, the second elsewhere."""
        return jnp.where(self.positive, at_plus_one, at_minus_one)


class PoleGaps(NamedTuple):
    """The gaps 1 - rho and 1 + rho of a correlation to the poles +-1; the smaller is exact relative
    to itself.
    """

    minus: Any
    plus: Any

    @property
    def nearer(self) -> Gap:
        """The one to carry on. Its sign is that of the pole, also where the gap is 0."""
        tiny = jnp.finfo(self.plus.dtype).tiny
        plus = self.plus + lax.stop_gradient(jnp.where(self.plus < tiny, tiny - self.plus, 0))
        return Gap(jnp.where(self.minus <= self.plus, self.minus, -plus))


class DualOfGap(NamedTuple):
    """The correlation of the activations of two inputs, rounded and by its gaps, and k_dot."""

    gaps: PoleGaps
    correlation: Array
    k_dot: Array


class DualRule(ABC):
    """An activation's dual. Subclasses are frozen dataclasses, equal by value: they are static
    arguments of `jax.jit`.

    `rows` is paid once per example, `pair` once per pair; all arrays broadcast. `unroll` layers are
    compiled as one loop.
    """

    unroll = 8
    exact = True
    """Whether it is a closed form, or a mixture of them: exact at any variance."""
    flat = False
    """Whether phi' is 0 almost everywhere."""
    by_terms = False
    """Whether a pair is a sum of many closed forms, which NumPy would be slow with."""

    def __reduce__(self) -> Any:
        return _restored, (
            type(self),
            *(_named(getattr(self, field.name)) for field in fields(cast(Any, self))),
        )

    def __deepcopy__(self, memo: Any) -> "DualRule":
        return self

    @property
    def cusp(self) -> bool:
        """Whether k or k_dot has an infinite derivative at the poles: then pairs are followed by
        their gaps, and `of_gap` answers.
        """
        return False

    @property
    def far(self) -> "DualRule":
        """The rule for pairs of which none is nearly parallel, where it is quicker to compile."""
        return self

    @property
    def adaptive(self) -> bool:
        """Whether `fitted` depends on the variances."""
        return False

    @property
    def own(self) -> "DualRule":
        """What `diagonal` depends on: rules that differ in nothing else share its programs."""
        return self

    def fitted(self, q_max: float, dtype: Any) -> "DualRule":
        """The cheapest rule that is exact at variances up to `q_max`."""
        return self

    def shortfall(self, q_max: float, dtype: Any) -> str | None:
        """What a user must know where a fitted rule is not exact at variances up to `q_max`."""
        return None

    def rows(self, q: Array) -> Any:
        """What `pair` needs of one side: a pytree of arrays whose last axes are those of the
        variances `q`.
        """
        return q

    @abstractmethod
    def pair(self, rows1: Any, q12: Array, rows2: Any) -> Dual:
        """The dual of pairs, given both sides' rows and the covariances."""

    @abstractmethod
    def mean(self, q: Array) -> Array:
        """E[phi(u)] of every example."""

    @property
    @abstractmethod
    def description(self) -> str:
        """In words, for `explain_limit`."""

    def diagonal(self, q: Array) -> Dual:
        """The dual of every example with itself."""
        return self.pair(self.rows(q), q, self.rows(q))

    def gap_rows(self, q: Array, second: Array) -> Any:
        """What `of_gap` needs of one side, given variances and E[phi²]."""
        return None

    def of_gap(self, gap: Gap, rows1: Any, rows2: Any) -> DualOfGap:
        """For a rule with a cusp: the dual of pairs of nonzero inputs that are known by their gap,
        given both sides' rows.
        """
        raise NotImplementedError

    def __call__(self, q11: ArrayLike, q12: ArrayLike, q22: ArrayLike) -> Dual:
        """The dual of broadcastable moments: in one program, where nothing is traced."""
        moments = as_moments(q11, q12, q22)
        return (_called if all(map(is_concrete, moments)) else _of_pairs)(self, *moments)


def _of_pairs(rule: DualRule, q11: Array, q12: Array, q22: Array) -> Dual:
    return rule.pair(rule.rows(q11), q12, rule.rows(q22))


_called = by_numpy_if_few(jit_by_size(_of_pairs, 0, LESS))


class _Name(NamedTuple):
    """Of a function that is not pickled itself: JAX's compiled functions do not know where they
    are.
    """

    module: str
    name: str


def _named(value: Any) -> Any:
    value = value.function if isinstance(value, Reading) else value
    name, homes = getattr(value, "__name__", None), (jnp, jax.nn, jax.scipy.special)
    found = (_Name(h.__name__, name) for h in homes if name and getattr(h, name, None) is value)
    return next(found, value)


def _restored(kind: type, *values: Any) -> Any:
    found = lambda v: getattr(import_module(v.module), v.name) if isinstance(v, _Name) else v
    return kind(*map(found, values))


def _tangent(f: Callable[[Array], Array], v: Array) -> Array:
    return jax.jvp(f, (v,), (jnp.ones_like(v),))[1]


def derivative(phi: Callable[[Array], Array], order: int) -> Callable[[Array], Array]:
    """The `order`-th derivative of an elementwise function."""
    for _ in range(order):
        phi = partial(_tangent, phi)
    return phi
