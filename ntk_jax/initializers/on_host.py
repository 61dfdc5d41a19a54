"""Operations of initializers on arrays that are known, by NumPy, for which nothing is compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ntk_jax.compat import bind
from ntk_jax.jaxprs import Eqn

ON_HOST: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "and": np.bitwise_and,
    "mul": np.multiply,
    "nextafter": np.nextafter,
    "or": np.bitwise_or,
    "shift_right_logical": np.right_shift,
    "sub": np.subtract,
}


def on_host(eqn: Eqn, arrays: list[np.ndarray]) -> Sequence[ArrayLike]:
    """What an operation makes of arrays of its dtypes: by NumPy, where it has the operation."""
    name, params = eqn.primitive.name, eqn.params
    if name == "bitcast_convert_type" and arrays[0].itemsize == params["new_dtype"].itemsize:
        return [arrays[0].view(params["new_dtype"])]
    if name == "convert_element_type" and arrays[0].dtype.kind != "f":
        return [arrays[0].astype(params["new_dtype"])]
    if name in ON_HOST:
        return [np.asarray(ON_HOST[name](*arrays))]
    return bind(eqn, list(map(jnp.asarray, arrays)))
