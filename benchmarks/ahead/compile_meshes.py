"""Compiles operators for 8 GPUs and 8 TPU cores that are not here; a line of JSON each, with what
is sent between devices: `python -m benchmarks.ahead.compile_meshes h100|v5e [name ...]`.
"""

import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ntk_jax
from benchmarks.ahead.hlo import COLLECTIVES, read_program
from ntk_jax.devices.mesh import ROWS
from ntk_jax.finite.operator import KernelOperator
from ntk_jax.scale.held import HeldKernel
from ntk_jax.scale.recomputed import RecomputedKernel
from ntk_jax.scale.tile_products import How
from ntk_jax.scale.tile_writes import strips

N, D, B, WIDTH, NUM_OUTPUTS = 8192, 64, 10, 256, 2
RELU = partial(ntk_jax.mlp_kernels, depth=3, activation="relu", W_std=2**0.5, b_std=0.1)


def mesh_of(target: str) -> Mesh:
    """Eight devices of a topology, on one axis."""
    if target == "v5e":
        found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    else:
        config = (Path(__file__).parent / f"{target}.txtpb").read_text()
        options: dict[str, Any] = {"target_config": config, "topology": "8x1x1"}
        found = topologies.get_topology_desc(platform="cuda", **options)
    return Mesh(np.array(found.devices), (ROWS,))


def programs(mesh: Mesh) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Functions of arrays, and shapes of these with their places."""
    shared, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((ROWS,), ()))
    array = lambda where, *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
    x, v, k = array(whole, N, D), array(whole, N, B), array(shared, N, N)
    held = How("ntk", jnp.dtype("float32"), 256, False, mesh)
    recomputed = held._replace(rows=512)
    operator = lambda x: RecomputedKernel(x, None, RELU, recomputed)
    network, params = tangent_operator(mesh)
    params = jax.tree.map(lambda a: array(whole, *a.shape), params)
    outputs = array(whole, N * NUM_OUTPUTS, B)
    return {
        "kernel in memory": (lambda x: strips(RELU, x, None, how=held), (x,)),
        "product, in memory": (lambda k, v: HeldKernel(k, N, True, False, mesh) @ v, (k, v)),
        "product, recomputed": (lambda x, v: operator(x) @ v, (x, v)),
        "diagonal, recomputed": (lambda x: operator(x).diagonal(), (x,)),
        "columns, recomputed": (lambda x: operator(x).columns(jnp.arange(64)), (x,)),
        "product, network": (
            lambda p, x, v: network(p, x) @ v,
            (params, array(shared, N, D), outputs),
        ),
    }


def tangent_operator(mesh: Mesh) -> tuple[Callable[..., KernelOperator], Any]:
    """The operator of a network from parameters and examples, and parameters."""
    model = ntk_jax.MLP((WIDTH, WIDTH), NUM_OUTPUTS)
    x = np.ones((1, D), np.float32)
    apply_fn, params = ntk_jax.from_linen(model, model.init(jax.random.key(0), x))
    dtype = jnp.dtype("float32")
    make = lambda p, x: KernelOperator(p, x, None, apply_fn, NUM_OUTPUTS, dtype, 256, mesh)
    return make, params


def sent(text: str) -> list[tuple[str, int]]:
    """Every collective of a program, and how many numbers it takes and results in, at most."""
    found = []
    kinds = "|".join(COLLECTIVES)
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        sizes = re.findall(r"[a-z]+\d*\[([\d,]*)\]", shapes)
        numbers = sum(math.prod(int(n) for n in size.split(",") if n) for size in sizes)
        found.append((kind, numbers))
    return found


def main(target: str, *names: str) -> None:
    """Compile and print."""
    mesh = mesh_of(target)
    for name, (call, arguments) in programs(mesh).items():
        if not names or name in names:
            compiled = jax.jit(call).trace(*arguments).lower().compile()
            text, memory = compiled.as_text(), compiled.memory_analysis()
            kinds = read_program(text).kinds
            starts = [k for k in read_program(text).of(*COLLECTIVES) if not k.endswith("-done")]
            row = {
                "sent": sent(text),
                "times": sum(kinds[kind] for kind in starts),
                "temporary_mib": memory.temp_size_in_bytes / 2**20,
            }
            print(json.dumps({"target": target, "program": name, **row}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
