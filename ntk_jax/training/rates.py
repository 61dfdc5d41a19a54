"""Learning rates as arguments: an optimizer with another one is the same program."""

import types
from collections.abc import Callable
from typing import cast

import optax
from jax import Array


def lift_rates(
    optimizer: optax.GradientTransformation,
) -> tuple[optax.GradientTransformation, tuple[float, ...]]:
    """The optimizer with a placeholder for every step size that it multiplies by, and these."""
    found: list[float] = []

    def take(rate: float) -> float:
        found.append(rate)
        return 1.0

    lifted = _replaced(optimizer, take)
    return cast(optax.GradientTransformation, lifted), tuple(found)


def with_rates(
    optimizer: optax.GradientTransformation, rates: tuple[float | Array, ...]
) -> optax.GradientTransformation:
    """The optimizer of `lift_rates` with these step sizes, which may be traced."""
    left = iter(rates)
    return cast(optax.GradientTransformation, _replaced(optimizer, lambda _: next(left)))


def _replaced(value: object, take: Callable[[float], object]) -> object:
    """`value` with the step sizes in closures of Optax exchanged, in order.

    Only `optax.scale`, which every constant learning rate ends in, does nothing but multiply by
    its number; others enter conditions and differences, such as 1 - b2, and stay numbers.
    """
    if isinstance(value, tuple):
        new = [_replaced(v, take) for v in value]
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        make = cast(Callable[..., object], type(value))
        return make(*new) if hasattr(value, "_fields") else tuple(new)
    if not isinstance(value, types.FunctionType) or not value.__module__.startswith("optax."):
        return value
    try:
        held = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # not yet assigned
        return value
    is_scale = value.__code__.co_freevars == ("step_size",) and type(held[0]) is float
    new = [take(held[0])] if is_scale else [_replaced(v, take) for v in held]
    if all(a is b for a, b in zip(new, held, strict=True)):
        return value
    cells = tuple(map(types.CellType, new))
    made = types.FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
    )
    made.__kwdefaults__, made.__qualname__ = value.__kwdefaults__, value.__qualname__
    made.__dict__.update(value.__dict__)
    return made
