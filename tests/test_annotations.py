"""Annotated shapes and types are checked wherever the tests call the library."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from annotations import checked
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Array, Float

import ntk_jax


def product(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return a @ b


def gram(a: Float[Array, "n k"]) -> Float[Array, "n n"]:
    return a.T @ a


@dataclasses.dataclass
class Pair:
    left: Float[Array, "n k"]
    right: Float[Array, "n k"]
    name: str = ""


def test_a_dimension_has_one_meaning_in_a_call():
    a = jnp.ones((2, 3))
    assert checked(product)(a, a.T).shape == (2, 2)
    assert checked(gram)(jnp.ones((3, 3))).shape == (3, 3)
    for call in (lambda: checked(product)(a, jnp.ones((2, 2))), lambda: checked(gram)(a)):
        with pytest.raises(BeartypeCallHintViolation, match="Float"):
            call()


def test_functions_inside_of_others_and_dataclasses_are_checked():
    def inner(a: Float[Array, " n"], b: Float[Array, " n"]) -> None:
        del a, b

    with pytest.raises(BeartypeCallHintViolation):
        checked(inner)(jnp.ones(2), jnp.ones(3))
    pair = checked(Pair)
    assert pair(jnp.ones((2, 3)), jnp.ones((2, 3))).name == ""
    for wrong in ((jnp.ones((2, 3)), jnp.ones((2, 4))), (jnp.ones((2, 3)), jnp.ones((2, 3)), 1)):
        with pytest.raises(BeartypeCallHintViolation):
            pair(*wrong)


def test_the_library_is_checked():
    with pytest.raises(BeartypeCallHintViolation, match="Float"):
        ntk_jax.diagonalize(np.ones(3))


def test_what_users_have_is_not_checked(unchecked_shapes):
    with pytest.raises(ValueError, match="k_train_train"):
        ntk_jax.diagonalize(np.ones(3))
