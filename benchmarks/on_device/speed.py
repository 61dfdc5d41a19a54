"""Times on a device, in units of what it can do: its products, its bandwidth, a peer's marks."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import ntk_jax
from benchmarks.peer_processes.networks import network, shapes_of
from benchmarks.peer_processes.problems import Problem, draw
from cases.device_doors import SCALES, Cnn

Row = dict[str, Any]
NUM_FEATURES = 784


class Sizes(NamedTuple):
    """How large the cases are."""

    rows: int
    product: int
    empirical_rows: int
    width: int
    images: int
    peer_image: int
    peer_outputs: int
    many: int | None
    repeats: int


FULL = Sizes(8192, 8192, 8192, 2048, 64, 224, 1000, 50_000, 7)
SMALL = Sizes(256, 256, 128, 64, 4, 32, 4, None, 2)


class Measured(NamedTuple):
    """Seconds of the first call, which compiles, and of a later one."""

    first: float
    later: float


def measure(call: Callable[[], Any], repeats: int) -> Measured:
    """Each call until its result is there."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return Measured(seconds[0], median(seconds[1:]))


class Limits(NamedTuple):
    """Operations per second of a large product at full float32 precision, bytes per second."""

    product: float
    bandwidth: float


def limits(sizes: Sizes) -> tuple[Limits, list[Row]]:
    """What the device can do, and the rows that say so."""
    m = sizes.product
    a = jnp.asarray(np.random.default_rng(0).standard_normal((m, m)), jnp.float32)
    rates, rows = {}, []
    for precision in ("highest", "high", "default"):
        multiply = jax.jit(partial(jnp.matmul, precision=precision))
        found = measure(partial(multiply, a, a), sizes.repeats)
        rates[precision] = 2 * m**3 / found.later
        rows.append(_row(f"product {m}³, {precision}", found, tflops=rates[precision] / 1e12))
    add = jax.jit(lambda a: a + 1)
    found = measure(lambda: add(a), sizes.repeats)
    bandwidth = 2 * a.nbytes / found.later
    rows.append(_row(f"read and write {a.nbytes >> 20} MiB", found, gb_per_s=bandwidth / 1e9))
    return Limits(rates["highest"], bandwidth), rows


