"""Annotated shapes are checked at run time: with `checked`, jaxtyping's import hook decorates every
function and dataclass of the library.
"""

import dataclasses
import functools
from typing import get_args

import beartype
import jaxtyping
from jaxtyping import jaxtyped

BEARTYPE = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def has_shapes(hint):
    """Whether one of jaxtyping's annotations is part of this one."""
    is_shape = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_shape or any(map(has_shapes, get_args(hint)))


def checked(annotated):
    """A function whose arguments and result are what its annotations say, with one meaning of each
    dimension; or a dataclass, whose fields are. Functions inside of others, which are made at each
    call, are checked for shapes alone: mypy reads their types. What jaxtyped makes of a function
    would bind its signature at each call, a quarter of the time of tests that trace.
    """
    if isinstance(annotated, type):
        if dataclasses.is_dataclass(annotated):
            annotated.__init__ = checked(annotated.__init__)
        return annotated
    hints = dict(annotated.__annotations__)
    shaped = any(map(has_shapes, hints.values()))
    if not shaped and "<locals>" in annotated.__qualname__:
        return annotated
    inside = None

    @functools.wraps(annotated)
    def outside(*args, **kwargs):
        nonlocal inside
        if jaxtyping.config.jaxtyping_disable:
            return annotated(*args, **kwargs)
        if inside is None:
            inside = BEARTYPE(annotated)
            annotated.__annotations__ = hints  # beartype replaces those that are strings
        if not shaped:
            return inside(*args, **kwargs)
        with jaxtyped("context"):
            return inside(*args, **kwargs)

    return outside
