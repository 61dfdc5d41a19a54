"""Sums of second moments over the taps of convolutions: by a matrix, in one pass and in a loop they
are what one sees when one counts taps.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ntk_jax.infinite.flax.moments import contractions
from ntk_jax.infinite.flax.moments.contractions import Window

# taps, stride, padding, spacing of the input, spacing of the taps
WINDOWS = {
    "valid": (3, 1, (0, 0), 1, 1),
    "same": (3, 1, (1, 1), 1, 1),
    "strided": (2, 2, (0, 1), 1, 1),
    "dilated": (2, 1, (1, 0), 1, 3),
    "transposed": (3, 1, (2, 2), 2, 1),
    "cropped": (3, 1, (-1, 1), 1, 1),
    "everything": (2, 3, (3, 2), 3, 2),
    "one tap": (1, 2, (1, 0), 1, 1),
}
SIZE = 7


def window_of(taps, stride, padding, spacing, tap_spacing):
    filled = (SIZE - 1) * spacing + 1 + sum(padding)
    length = (filled - (taps - 1) * tap_spacing - 1) // stride + 1
    return Window(taps, stride, padding, spacing, tap_spacing, length)


def counted(k, axes, window):
    """Tap by tap and output by output."""
    out = np.zeros([window.length if a in axes else n for a, n in enumerate(k.shape)])
    for outputs in np.ndindex(*[window.length] * len(axes)):
        for tap in range(window.taps):
            places = [window.stride * p + window.tap_spacing * tap for p in outputs]
            inputs = [np.divmod(place - window.padding[0], window.spacing) for place in places]
            if all(rest == 0 and 0 <= at < SIZE for at, rest in inputs):
                here, there = [slice(None)] * k.ndim, [slice(None)] * k.ndim
                for axis, p, (at, _) in zip(axes, outputs, inputs, strict=True):
                    here[axis], there[axis] = p, at
                out[tuple(here)] += k[tuple(there)]
    return out


@pytest.mark.parametrize("axes", [(1,), (1, 3)], ids=["an axis", "of pairs"])
@pytest.mark.parametrize("name", WINDOWS)
def test_all_ways_count_the_taps(name, axes, monkeypatch):
    window = window_of(*WINDOWS[name])
    shape = (2, SIZE, 2, SIZE) if len(axes) == 2 else (2, SIZE, 3)
    k, weights = (np.random.default_rng(i).standard_normal(shape) for i in range(2))
    expected = counted(k, axes, window)
    ways = [
        contractions._by_a_matrix,
        contractions._by_slices,
        partial(contractions._by_slices, looped=True),
        contractions._window_sum,
    ]
    for way in ways:
        found, moved = jax.jvp(partial(way, axes=axes, window=window), (k,), (weights,))
        assert_allclose(found, expected, atol=1e-13)
        assert_allclose(moved, counted(weights, axes, window), atol=1e-13)
    monkeypatch.setattr(contractions, "BANDED", 0)
    looped = contractions._window_sum(jnp.asarray(k), axes, window)
    assert_allclose(looped, expected, atol=1e-13)
