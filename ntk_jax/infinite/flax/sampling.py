"""Functions without a closed form, which samples of their Gaussians give."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp

from ntk_jax.infinite.flax.answers import Answers
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.values import (
    AnyArray,
    Det,
    Factor,
    Sampled,
    Term,
    Wide,
    bases,
    bind_elementwise,
    fields_of,
)
from ntk_jax.jaxprs import Eqn


def sampled(
    moments: Answers,
    apply: Callable[[int, list[AnyArray]], jax.Array],
    values: Sequence[Wide | Det],
    wide: Sequence[int],
) -> Wide:
    """A function of values, on stored shapes, as one known by samples."""
    if any(t.masked for v in values if isinstance(v, Wide) for t in v.random):
        raise NoLimitError(
            "a dropout mask enters a function that has no closed form,",
            "Apply dropout behind it, turn dropout off, or estimate with "
            "ntk_jax.monte_carlo_kernels.",
        )
    variables = bases(fields_of(values))
    for g in variables:  # draws are counted in the order of the program
        moments.number(g)
    examples = [
        jax.ShapeDtypeStruct(v.shape, moments.dtype if isinstance(v, Wide) else v.sides[0].dtype)
        for v in values
    ]
    shape = cast(jax.Array, jax.eval_shape(partial(apply, 0), examples)).shape
    function = Sampled(apply, list(values), variables, shape)
    return Wide(shape, tuple(wide), [Term((Factor(variables, sampled=function),))])


def sampled_elementwise(
    moments: Answers, eqn: Eqn, values: Sequence[Wide | Det], wide: Sequence[int]
) -> Wide:
    """An elementwise function of values of any kind."""
    bind = partial(bind_elementwise, eqn.primitive, eqn.params, dtype=moments.dtype)
    typed = [v.mapped(jnp.asarray) if isinstance(v, Det) else v for v in values]
    return sampled(moments, lambda _, arrays: bind(arrays), typed, wide)
