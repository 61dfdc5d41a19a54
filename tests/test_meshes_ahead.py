"""What eight GPUs and eight TPU cores send to each other, in programs compiled for them here."""

import pytest

from benchmarks.accelerators import compiled_on_meshes
from benchmarks.ahead.compile_meshes import NUM_OUTPUTS, WIDTH, B, D, N, sent
from benchmarks.ahead.devices import FOLDER
from benchmarks.environments import is_ready

DEVICES, CHOSEN = 8, 64
PARAMETERS = (D + 1) * WIDTH + (WIDTH + 1) * WIDTH + (WIDTH + 1) * NUM_OUTPUTS
# The cost model: each once, and how many numbers.
MODEL = {
    "kernel in memory": [],
    "product, in memory": [("all-gather", N * B)],
    "product, recomputed": [("all-reduce", N * B)],
    "diagonal, recomputed": [("all-reduce", N)],
    "columns, recomputed": [("all-reduce", CHOSEN)],
    "product, network": [("all-reduce", PARAMETERS * B), ("all-gather", N * NUM_OUTPUTS * B)],
}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_devices_send_what_the_cost_model_says_and_never_the_kernel(target):
    if not is_ready(FOLDER):
        pytest.skip("expected .aot, which compiles for GPU and TPU without one; run `make aot`")
    rows = {row["program"]: row for row in compiled_on_meshes(target)}
    assert rows.keys() == MODEL.keys()
    for name, expected in MODEL.items():
        found = rows[name]["sent"]
        assert [kind for kind, _ in found] == [kind for kind, _ in expected], name
        assert rows[name]["times"] == len(expected), name  # not once per tile
        for (_, numbers), (_, size) in zip(found, expected, strict=True):
            # One that is waited for later lists what goes in beside what comes out.
            assert size <= numbers <= size * (1 + 1 / DEVICES) + 2, name
        # A kernel, or what a device has of one in float64, would not fit in here.
        assert rows[name]["temporary_mib"] < N * N * 4 / 2**20 / 4, name


def test_what_is_sent_is_read_from_a_program():
    text = """
  %a = f32[8,10]{1,0} all-reduce(%x), replica_groups={{0,1}}
  %b = (f32[4]{0}, f32[8]{0}) all-gather-start(%y), dimensions={0}
  %c = f32[8]{0} all-gather-done(%b)
  ROOT %d = f32[] fusion(%c), calls=%all-reduce.1
"""
    assert sent(text) == [("all-reduce", 80), ("all-gather", 12)]
