"""Values that a device must give: computed on a CPU in float64, stored, compared.

`python -m benchmarks.on_device.parity` computes them anew.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import ntk_jax
from cases.architectures import lenient
from cases.device_doors import SCALES, Cnn
from ntk_jax.compat import double_precision

STORED = Path(__file__).parent / "parity.npz"
N, N_TEST, NUM_FEATURES, NUM_OUTPUTS = 16, 5, 12, 2
# Of float32 values, in units of the largest entry: rounding of inputs' products, several layers on.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
# Solutions with a kernel lose its condition number.
SOLVED = ("flow", "descent", "regression", "posterior", "ensemble")
SOLVED_TOLERANCES = {"float32": 1e-4, "float64": 1e-8}

Values = dict[str, Array]
Row = dict[str, Any]


def draw(seed: int, *shape: int) -> np.ndarray:
    """Normal numbers that float32 holds."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def near_rows() -> np.ndarray:
    """Pairs of rows at angles from 1e-1 to 1e-7, then equal, opposite and parallel ones."""
    x, u = draw(3, 1, NUM_FEATURES), draw(4, 1, NUM_FEATURES)
    steps = np.float32(10.0) ** -np.arange(1, 8, dtype=np.float32)[:, None]
    return np.concatenate([x, x + steps * u, x, -x, 2 * x]).astype(np.float32)


def cases() -> dict[str, Callable[[Any], Values]]:
    """What is compared: a function of the dtype each."""
    found = {f"mlp_kernels {name}": _mlp(name) for name in ("relu", "erf", "gelu", "tanh", "abs")}
    return found | {
        "mlp_kernels relu, depth 20": _mlp("relu", 20),
        "mlp_kernels relu, near pairs": _mlp("relu", rows=near_rows()),
        "mlp_kernels gelu, near pairs": _mlp("gelu", rows=near_rows()),
        "mlp_kernels_by_layer": _by_layer,
        "gradients": _gradients,
        **{f"infinite_width {end} CNN": _limit(Cnn(end, 8)) for end in ("flat", "mean")},
        "infinite_width MLP": _limit(ntk_jax.MLP((8, 8), 1, "relu", 1.4, 0.1)),
        "empirical MLP": _finite(ntk_jax.MLP((24, 24), NUM_OUTPUTS), draw(0, N, NUM_FEATURES)),
        "empirical CNN": _finite(Cnn("mean", 8), draw(0, 6, 8, 8, 3)),
        "flow": _flow,
        "descent": _descent,
        "regression": _regression,
        "posterior": _posterior,
        "ensemble": _ensemble,
    }


def _mlp(activation: str, depth: int = 3, rows: np.ndarray | None = None) -> Callable[..., Values]:
    def values(dtype: Any) -> Values:
        x = jnp.asarray(draw(0, N, NUM_FEATURES) if rows is None else rows, dtype)
        options: dict[str, Any] = {"depth": depth, "activation": activation, **SCALES}
        own = ntk_jax.mlp_kernels(x, **options)
        other = ntk_jax.mlp_kernels(x[:N_TEST], x, **options)
        diagonal = ntk_jax.kernel_diagonal(x, **options)
        return {
            **own._asdict(),
            **{f"{k}, x2": v for k, v in other._asdict().items()},
            **{f"{k}, diagonal": v for k, v in diagonal._asdict().items()},
        }

    return values


def _by_layer(dtype: Any) -> Values:
    x = jnp.asarray(draw(0, N, NUM_FEATURES), dtype)
    return ntk_jax.mlp_kernels_by_layer(x, depth=3, **SCALES)._asdict()


def _gradients(dtype: Any) -> Values:
    """Of a weighted sum of the kernel, with respect to examples and scales."""
    x, weights = jnp.asarray(draw(0, N, NUM_FEATURES), dtype), jnp.asarray(draw(1, N, N), dtype)

    def total(x: Array, scales: dict[str, Any], activation: str) -> Array:
        k = ntk_jax.mlp_kernels(x, depth=3, activation=activation, **scales)
        return jnp.sum(weights * (k.ntk + k.nngp))

    def of(activation: str) -> Values:
        scales = {name: jnp.asarray(value, dtype) for name, value in SCALES.items()}
        by_x, by_scales = jax.grad(total, (0, 1))(x, scales, activation)
        return {f"{activation}, x": by_x, **{f"{activation}, {k}": v for k, v in by_scales.items()}}

    return of("relu") | of("gelu")


def _limit(model: Any) -> Callable[..., Values]:
    def values(dtype: Any) -> Values:
        images = isinstance(model, Cnn)
        x = jnp.asarray(draw(0, 6, 8, 8, 3) if images else draw(0, N, NUM_FEATURES), dtype)
        return lenient(ntk_jax.infinite_width(model))(x)._asdict()

    return values