def analytic(sizes: Sizes, can: Limits) -> Iterator[Row]:
    """Kernels without networks, in units of their product and one write of the results."""
    n = sizes.rows
    x = jnp.asarray(np.random.default_rng(1).standard_normal((n, NUM_FEATURES)), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x.T, precision="highest"))
    own = measure(lambda: product(x), sizes.repeats)
    yield _row(f"X Xᵀ, n = {n}", own, tflops=2e-12 * n * n * NUM_FEATURES / own.later)
    limit = own.later + 2 * 4 * n * n / can.bandwidth
    for activation, depth in [("relu", 1), ("relu", 3), ("relu", 10), ("gelu", 3), ("tanh", 3)]:
        options: dict[str, Any] = {"depth": depth, "activation": activation, **SCALES}
        found = measure(partial(ntk_jax.mlp_kernels, x, **options), sizes.repeats)
        yield _row(f"mlp_kernels {activation}, depth {depth}, n = {n}", found, limit=limit)
    half = x[: n // 2]
    by_layer = lambda: ntk_jax.mlp_kernels_by_layer(half, depth=3, **SCALES)
    yield _row(f"mlp_kernels_by_layer, n = {n // 2}", measure(by_layer, sizes.repeats))
    total = lambda x: jnp.sum(ntk_jax.mlp_kernels(x, depth=3, **SCALES).ntk)
    gradient = jax.jit(jax.value_and_grad(total))
    found = measure(lambda: gradient(half), sizes.repeats)
    yield _row(f"mlp_kernels, value and gradient, n = {n // 2}", found)


def limiting_networks(sizes: Sizes) -> Iterator[Row]:
    """Convolutional networks of infinite width."""
    shape = (sizes.images, 8, 8, 3)
    images = jnp.asarray(np.random.default_rng(2).standard_normal(shape), jnp.float32)
    for end in ("flat", "mean"):
        found = measure(partial(ntk_jax.infinite_width(Cnn(end)), images), sizes.repeats)
        yield _row(f"infinite_width {end} CNN, {sizes.images} images of 8 x 8", found)


def empirical(sizes: Sizes, can: Limits) -> Iterator[Row]:
    """Kernels of networks, in units of a large product of as many operations."""
    n = sizes.empirical_rows
    apply_fn, params, x = _mlp(n, NUM_FEATURES, sizes.width, 2)
    explained = ntk_jax.explain_ntk(apply_fn, params, x, x)
    # An accelerator multiplies all pairs, and copies the upper half.
    operations = explained.operations[explained.method]
    found = measure(lambda: ntk_jax.empirical_ntk(apply_fn, params, x), sizes.repeats)
    yield _row(
        f"empirical_ntk MLP 2 x {sizes.width}, n = {n}", found, limit=operations / can.product
    )
    op = ntk_jax.ntk_operator(apply_fn, params, x)
    v = jnp.ones((n, 10), jnp.float32)
    yield _row(f"operator @ v, n = {n}", measure(lambda: op @ v, sizes.repeats))


def dynamics(sizes: Sizes) -> Iterator[Row]:
    """Training in closed form."""
    n = sizes.rows // 2
    x = jnp.asarray(np.random.default_rng(3).standard_normal((n, NUM_FEATURES)), jnp.float32)
    k, y = ntk_jax.mlp_kernels(x, depth=2, **SCALES).ntk, jnp.ones((n, 10), jnp.float32)
    modes = ntk_jax.diagonalize(k)
    times = np.geomspace(1, 1e4, 50).astype(np.float32)
    cases: dict[str, Callable[[], Any]] = {
        "diagonalize": lambda: ntk_jax.diagonalize(k),
        "gradient_flow_mse, 50 times": lambda: ntk_jax.gradient_flow_mse(modes, y, times),
        "kernel_regression": lambda: ntk_jax.kernel_regression(k, y, k[:64], diag_reg=0.1),
    }
    for name, call in cases.items():
        yield _row(f"{name}, n = {n}", measure(call, min(sizes.repeats, 3)))


# Published times of neural-tangents on other devices (Novak, Sohl-Dickstein, Schoenholz 2022).
def peers_mlps(sizes: Sizes) -> Iterator[Row]:
    """Networks for which a peer's times are published."""
    for depth in (3, 8):
        apply_fn, params, x = _mlp(16, 3072, sizes.width, depth)
        call = partial(ntk_jax.empirical_ntk, apply_fn, params, x, outputs="full")
        mark = "3.46 ms, by default 243 ms, on a T4"
        name = f"MLP 3072-{sizes.width}x{depth}, n = 16, full"
        yield _row(name, measure(call, sizes.repeats), published=mark)


def peers_resnet(sizes: Sizes) -> Iterator[Row]:
    """A large one; compiled for a minute."""
    size, outputs = sizes.peer_image, sizes.peer_outputs
    problem = Problem("resnet18", 1, outputs=outputs, image=size)
    apply_fn, params, x = network(problem, draw(shapes_of(problem)))
    call = partial(ntk_jax.empirical_ntk, apply_fn, params, x, outputs="full")
    name = f"ResNet-18 {size} x {size}, O = {outputs}, n = 1, full"
    yield _row(name, measure(call, min(sizes.repeats, 3)), published="985 ms on a V100")


def many_rows(sizes: Sizes) -> Iterator[Row]:
    """One call for as many rows as fill a device of 80 GB."""
    if sizes.many is None:
        return
    x = jnp.asarray(np.random.default_rng(4).standard_normal((sizes.many, 64)), jnp.float32)
    found = measure(lambda: ntk_jax.mlp_kernels(x, depth=3, **SCALES), 1)
    yield _row(f"mlp_kernels relu, depth 3, n = {sizes.many}", found)


def _mlp(n: int, features: int, width: int, depth: int) -> tuple[Any, Any, Array]:
    """A network of 10 outputs, its parameters, examples."""
    rng, model = np.random.default_rng(0), ntk_jax.MLP((width,) * depth, 10, "relu", **SCALES)
    x = jnp.asarray(rng.standard_normal((n, features)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    drawn = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), shapes)
    return *ntk_jax.from_linen(model, drawn), x


def _row(case: str, found: Measured, *, limit: float | None = None, **more: Any) -> Row:
    """`limit`: seconds that the device cannot do it in less than."""
    share = {} if limit is None else {"limit_s": limit, "share_of_limit": limit / found.later}
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    memory = {} if peak is None else {"peak_gib_so_far": peak / 2**30}
    return (
        {"case": case, "seconds": found.later, "first_call_s": found.first} | share | memory | more
    )
