"""Every front door has a program for GPU and TPU: lowered here, and compiled where an environment
for that was built.
"""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import ntk_jax
from benchmarks.accelerators import AT_LARGE, LARGE, compiled, markdown
from benchmarks.ahead.devices import FOLDER
from benchmarks.ahead.hlo import read_program
from benchmarks.environments import ROOT, is_ready
from benchmarks.harness import RESULTS
from cases.architectures import lenient
from cases.device_doors import Cnn, doors

DOORS = doors()
PLATFORMS = ("cuda", "rocm", "tpu")
ONE_SUM = ("tanh", "selu")  # over scales or nodes, for k and k_dot: a complex number of both
# Of the compiled programs for an H100, 2,048 rows: launches at most, temporaries [MiB] at most.
MOST = {
    "mlp_kernels relu": (40, 48),
    "mlp_kernels tanh": (60, 160),
    "mlp_kernels gelu": (40, 96),
    "mlp_kernels selu": (60, 288),  # an integral over the angle
    "mlp_kernels gelu_tanh": (72, 192),  # a series
    "mlp_kernels hard_tanh": (320, 640),  # one with kinks, and with what near pairs need
    "mlp_kernels_by_layer": (60, 192),
    "mlp_kernels, value and gradient": (200, 400),
    "kernel_diagonal": (20, 1),
    "infinite_width MLP": (40, 64),
    "infinite_width flat CNN": (60, 64),
    "infinite_width pooled CNN": (60, 384),
    "infinite_width sampled CNN": (100, 128),
    "empirical_ntk MLP": (40, 192),
    "empirical_ntk MLP, x2": (40, 256),
    "empirical_ntk MLP, diagonal": (40, 640),
    "empirical_ntk MLP, full": (40, 128),
    "empirical_ntk flat CNN": (60, 192),
    "empirical_ntk pooled CNN": (60, 128),
    "empirical_nngp": (12, 64),
    "tangent_features": (20, 96),
    "tangent_features, projected": (400, 768),
    "ntk_operator": (40, 96),
    "ntk_operator, 32 vectors": (60, 512),
    "ntk_operator.diagonal": (20, 160),
    "gradient_flow_mse": (12, 96),
    "gradient_descent_mse": (80, 96),
    "kernel_regression": (320, 96),
    "gp_posterior": (20, 64),
    "ensemble_mse": (40, 160),
    "Lanczos quadrature": (500, 64),
    "alignment": (30, 64),
}


@cache
def keeps_one_branch():
    """Whether lowering drops what other platforms would do; older JAX leaves that to XLA."""
    f = lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.tanh)
    text = jax.jit(f).trace(jnp.zeros(2)).lower(lowering_platforms=("cuda",)).as_text()
    return "sine" not in text


@pytest.mark.parametrize("name", DOORS)
def test_every_front_door_has_a_program_for_accelerators(name):
    call, arguments = DOORS[name]
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.jit(lenient(call)).trace(*arguments)
        text = traced.lower(lowering_platforms=PLATFORMS).as_text()
    assert "callback" not in text
    assert "DEFAULT" not in text  # of products: HIGHEST, whatever the default is
    if keeps_one_branch() and not any(part in name for part in ONE_SUM):
        assert "complex<" not in text  # two kernels as one number: for CPUs


def test_an_exported_kernel_has_the_schedule_of_every_platform():
    x = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)
    kernel_fn = lenient(ntk_jax.infinite_width(Cnn("mean", 8)))
    module = export.export(jax.jit(lambda x: kernel_fn(x)), platforms=("cpu", "cuda", "tpu"))(x)
    assert set(module.platforms) == {"cpu", "cuda", "tpu"}
    there = export.export(jax.jit(lambda x: kernel_fn(x)), platforms=("cuda",))(x)
    assert "complex<" in str(module.mlir_module())
    assert "complex<" not in str(there.mlir_module()) or not keeps_one_branch()
    for found, expected in zip(module.call(x), kernel_fn(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def rows():
    """What was compiled for an H100, by front door."""
    if not is_ready(FOLDER):
        pytest.skip("expected .aot, which compiles for GPU and TPU without one; run `make aot`")
    return {row["door"]: row for row in compiled("h100", 2048, list(MOST))}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOST)
def test_programs_for_a_gpu_launch_little(rows, name):
    row, (launches, temporaries) = rows[name], MOST[name]
    assert "error" not in row
    assert row["launches"] <= launches
    assert row["temporary_mib"] <= temporaries
    if name == "mlp_kernels hard_tanh":  # without what near pairs need: 58 and three conditionals
        assert row["launches"] - row["in_branches"] <= 61
    assert row["most_trips"] <= 64 and not row["open_loops"]
    assert not row["collectives"] and not row["callbacks"]
    assert not row["complex"] or any(part in name for part in ONE_SUM)


@pytest.mark.slow
def test_temporaries_of_a_large_relu_kernel_are_at_most_two_of_its_arrays():
    if not is_ready(FOLDER):
        pytest.skip("expected .aot, which compiles for GPU and TPU without one; run `make aot`")
    (row,) = compiled("h100", LARGE, AT_LARGE)
    assert row["temporary_mib"] <= 2 * 4 * LARGE**2 / 2**20


@pytest.mark.slow
def test_a_tpu_compiles_the_same_doors():
    if not is_ready(FOLDER):
        pytest.skip("expected .aot, which compiles for GPU and TPU without one; run `make aot`")
    doors = ["infinite_width flat CNN", "empirical_ntk MLP, full", "gradient_flow_mse"]
    found = list(compiled("v5e", 512, doors))
    assert len(found) == len(doors)
    for row in found:
        assert "error" not in row and not row["open_loops"] and row["most_trips"] <= 64


def test_the_documents_table_is_that_of_the_measurement():
    document = json.loads((RESULTS / "accelerators.json").read_text())
    assert markdown(document["results"]) in (ROOT / "docs" / "accelerators.md").read_text()
    assert not any("error" in row or row["collectives"] for row in document["results"])


PROGRAM = """
HloModule m
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %a = f32[4]{0} fusion(%p), kind=kLoop, calls=%f
  %c = f32[4]{0} custom-call(%a), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[4]) tuple(%a, %c)
}

%test (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]) parameter(0)
  ROOT %l = pred[] fusion(%p), kind=kLoop, calls=%f
}

%few (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4]{0} parameter(0)
}

%more (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} fusion(%p), kind=kInput, calls=%f
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %w = (s32[], f32[4]) while(%x), condition=%test, body=%body, KNOWN
  %k = (f32[4]{0}, c64[2]{0}) conditional(%x), branch_computations={%few, %more}
  ROOT %copy = f32[4]{0} copy(%w)
}
"""


def test_launches_are_counted_with_trips_and_the_larger_branch():
    known = 'backend_config={"known_trip_count":{"n":"7"}}'
    program = read_program(PROGRAM.replace("KNOWN", known))
    # seven times two, the conditional and its larger branch, the copy
    assert program.launches == 7 * 2 + 2 + 1
    assert program.in_branches == 1
    assert program.loops == ((7, 2),) and program.has_complex
    assert program.library_calls == {"__cublas$gemm": 7}
    open_ended = read_program(PROGRAM.replace("KNOWN", "metadata={}"))
    assert open_ended.loops == ((None, 3),) and open_ended.launches == 3 + 2 + 1
