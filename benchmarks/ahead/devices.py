"""Devices that are not here: XLA compiles for them from their description alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.environments import ROOT, environment

FOLDER = ROOT / ".aot"
REQUIREMENTS = (
    "jax==0.10.2",
    "jaxlib==0.10.2",
    "flax==0.12.8",
    "optax",
    "jaxtyping",
    "lazy-loader",
    "libtpu==0.0.42.*",
    "jax-cuda12-plugin==0.10.2",
    "jax-cuda12-pjrt==0.10.2",
)
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    # Products that were not tuned on a device would be kernels of Triton's, instead of a library's.
    "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
}
TARGETS = {"h100": "cuda", "v5e": "tpu"}


def device(target: str) -> Any:
    """One device of a topology."""
    if target == "v5e":
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    else:
        config = (Path(__file__).parent / f"{target}.txtpb").read_text()
        options: dict[str, Any] = {"target_config": config, "topology": "1x1x1"}
        found = topologies.get_topology_desc(platform="cuda", **options)
    return found.devices[0]


def compile_for(where: Any, call: Callable[..., Any], arguments: Any) -> Any:
    """`call` for arguments of these shapes, compiled for a device."""
    sharding = SingleDeviceSharding(where)
    placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
    return jax.jit(call).trace(*jax.tree.map(placed, arguments)).lower().compile()


if __name__ == "__main__":
    environment(FOLDER, REQUIREMENTS)
