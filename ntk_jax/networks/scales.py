"""The standard deviations of weights and biases: one for all layers, or one for each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array

from ntk_jax.checks import check_number, check_option
from ntk_jax.compat import is_concrete

PARAMETERIZATIONS = ("ntk", "standard")


def per_layer(name: str, value: Any, num_layers: int) -> tuple[Any, ...]:
    """`value` for each of the `num_layers` Dense layers: a scalar (or None) is repeated, a vector
    must fit.
    """
    values = scales_of_layers(value)
    if not isinstance(values, tuple):
        return (values,) * num_layers
    if len(values) != num_layers:
        raise ValueError(
            f"{name}: expected a number or one per Dense layer ({num_layers}: hidden layers, then "
            "readout); "
            f"got {len(values)}."
        )
    return values


def scales_of_layers(value: Any) -> Any:
    """A vector of scales as a tuple, an array of one as it is: Python numbers where the values are
    known.
    """
    if isinstance(value, Array | np.ndarray):
        value = (
            np.asarray(value).tolist()
            if is_concrete(value)
            else tuple(value)
            if value.ndim
            else value
        )
    return tuple(value) if isinstance(value, Sequence) else value


def check_scales(W_std: Any, b_std: Any, parameterization: str) -> None:
    """Raise unless the standard deviations of one layer are numbers in range and the
    parameterization is known.
    """
    check_option("parameterization", parameterization, PARAMETERIZATIONS)
    check_number("W_std", W_std, strict=True, max_ndim=0)
    if b_std is not None:
        check_number("b_std", b_std, max_ndim=0)
