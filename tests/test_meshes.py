"""Kernels and operators on one device, eight devices of one process, and three processes."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from on_meshes import BLOCK, PRIME, N, cubic, examples, operator, system

import ntk_jax

SCRIPT = Path(__file__).parent / "on_meshes.py"
THREE = 3


def started(what, path, devices=1, *cluster):
    """A process of the script."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {  # tiles that are optimized little round otherwise on other numbers of devices
        **os.environ,
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, str(SCRIPT), what, str(path), *cluster]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=env, text=True, **pipes)


def ended(running, timeout):
    """Exit codes and outputs; nothing is left running."""
    try:
        deadline = time.monotonic() + timeout
        outputs = [p.communicate(timeout=max(deadline - time.monotonic(), 1))[0] for p in running]
        return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]
    finally:
        for p in running:
            p.kill()
            p.wait()


def on_devices(what, path, devices):
    """Results of one process with this many devices."""
    ((code, output),) = ended([started(what, path, devices)], 600)
    assert code == 0, output
    return dict(np.load(path))


def in_processes(what, path, count=THREE, timeout=600):
    """Exit codes and outputs of processes that find each other on this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = [(address, str(count), str(i)) for i in range(count)]
    return ended([started(what, path, 1, *member) for member in cluster], timeout)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return on_devices("few", tmp_path_factory.mktemp("one") / "r.npz", 1)


def check_equal(found, expected):
    """Kernels to the bit; products but for the order of sums in float32."""
    assert found.keys() == expected.keys() and found
    for name, a in expected.items():
        if name.startswith("exact"):
            np.testing.assert_array_equal(found[name], a, err_msg=name)
        else:
            atol = 5e-7 * np.abs(a).max()
            np.testing.assert_allclose(found[name], a, rtol=0, atol=atol, err_msg=name)


def test_one_device_computes_the_kernel(one):
    k = np.asarray(cubic(examples(PRIME, 1).astype(float)).ntk)
    for storage in ("memory", "recompute"):
        truth = k @ examples(PRIME, 3)
        np.testing.assert_allclose(one[f"cubic, {storage}"], truth, rtol=1e-5, atol=1e-4)
    sharded = one["exact: cubic"]
    np.testing.assert_array_equal(sharded, sharded.T)
    np.testing.assert_allclose(sharded, cubic(examples(N, 0)).ntk, rtol=1e-5, atol=1e-6)


def test_eight_devices_compute_the_same(one, tmp_path):
    check_equal(on_devices("few", tmp_path / "r.npz", 8), one)


def test_three_processes_compute_the_same_and_agree_on_what_they_refuse(one, tmp_path):
    outputs = in_processes("few", tmp_path / "r.npz")
    assert [code for code, _ in outputs] == [0] * THREE, outputs
    for i, (_, output) in enumerate(outputs):
        refused = dict(
            line.removeprefix("refused ").split(": ", 1)
            for line in output.splitlines()
            if line.startswith("refused ")
        )
        assert len(refused) == 5, output
        assert "process 1 has other arguments than process 0" in refused["other rows"]
        assert "process 1 has other arguments" in refused["a row less"]
        own = {"not finite": "finite values", "no examples": "two axes", "a vector": "v: expected"}
        for name, words in own.items():
            assert (words if i == 1 else "process 1 refused its arguments") in refused[name]
    check_equal(dict(np.load(tmp_path / "r.npz")), one)


@pytest.mark.slow
def test_all_results_on_one_device_eight_devices_and_three_processes(tmp_path):
    found = on_devices("all", tmp_path / "1.npz", 1)
    check_equal(on_devices("all", tmp_path / "8.npz", 8), found)
    outputs = in_processes("all", tmp_path / "3.npz")
    assert [code for code, _ in outputs] == [0] * THREE, outputs
    check_equal(dict(np.load(tmp_path / "3.npz")), found)


@pytest.mark.slow
def test_when_a_process_is_killed_the_others_end_soon_and_say_how_to_resume(tmp_path):
    outputs = in_processes("dying", tmp_path / "r.npz")
    killed = float(re.search("killed at (.*)", outputs[1][1])[1])
    assert time.monotonic() - killed < 30
    assert outputs[1][0] == -9
    for code, output in (outputs[0], outputs[2]):
        assert code != 0
        assert "start every one again to resume" in output and "on_meshes.py dying" in output


@pytest.mark.slow
def test_a_solve_of_three_processes_of_which_one_is_killed_goes_on_in_two(tmp_path):
    path = tmp_path / "r.npz"
    outputs = in_processes("killed", path, timeout=300)
    assert outputs[1][0] == -9 and not path.exists()
    for code, output in (outputs[0], outputs[2]):
        assert code != 0 and "start every one again to resume" in output, output
    outputs = in_processes("solved", path, count=2, timeout=300)
    assert [code for code, _ in outputs] == [0, 0], outputs
    found, (x, y) = np.load(path), system()
    assert found["products"] < found["steps"]  # it did not begin anew
    distances = np.sqrt(np.sum(np.square(x[:, None] - x[None]), axis=2))
    expected = np.linalg.solve(np.exp(-distances / 10) + 1e-3 * np.eye(len(x)), y)
    atol = 5e-7 * np.abs(expected).max()
    np.testing.assert_allclose(found["value"], expected, rtol=0, atol=atol)


def test_a_mesh_of_one_device_is_that_device():
    mesh = jax.make_mesh((1,), ("x",))
    k = np.asarray(cubic(examples(PRIME, 1)).ntk)
    v = examples(PRIME, 3)
    pair = ntk_jax.shard(cubic, mesh, block_size=BLOCK)(examples(PRIME, 1))
    np.testing.assert_allclose(pair.ntk, k, rtol=1e-5, atol=1e-6)
    for storage in ("memory", "recompute"):
        op = operator(cubic, mesh, storage=storage)
        np.testing.assert_allclose(op @ v, k @ v, rtol=1e-4, atol=1e-4)
        grad = jax.grad(lambda v, op=op: v @ (op @ v) / 2)(v[:, 0])
        np.testing.assert_allclose(grad, k @ v[:, 0], rtol=1e-4, atol=1e-4)
    assert repr(BLOCK) in repr(op) and "entries" not in repr(op)


def test_errors(unchecked_shapes):
    with pytest.raises(ValueError, match=r"mesh: expected a jax.sharding.Mesh; got int"):
        ntk_jax.shard(cubic, 8)
    with pytest.raises(ValueError, match=r"mesh: expected a jax.sharding.Mesh; got None"):
        ntk_jax.shard(cubic, None)
    mesh = jax.make_mesh((1,), ("x",))
    looking = lambda x1, x2=None: np.asarray(x1) @ np.asarray(x1).T
    with pytest.raises(ValueError, match="looks at values"):
        ntk_jax.shard(looking, mesh)(examples(4, 0))
