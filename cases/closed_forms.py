"""Infinite-width kernels written from the papers' formulas, in NumPy: the truth for the interpreter
at 1e-10.

A layer's state is a pair of symmetric matrices over all (example, position) pairs at once: S, the
covariance of one channel of the values there, and T, their tangent kernel. Examples vary slowest. A
weight is given by `strength`, its variance times the squared multiplier in the forward pass times
its fan-in per position, and by `rate`, the squared multiplier times that fan-in: the standard
parameterization has rate = fan_in, the "ntk" one rate = strength.

References: Jacot et al. 2018 (theorem 1), Lee et al. 2019 (appendix G) for dense layers; Arora et
al. 2019 (section 4, appendix C) and Novak et al. 2019 (section 2.2) for convolution, flattening and
global average pooling; Cho and Saul 2009 for the dual of ReLU, Williams 1996 for that of erf.
"""

from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    """Covariance and tangent kernel over (example, position) pairs, and the mean of a channel."""

    S: np.ndarray
    T: np.ndarray
    mean: np.ndarray


def inputs(x):
    """The state of an array (n, *positions, channels): S = x.x'/channels, nothing to train yet."""
    flat = np.asarray(x, float).reshape(-1, x.shape[-1])
    S = flat @ flat.T / x.shape[-1]
    return State(S, np.zeros_like(S), np.zeros(len(S)))


def dense(state, strength, rate, bias_variance=0.0, bias_rate=0.0):
    """The same weights at every position: S' = strength S + b², T' = rate S + strength T + b's
    rate.
    """
    S, T, _ = state
    return State(
        strength * S + bias_variance, rate * S + strength * T + bias_rate, np.zeros(len(S))
    )


def relu(state):
    """E[phi phi] and E[phi' phi'] T, arc-cosine kernels of order 1 and 0 (Cho, Saul 2009)."""
    S, T, _ = state
    s = np.sqrt(np.diag(S))
    scale = np.outer(s, s)
    rho = np.clip(S / scale, -1, 1)
    np.fill_diagonal(rho, 1)  # arccos is steep there
    theta = np.arccos(rho)
    K = scale * (np.sqrt(1 - rho**2) + rho * (np.pi - theta)) / (2 * np.pi)
    return State(K, T * (np.pi - theta) / (2 * np.pi), s / np.sqrt(2 * np.pi))


def erf(state):
    """2/pi asin(2 S / sqrt((1 + 2q)(1 + 2q'))) and its derivative (Williams 1996)."""
    S, T, _ = state
    q = 1 + 2 * np.diag(S)
    scale = np.outer(q, q)
    dot = 4 / np.pi / np.sqrt(scale - 4 * S**2)
    return State(2 / np.pi * np.arcsin(2 * S / np.sqrt(scale)), T * dot, np.zeros(len(S)))


def add(a, b):
    """The sum of two independent branches, or of a skip connection and a branch."""
    return State(a.S + b.S, a.T + b.T, a.mean + b.mean)


def scale(state, c):
    """Values times c, a number or one per row."""
    c = np.broadcast_to(np.asarray(c, float), len(state.S))
    return State(np.outer(c, c) * state.S, np.outer(c, c) * state.T, c * state.mean)


def layer_norm(state, epsilon, scale_rate=1.0, bias_rate=1.0):
    """Channels standardized at each position: their mean and variance are numbers; scale 1 and bias
    0 are trained.

    The tangent of the scale of a unit is the unit's own value u, so before a nonlinearity its
    kernel is E[u phi' v phi'], not E[uv] E[phi' phi']: use scale_rate=0 there, and add it after,
    see `relu_of_layer_norm`.
    """
    S, T, mean = state
    S = S - np.outer(mean, mean)
    s = 1 / np.sqrt(np.diag(S) + epsilon)
    S = np.outer(s, s) * S
    return State(S, np.outer(s, s) * T + scale_rate * S + bias_rate, np.zeros(len(S)))


def relu_of_layer_norm(state, epsilon):
    """With u phi'(u) = phi(u), the scale's kernel is E[phi phi]."""
    state = relu(layer_norm(state, epsilon, scale_rate=0.0))
    return State(state.S, state.T + state.S, state.mean)


def patches(state, matrices):
    """The mean over window offsets of the shifted states, M S M'; M maps input to output
    positions.
    """
    S, T, _ = state
    average = lambda K: sum(M @ K @ M.T for M in matrices) / len(matrices)
    return State(average(S), average(T), np.zeros(len(average(S))))


def linear(state, M):
    """A fixed linear map over (example, position) pairs, such as an average over positions."""
    return State(M @ state.S @ M.T, M @ state.T @ M.T, M @ state.mean)


def shifts(n, sizes, window, padding):
    """The matrices of a convolution with odd windows and stride 1: padding is "SAME" (zeros) or
    "CIRCULAR".
    """
    matrices: list[np.ndarray] = [np.eye(1)]
    for size, width in zip(sizes, window, strict=True):
        axis = []
        for offset in range(-(width // 2), width // 2 + 1):
            M = np.eye(size, k=offset)
            axis.append(M if padding == "SAME" else np.roll(np.eye(size), offset, axis=1))
        matrices = [np.kron(M, A) for M in matrices for A in axis]
    return [np.kron(np.eye(n), M) for M in matrices]


def average_positions(n, num_positions):
    """The matrix of global average pooling."""
    return np.kron(np.eye(n), np.full((1, num_positions), 1 / num_positions))


def flatten(state, n):
    """Positions as channels: the mean over p of the blocks at equal positions; a readout's fan-in
    counts positions.
    """
    P = len(state.S) // n
    mean = lambda K: np.einsum("ipjp->ij", K.reshape(n, P, n, P)) / P
    return State(mean(state.S), mean(state.T), np.zeros(n))


def attention(state, n, strength_qk, tied=True):
    """Softmax attention with tied queries and keys and scores / width: weights softmax(strength_qk
    S), numbers.
    """
    P = len(state.S) // n
    blocks = np.stack([state.S[i * P : (i + 1) * P, i * P : (i + 1) * P] for i in range(n)])
    scores = strength_qk * blocks if tied else 0 * blocks
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    A = np.zeros((n * P, n * P))
    for i in range(n):
        A[i * P : (i + 1) * P, i * P : (i + 1) * P] = weights[i]
    return linear(state, A)
