"""Weights that a parameter multiplies, one entry for each unit: it multiplies what they make."""

from collections.abc import Sequence
from dataclasses import replace

from ntk_jax.infinite.flax import algebra
from ntk_jax.infinite.flax.errors import NoLimitError
from ntk_jax.infinite.flax.interpreter import Interpreter, rule
from ntk_jax.infinite.flax.parameter_views import entries
from ntk_jax.infinite.flax.products import product
from ntk_jax.infinite.flax.values import Det, Param, Value, Wide
from ntk_jax.jaxprs import Eqn, shape_of


@rule("gain")
def gain(program: Interpreter, eqn: Eqn, values: Sequence[Value]) -> list[Wide]:
    """x (W g) = (x W) g, entry by entry."""
    at, param, by = next(
        (i, v, v.gain) for i, v in enumerate(values) if isinstance(v, Param) and v.gain is not None
    )
    outputs, rank = _outputs(eqn, at), len(shape_of(eqn.outvars[0]))
    if any(s > 1 and a not in outputs.values() for a, s in enumerate(by.shape)):
        raise NoLimitError(
            f"parameter {by.leaf} multiplies the inputs of weight {param.leaf}, not its results,"
        )
    bare = [replace(param, gain=None) if i == at else v for i, v in enumerate(values)]
    (z,) = program.step(eqn, bare)
    if not isinstance(z, Wide):
        raise NoLimitError(f"parameter {by.leaf} multiplies a weight of joined outputs,")
    places = [outputs.get(a) for a in range(rank)]
    shape = tuple(1 if a is None else by.shape[a] for a in places)
    axes = tuple(None if a is None else by.axes[a] for a in places)
    scale = entries(program.uses, replace(by, shape=shape, axes=axes), z.wide)
    if isinstance(scale, Det):
        return [algebra.scaled(z, scale, z.wide)]
    return [product(z, scale, z.wide, program.related)]


def _outputs(eqn: Eqn, at: int) -> dict[int, int]:
    """Axes of the result that are outputs of the weight, operand number `at`: which of its own."""
    if eqn.primitive.name == "conv_general_dilated":
        dims = eqn.params["dimension_numbers"]
        return {dims.out_spec[1]: dims.rhs_spec[0]}
    contract, batch = eqn.params["dimension_numbers"]
    left, right = (
        [a for a in range(len(shape_of(v))) if a not in (*c, *b)]
        for v, c, b in zip(eqn.invars, contract, batch, strict=True)
    )
    first = len(batch[0]) + (len(left) if at == 1 else 0)
    return dict(enumerate(right if at == 1 else left, start=first))