def _finite(model: Any, rows: np.ndarray) -> Callable[..., Values]:
    def values(dtype: Any) -> Values:
        x = jnp.asarray(rows, dtype)
        shapes = jax.eval_shape(lambda: lenient(model.init)(jax.random.key(0), x))
        leaves, structure = jax.tree.flatten(shapes)
        drawn = [jnp.asarray(0.3 * draw(i, *a.shape), dtype) for i, a in enumerate(leaves)]
        apply_fn, params = ntk_jax.from_linen(model, jax.tree.unflatten(structure, drawn))
        kernel = lambda **o: lenient(ntk_jax.empirical_ntk)(apply_fn, params, x, **o)
        op = lenient(ntk_jax.ntk_operator)(apply_fn, params, x)
        v = jnp.asarray(draw(7, len(rows), op.num_outputs), dtype)
        return {
            **{outputs: kernel(outputs=outputs) for outputs in ("mean", "diagonal", "full")},
            "jacobian": kernel(method="jacobian"),
            "vector_products": kernel(method="vector_products"),
            "operator": lenient(op.__matmul__)(v),
            "operator, diagonal": lenient(op.diagonal)(),
        }

    return values


def _training(dtype: Any) -> tuple[Array, Array, Array, Array]:
    """Kernels of training rows, test with training rows, test rows; targets."""
    rows = draw(0, N + N_TEST, NUM_FEATURES)
    k = ntk_jax.mlp_kernels(jnp.asarray(rows, dtype), depth=2, **SCALES).ntk
    y = jnp.asarray(draw(5, N, NUM_OUTPUTS), dtype)
    return k[:N, :N], k[N:, :N], k[N:, N:], y


def _flow(dtype: Any) -> Values:
    k, k_test, _, y = _training(dtype)
    times = [0.0, 0.5, 20.0, np.inf]
    modes = ntk_jax.diagonalize(k)
    return ntk_jax.gradient_flow_mse(modes, y, times, k_test_train=k_test)._asdict()


def _descent(dtype: Any) -> Values:
    k, k_test, _, y = _training(dtype)
    modes = ntk_jax.diagonalize(k)
    options: dict[str, Any] = {"momentum": 0.9, "k_test_train": k_test}
    return ntk_jax.gradient_descent_mse(modes, y, 200, 0.5, **options)._asdict()


def _regression(dtype: Any) -> Values:
    k, k_test, _, y = _training(dtype)
    fit = ntk_jax.kernel_regression(k, y, k_test, diag_reg=0.1)
    return {"train": fit.train, "test": fit.test}


def _posterior(dtype: Any) -> Values:
    k, k_test, k_tests, y = _training(dtype)
    found = ntk_jax.gp_posterior(k, y, k_test, k_tests, noise=0.1)
    return {"mean": found.mean, "covariance": found.covariance}


def _ensemble(dtype: Any) -> Values:
    rows = jnp.asarray(draw(0, N + N_TEST, NUM_FEATURES), dtype)
    both = ntk_jax.mlp_kernels(rows, depth=2, **SCALES)
    cut = lambda a, b: ntk_jax.Kernels(both.nngp[a, b], both.ntk[a, b])
    train, test = slice(N), slice(N, None)
    _, _, _, y = _training(dtype)
    parts = cut(train, train), cut(test, train), cut(test, test)
    return ntk_jax.ensemble_mse(*parts, y, [1.0, 30.0])._asdict()


def compare(dtype: str) -> Iterator[Row]:
    """The largest difference from the stored values, case by case, in units of the largest."""
    stored = np.load(STORED)
    for name, values in cases().items():
        try:
            found = values(jnp.dtype(dtype))
        except Exception as error:  # the other cases are worth comparing
            message = f"{type(error).__name__}: {error}"[:200]
            yield {"case": name, "dtype": dtype, "passed": False, "error": message}
            continue
        worst, where = 0.0, ""
        for part, value in found.items():
            truth = stored[f"{name}/{part}"]
            gap = np.max(np.abs(np.asarray(value, np.float64) - truth)) / np.max(np.abs(truth))
            if not gap <= worst:  # NaN counts
                worst, where = float(gap), part
        solved = any(word in name for word in SOLVED)
        tolerance = (SOLVED_TOLERANCES if solved else TOLERANCES)[dtype]
        passed = worst <= tolerance
        yield {
            "case": name, "dtype": dtype, "difference": worst if np.isfinite(worst) else None,
            "worst": where, "tolerance": tolerance, "passed": passed,
        }  # fmt: skip


def symmetry_and_definiteness(n: int) -> Iterator[Row]:
    """Kernels of n rows are symmetric to the bit, and positive semi-definite up to rounding."""
    x = draw(11, n, 64)
    for activation in ("relu", "gelu"):
        kernels = ntk_jax.mlp_kernels(x, depth=3, activation=activation, **SCALES)
        for part, k in kernels._asdict().items():
            values = np.asarray(k, np.float64)
            smallest, largest = np.linalg.eigvalsh(values)[[0, -1]]
            in_eps = -smallest / (n * np.finfo(np.float32).eps * largest)
            symmetric = bool(np.array_equal(values, values.T))
            yield {
                "case": f"{activation} {part}, n = {n}", "dtype": "float32",
                "symmetric": symmetric, "below_zero_in_n_eps": float(max(in_eps, 0.0)),
                "passed": symmetric and bool(in_eps < 1),
            }  # fmt: skip


def store() -> None:
    """Compute all values in float64 on this machine's CPU."""
    with double_precision(), jax.default_device(jax.devices("cpu")[0]):
        found = {
            f"{name}/{part}": np.asarray(value)
            for name, values in cases().items()
            for part, value in values(jnp.dtype("float64")).items()
        }
    np.savez_compressed(STORED, **found)  # type: ignore[arg-type]  # names are none of its options
    print(STORED, STORED.stat().st_size, "bytes")


if __name__ == "__main__":
    store()
