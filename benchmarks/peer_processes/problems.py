"""What is computed: plain data that every peer's process reads, and the numbers that all of them
share.
"""

from typing import Any, NamedTuple

import numpy as np

NUM_FEATURES = 784
W_STD, B_STD = 2**0.5, 0.1
JITTED = "jitted"  # a method: whatever is fastest, inside `jax.jit`
LIMITS = {"limit_flatten": "flattened", "limit_pool": "average pools"}


class Problem(NamedTuple):
    """One kernel.

    `kind` is "mlp", "cnn", "resnet18" (empirical, mean over outputs); "analytic" (ReLU, NNGP and
    NTK); or, of infinite width and read from a Flax model here, "limit_flatten", "limit_pool"
    (`depth` 3 x 3 convolutions with ReLU).
    """

    kind: str
    n: int
    width: int = 0
    depth: int = 0
    outputs: int = 1
    image: int = 0

    @property
    def label(self) -> str:
        """For tables."""
        if self.kind == "analytic":
            return f"analytic ReLU, depth {self.depth}"
        if self.kind == "mlp":
            return f"MLP {NUM_FEATURES}-{self.width}x{self.depth}-{self.outputs}"
        if self.kind in LIMITS:
            kind = f"infinite CNN, depth {self.depth}, {LIMITS[self.kind]}"
            return f"{kind}, {self.image}x{self.image}x3"
        name = {"cnn": f"CNN 3x{self.width}", "resnet18": "ResNet-18"}[self.kind]
        return f"{name} on {self.image}x{self.image}x3, O = {self.outputs}"


def examples(problem: Problem) -> np.ndarray:
    """Standard normal float32 inputs."""
    shape = (problem.image, problem.image, 3) if problem.image else (NUM_FEATURES,)
    return np.random.default_rng(0).standard_normal((problem.n, *shape), dtype=np.float32)


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Parameters in float32: biases .1 N, scales 1 + .1 N, weights N sqrt(2 / fan-in)."""
    rng = np.random.default_rng(1)
    out: dict[str, Any] = {}
    for path in sorted(shapes):
        noise = rng.standard_normal(shapes[path], dtype=np.float32)
        if len(noise.shape) > 1:
            out[path] = noise * np.float32((2 / np.prod(noise.shape[:-1])) ** 0.5)
        else:
            out[path] = np.float32(path.endswith("scale")) + np.float32(0.1) * noise
    return out
