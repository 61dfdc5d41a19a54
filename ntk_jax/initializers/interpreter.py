"""What the trace of an initializer says of every leaf: its equations, read with laws in place of
arrays.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_jax.compat import bind, scan_counts
from ntk_jax.initializers.normalized import normalized
from ntk_jax.initializers.rules import (
    ELEMENTWISE,
    STRUCTURE,
    all_constant,
    concatenate,
    constant,
    elementwise,
    folded,
    key_or_words,
    orthogonal,
    qr,
    words,
)
from ntk_jax.initializers.values import Constant, Key, Random, Unknown, Value, Words
from ntk_jax.jaxprs import (
    INNER,
    Eqn,
    Jaxpr,
    Var,
    evaluate,
    inner_jaxpr,
    needed,
    open_jaxpr,
    shape_of,
)
from ntk_jax.types import Params


def laws_of(init_fn: Callable[[Array], Params]) -> tuple[list[Value], Params]:
    """The laws of all leaves that `init_fn` draws, and the leaves' shapes."""
    closed, shapes = jax.make_jaxpr(init_fn, return_shape=True)(any_key())
    return LawInterpreter().run(closed.jaxpr, closed.consts, [Key(0)]), shapes


def any_key() -> jax.ShapeDtypeStruct:
    """What stands for a random key in a trace."""
    return cast(jax.ShapeDtypeStruct, jax.eval_shape(lambda: jax.random.key(0)))


@dataclass
class LawInterpreter:
    """One pass over the trace of an initializer.

    Attributes:
        idents: a number for everything that tells keys and layouts apart.
    """

    idents: dict[Hashable, int] = field(default_factory=dict)

    def ident(self, *what: Hashable) -> int:
        """A number for `what`, the same for equal ones."""
        return self.idents.setdefault(what, len(self.idents) + 1)

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
        """The laws of the results; what they do not need is not looked at."""
        laws = [self._of_const(value) for value in consts]
        equations = needed(jaxpr, jaxpr.outvars)
        return evaluate(jaxpr, laws, args, self.step, constant=constant, equations=equations)

    def _of_const(self, value: Any) -> Value:
        if isinstance(value, jax.core.Tracer):
            return Unknown("it depends on a value that is traced by an outer transformation")
        if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
            return Key(self.ident("constant key", id(value)))
        return constant(value)

    def step(self, eqn: Eqn, values: list[Value]) -> list[Value]:
        """The laws of one equation's results."""
        name = eqn.primitive.name
        if name in INNER:
            return self.run(*inner_jaxpr(eqn), values)
        if name == "scan":
            return self.scan(eqn, values)
        if any(isinstance(v, Key) for v in values):
            return key_or_words(eqn, values, self._key_idents(eqn, values))
        if name != "platform_index" and all_constant(values):
            return folded(eqn, values)
        # Before what is unknown: the factors of a QR decomposition are, until they meet; and the
        # norm of entries, until it meets these.
        if (found := orthogonal(name, values) or normalized(eqn, values)) is not None:
            return [found] * len(eqn.outvars)
        if unknown := [v for v in values if isinstance(v, Unknown)]:
            return [Unknown(unknown[0].reason)] * len(eqn.outvars)
        if name == "qr":
            return qr(eqn, values[0])
        return self.random(eqn, values)

    def _key_idents(self, eqn: Eqn, values: list[Value]) -> list[int]:
        # Equal operations of equal keys draw the same numbers.
        operands = tuple(v.ident if isinstance(v, Key) else _hashable(v) for v in values)
        return [
            self.ident(eqn.primitive.name, repr(eqn.params), operands, i)
            for i in range(len(eqn.outvars))
        ]

    def random(self, eqn: Eqn, values: list[Value]) -> list[Value]:
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

    def structure(self, eqn: Eqn, value: Value) -> list[Value]:
        """Entries at other places: the same law; where entries differ, their moments move along."""
        if not isinstance(value, Random):
            return [value] * len(eqn.outvars)
        move = lambda a, i: a if np.ndim(a) == 0 else np.asarray(bind(eqn, [jnp.asarray(a)])[i])
        layout = lambda i: self.ident(value.layout, eqn.primitive.name, repr(eqn.params), i)
        return [
            replace(value, layout=layout(i), shift=move(value.shift, i), scale=move(value.scale, i))
            for i in range(len(eqn.outvars))
        ]

    def scan(self, eqn: Eqn, values: list[Value]) -> list[Value]:
        """Stacked results of a loop whose iterations draw with keys of their own, as `nn.scan` over
        layers does.
        """
        p = eqn.params
        (num_consts, num_carry), loop = scan_counts(p), self.ident("loop", id(eqn))
        args = list(values)
        for i in range(num_consts, len(args)):
            args[i] = self._inside(args[i], loop, is_carry=i < num_consts + num_carry)
        outs = self.run(*open_jaxpr(p["jaxpr"]), args)
        carried: list[Value] = [Unknown("the last value of a loop")] * num_carry
        return carried + [
            self._stacked(out, loop, var)
            for out, var in zip(outs[num_carry:], eqn.outvars[num_carry:], strict=True)
        ]

    def _inside(self, value: Value, loop: int, *, is_carry: bool) -> Value:
        if isinstance(value, Key):
            return Key(self.ident("in loop", value.ident, loop), value.loops | {loop})
        if is_carry or not (isinstance(value, Constant) and np.ndim(value.value) == 0):
            return Unknown("a value that changes along a loop")
        return value

    def _stacked(self, value: Value, loop: int, var: Var) -> Value:
        if isinstance(value, Random) and not all(loop in source.loops for source in value.sources):
            return Unknown("the same random entries in every iteration of a loop")
        grow = lambda a: a if np.ndim(a) == 0 else np.broadcast_to(a, shape_of(var))
        if isinstance(value, Random):
            return replace(value, shift=grow(value.shift), scale=grow(value.scale))
        return Constant(grow(value.value)) if isinstance(value, Constant) else value


def _only_reshapes(eqn: Eqn) -> bool:
    return bool(np.prod(shape_of(eqn.invars[0])) == np.prod(shape_of(eqn.outvars[0])))


def _hashable(value: Value) -> Hashable:
    return (
        (np.shape(value.value), np.asarray(value.value).tobytes())
        if isinstance(value, Constant)
        else id(value)
    )
