"""A kernel on the disk survives whatever interrupts it, and reads like the array that it is."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_jax
from ntk_jax import KernelStore, mlp_kernels, tile
from ntk_jax.scale import files
from ntk_jax.scale.disk import create
from ntk_jax.scale.grid import Grid, needed_bytes

N, ROWS = 75, 16
TILES = 15  # of the upper half
LIMIT = needed_bytes(Grid(N, N, ROWS, ROWS, True), 8, 3 * 8)


def gaussian(x1, x2=None, *, scale=1.0):
    x1, x2 = np.asarray(x1), np.asarray(x1 if x2 is None else x2)
    return np.exp(-scale * np.square(x1[:, None] - x2[None]).sum(-1))


def two(x1, x2=None):
    k = gaussian(x1, x2)
    return ntk_jax.Kernels(jnp.asarray(k), jnp.asarray(2 * k))


def per_output(x1, x2=None):
    k = gaussian(x1, x2)
    return k[..., None, None] * np.array([[1.0, 0.5], [0.25, 1.0]])


def slow(x1, x2=None, *, seconds=0.05):
    time.sleep(seconds)
    return gaussian(x1, x2)


def examples():
    return np.random.default_rng(0).standard_normal((N, 3))


@pytest.fixture
def x():
    return examples()


@pytest.fixture
def store(x, tmp_path):
    return make(gaussian, tmp_path / "k.zarr", x)


def make(kernel_fn, path, *x, **options):
    return tile(kernel_fn, memory_limit=LIMIT, out=path, progress=False, **options)(*x)


def contents(path):
    """When every tile was written, and its bytes; a process that is killed may leave a lock."""
    found = sorted(f for f in path.glob("*/c/*/*") if f.suffix != ".__lock")
    return {str(f.relative_to(path)): (f.stat().st_mtime_ns, f.read_bytes()) for f in found}


def bytes_of(path):
    return {name: data for name, (_, data) in contents(path).items()}


def test_a_store_is_the_kernel(store, x):
    assert store.shape == (N, N) and store.dtype == np.float64 and not store.missing()
    assert len(store) == N
    np.testing.assert_array_equal(np.asarray(store), gaussian(x))
    np.testing.assert_array_equal(np.asarray(store, np.float32), gaussian(x).astype(np.float32))
    np.testing.assert_array_equal(store.x1, x)
    assert store.x2 is None and "15 of 15 upper tiles of 16 x 16 there" in repr(store)
    np.testing.assert_array_equal(np.asarray(KernelStore.open(store.path)), gaussian(x))


def test_a_store_of_two_sets_is_the_kernel(x, tmp_path, draw):
    other = draw((21, 3))
    store = make(gaussian, tmp_path / "k", x, other)
    np.testing.assert_array_equal(np.asarray(store), gaussian(x, other))
    np.testing.assert_array_equal(store.x2, other)
    np.testing.assert_allclose(store @ draw((21,)), gaussian(x, other) @ np.zeros(21), atol=99)
    v = draw((21, 2))
    np.testing.assert_allclose(store @ v, gaussian(x, other) @ v, rtol=1e-12)
    np.testing.assert_array_equal(store.columns(np.array([3, -1])), gaussian(x, other)[:, [3, -1]])
    with pytest.raises(ValueError, match="diagonal: expected a store with x2=None"):
        store.diagonal()


def test_a_store_of_both_kernels_has_two_parts(x, tmp_path):
    store = make(two, tmp_path / "k", x)
    np.testing.assert_array_equal(np.asarray(store.nngp), gaussian(x))
    np.testing.assert_array_equal(store.ntk[3:60], 2 * gaussian(x)[3:60])
    with pytest.raises(ValueError, match=r"expected one kernel.*store\.ntk"):
        np.asarray(store)
    with pytest.raises(AttributeError, match="single kernel"):
        _ = make(gaussian, tmp_path / "other", x).ntk


INDICES = {
    "rows": np.s_[5:20],
    "a block below the diagonal": np.s_[50:70, 3:40],
    "across the diagonal": np.s_[10:30, 20:50],
    "an entry": np.s_[40, 2],
    "a row": np.s_[70],
    "a column": np.s_[:, -1],
    "steps": np.s_[::7, 60:2:-5],
    "numbers": np.s_[[3, 70, 3], 10:50],
    "nothing": np.s_[5:5, :],
}


@pytest.mark.parametrize("name", INDICES)
def test_slices_are_those_of_the_array(store, x, name):
    np.testing.assert_array_equal(store[INDICES[name]], gaussian(x)[INDICES[name]])


def test_output_axes_are_whole(x, tmp_path):
    store = make(per_output, tmp_path / "k", x[:40])
    expected = np.asarray(tile(per_output, memory_limit=LIMIT, progress=False)(x[:40]))
    np.testing.assert_array_equal(np.asarray(store), expected)
    np.testing.assert_array_equal(store[30:40, 2:9], expected[30:40, 2:9])
    np.testing.assert_array_equal(store[30:40, 2:9, 0, 1], expected[30:40, 2:9, 0, 1])
    with pytest.raises(ValueError, match=r"@: expected a kernel \(n1, n2\); got \(40, 40, 2, 2\)"):
        store @ x[:40]


def test_a_store_is_an_operator(store, x, draw):
    k, v = gaussian(x), draw((N, 4))
    np.testing.assert_allclose(store @ v, k @ v, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(store @ v[:, 0], k @ v[:, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(store.diagonal(), np.ones(N))
    np.testing.assert_array_equal(store.columns(np.array([70, 1])), k[:, [70, 1]])
    top = ntk_jax.top_eigenvalues(store, 3, key=jax.random.key(0))
    np.testing.assert_allclose(top.eigenvalues, np.linalg.eigvalsh(k)[:-4:-1], rtol=1e-8)
    y = draw((N,))
    fit = ntk_jax.kernel_regression(np.asarray(store), y, store[:5], diag_reg=0.1)
    solved = np.linalg.solve(k + 0.1 * np.eye(N), y)
    np.testing.assert_allclose(fit.coefficients, solved, rtol=1e-8)


def test_products_need_known_values_that_fit(store, x):
    with pytest.raises(ValueError, match=r"v: expected shape \(75,\) or \(75, k\); got \(3,\)"):
        store @ np.ones(3)
    with pytest.raises(ValueError, match="v: expected real values that are known"):
        jax.jit(lambda v: store @ v)(x)
    with pytest.raises(ValueError, match="v: expected finite values"):
        store @ np.full(N, np.nan)


def test_files_are_plain_zarr(store, x):
    """Each read by hand, as its metadata say."""
    group = json.loads((store.path / "zarr.json").read_text())
    array = json.loads((store.path / "kernel/zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    assert array["shape"] == [N, N] and array["fill_value"] == "NaN"
    assert [codec["name"] for codec in array["codecs"]] == ["bytes"]
    t1, t2 = array["chunk_grid"]["configuration"]["chunk_shape"]
    k = np.full((N + t1, N + t2), np.nan)
    for file in store.path.glob("kernel/c/*/*"):
        i, j = int(file.parent.name) * t1, int(file.name) * t2
        k[i : i + t1, j : j + t2] = np.fromfile(file, "<f8").reshape(t1, t2)
    upper = np.triu_indices(N)
    np.testing.assert_array_equal(k[upper], gaussian(x)[upper])
    assert np.isnan(k[N - 5, 0])  # below the diagonal nothing is stored


def test_zarr_reads_it(store, x):
    zarr = pytest.importorskip("zarr")
    upper = np.triu_indices(N)
    group = zarr.open_group(str(store.path), mode="r")
    np.testing.assert_array_equal(group["kernel"][:][upper], gaussian(x)[upper])
    np.testing.assert_array_equal(group["x1"][:], x)


def test_a_rerun_computes_only_what_is_missing(store, x):
    whole, seen = contents(store.path), []

    def kernel_fn(x1, x2=None):
        seen.append(len(x1))
        return gaussian(x1, x2)

    assert make(kernel_fn, store.path, x).missing() == [] and seen == [4]
    seen.clear()
    store.discard([(0, 16), (64, 64)])
    assert store.missing() == [(0, 16), (64, 64)]
    make(kernel_fn, store.path, x)
    assert len(seen) == 3  # a few examples, and two tiles
    again = contents(store.path)
    assert bytes_of(store.path) == {name: data for name, (_, data) in whole.items()}
    assert sum(again[name][0] != whole[name][0] for name in whole) == 2


def test_missing_tiles_are_never_read(store):
    store.discard([(16, 48)])
    for read in (
        lambda: np.asarray(store),
        lambda: store[48, 16],
        lambda: store @ np.ones(N),
        lambda: store.columns(np.array([0])),
    ):
        with pytest.raises(ValueError, match=r"1 of \d+ are missing, such as \(16, 48\)"):
            read()
    assert store[:16, :16].shape == (16, 16)


def test_bad_tiles_are_found_and_made_again(store, x):
    whole = bytes_of(store.path)
    cut, spoiled, changed = ((0, 16), (16, 64), (32, 32))
    at = lambda corner: store.disk.files(corner)[0]
    at(cut).write_bytes(at(cut).read_bytes()[:100])
    block = np.fromfile(at(spoiled), "<f8")
    block[3] = np.nan
    block.tofile(at(spoiled))
    block = np.fromfile(at(changed), "<f8")
    block[3] = np.nextafter(block[3], 2)
    block.tofile(at(changed))
    assert store.missing() == [cut]
    assert store.verify(progress=False) == [cut, spoiled]
    assert store.verify(gaussian, progress=False) == [cut, spoiled, changed]
    assert store.verify(gaussian, num_tiles=1, progress=False) == [cut, spoiled]
    store.discard([cut, spoiled, changed])
    store.compute(gaussian, progress=False)
    assert store.verify(gaussian, progress=False) == [] and bytes_of(store.path) == whole


def test_a_tile_cut_off_at_the_end_is_made_again(store, x):
    """The last ones are smaller than their files."""
    file = store.disk.files((64, 64))[0]
    file.write_bytes(b"")
    store.compute(gaussian, progress=False)
    np.testing.assert_array_equal(np.asarray(store), gaussian(x))


OTHERS = {
    "examples": (lambda p, x: make(gaussian, p, x + 1), "expected the examples.*x1 there"),
    "fewer": (lambda p, x: make(gaussian, p, x[:9]), r"shape \(75, 3\).*shape \(9, 3\)"),
    "two sets": (lambda p, x: make(gaussian, p, x, x), "x2 there: x1 again; here: shape"),
    "precision": (lambda p, x: make(gaussian, p, x.astype(np.float32)), "float64.*float32"),
    "parameters": (
        lambda p, x: make(functools.partial(gaussian, scale=1.01), p, x),
        r"expected the kernel function that the store was begun with.*differ by 0\.0",
    ),
    "both kernels": (lambda p, x: make(two, p, x), "expected kernel in float64.*nngp and ntk"),
    "outputs": (lambda p, x: make(per_output, p, x), r"with output axes \(2, 2\)"),
    "dtype": (
        lambda p, x: make(lambda a, b=None: gaussian(a, b).astype(np.float32), p, x),
        "expected kernel in float64, as in the store; got kernel in float32",
    ),
    "memory": (
        lambda p, x: tile(gaussian, memory_limit=LIMIT // 2, out=p)(x),
        "memory_limit that holds the store's tiles of 16 x 16",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_store_of_something_else_is_refused(store, x, name):
    call, message = OTHERS[name]
    for missing in ([], [(0, 0)]):
        store.discard(missing)
        before = contents(store.path)
        with pytest.raises(ValueError, match=message):
            call(store.path, x)
        assert contents(store.path) == before


def test_more_memory_does_not_change_the_tiles_of_a_store(store, x):
    store.discard([(0, 0)])
    found = tile(gaussian, memory_limit=100 * LIMIT, out=store.path, progress=False)(x)
    assert found.facts.grid.rows1 == ROWS and not found.missing()


def test_a_kernel_that_agrees_to_rounding_is_taken_with_a_warning(store):
    store.discard([(0, 0)])
    nearly = lambda x1, x2=None: gaussian(x1, x2) * (1 + 2**-52)
    with pytest.warns(UserWarning, match="agrees with the store's to rounding only"):
        store.compute(nearly, progress=False)


def test_nan_is_an_error_and_not_a_missing_tile(x, tmp_path):
    spoiled = lambda x1, x2=None: np.where(gaussian(x1, x2) < 1e-9, np.nan, gaussian(x1, x2))
    assert not np.isnan(spoiled(x[:: N // 3])).any()
    with pytest.raises(ValueError, match=r"expected no NaN.*got NaN in the tile at"):
        make(spoiled, tmp_path / "k", x)
    assert KernelStore.open(tmp_path / "k").verify(progress=False) == []


def test_a_second_writer_is_refused(store):
    store.discard([(0, 0)])
    with files.locked(store.path):
        with pytest.raises(OSError, match="expected one writer at a time"):
            store.compute(gaussian, progress=False)
        assert store[64:, 64:].shape == (11, 11)  # readers are welcome
    assert store.compute(gaussian, progress=False).missing() == []


def test_other_folders_are_left_alone(x, tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(ValueError, match="expected a KernelStore, an empty folder or nothing"):
        make(gaussian, tmp_path, x)
    with pytest.raises(ValueError, match="nothing that is one"):
        KernelStore.open(tmp_path)
    with pytest.raises(ValueError, match="got other files"):
        make(gaussian, tmp_path / "thesis.txt", x)


def test_a_creation_that_was_interrupted_is_made_again(store, x):
    (store.path / "zarr.json").write_text('{"zarr_format": 3, "no')
    with pytest.raises(ValueError, match="got other files"):  # tiles are never thrown away
        make(gaussian, store.path, x)
    shutil.rmtree(store.path / "kernel/c")
    np.testing.assert_array_equal(np.asarray(make(gaussian, store.path, x)), gaussian(x))


def test_a_store_made_by_another_process_meanwhile_is_kept(store, x):
    store.discard([(0, 0)])
    with pytest.raises(OSError, match="another process has made a store here"):
        create(store.path, store.disk.sides, store.facts)
    assert len(store.missing()) == 1


def test_without_tensorstore_the_extra_is_named(x, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r"ntk-jax\[scale\]"):
        make(gaussian, tmp_path / "k", x)
    with pytest.raises(ImportError, match=r"ntk-jax\[scale\]"):
        KernelStore.open(tmp_path)


def test_a_disk_that_fails_loses_no_finished_tile(x, tmp_path):
    path = tmp_path / "k"
    part = lambda x1, x2=None: gaussian(x1, x2)
    store = make(part, path, x)
    rest = [at for at in store.facts.grid.corners if at[0] == 32]
    store.discard(rest)
    shutil.rmtree(path / "kernel/c/2")
    (path / "kernel/c/2").write_text("")  # nothing can be written below it
    before = contents(path)
    with pytest.raises(OSError, match=r"tile at \(32, 32\) could not be written.*call again"):
        store.compute(part, progress=False)
    assert {**before, **contents(path)} == contents(path)
    (path / "kernel/c/2").unlink()
    np.testing.assert_array_equal(np.asarray(store.compute(part, progress=False)), gaussian(x))


@pytest.fixture
def small_disk(tmp_path):
    """Of 200 KB; a store of these tests takes 30 KB, its rest is filled by the test."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a disk in memory")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_no_finished_tile(x, small_disk):
    path, filled = small_disk / "k", []

    def kernel_fn(x1, x2=None):
        filled.append(None)
        if len(filled) == 5:
            # The writer is behind: not before it has finished a tile, and renamed it.
            before, finished = time.monotonic(), lambda: [f.name for f in path.glob("kernel/c/*/*")]
            while not any(map(str.isdigit, finished())) and time.monotonic() < before + 60:
                time.sleep(0.01)
            with open(small_disk / "ballast", "wb", buffering=0) as ballast:
                while True:  # as far as the disk goes
                    try:
                        ballast.write(bytes(1024))
                    except OSError:
                        break
        return gaussian(x1, x2)

    with pytest.raises(OSError, match=r"could not be written.*No space left.*Free space"):
        make(kernel_fn, path, x)
    store = KernelStore.open(path)
    kept = contents(path)
    assert 0 < len(store.missing()) < TILES and store.verify(gaussian, progress=False) == []
    (small_disk / "ballast").unlink()
    store.compute(kernel_fn, progress=False)
    np.testing.assert_array_equal(np.asarray(store), gaussian(x))
    assert {name: contents(path)[name] for name in kept} == kept


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_cannot_be_written_to_is_read(x):
    root = Path(tempfile.mkdtemp())
    try:
        store = make(gaussian, root / "k", x)
        store.discard([(0, 0)])
        for folder in (root, *root.rglob("*/")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
        user = os.geteuid()
        try:
            if user == 0:  # who may always write
                os.seteuid(65534)
            with pytest.raises(OSError, match=r"expected a folder that can be written to.*open"):
                KernelStore.open(root / "k").compute(gaussian, progress=False)
            np.testing.assert_array_equal(store[20:, 20:], gaussian(x)[20:, 20:])
        finally:
            os.seteuid(user)
    finally:
        for folder in (root, *root.rglob("*/")):
            folder.chmod(0o755)
        shutil.rmtree(root)


def test_threads_drive_tiles(store, x):
    whole = bytes_of(store.path)
    store.discard(store.facts.grid.corners[1:])
    with ThreadPoolExecutor(3) as executor:
        store.compute(gaussian, executor=executor, progress=False)
    assert bytes_of(store.path) == whole


def test_dask_drives_tiles(store, x):
    distributed = pytest.importorskip("distributed")
    whole = bytes_of(store.path)
    store.discard(store.facts.grid.corners[1:])
    options = {"n_workers": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        store.compute(gaussian, executor=client.get_executor(), progress=False)
    assert bytes_of(store.path) == whole


def test_a_failing_worker_ends_the_rest_and_keeps_finished_tiles(store):
    store.discard(store.facts.grid.corners)
    calls = []

    def failing(x1, x2=None):
        calls.append(None)
        if len(calls) == 5:
            raise RuntimeError("no luck")
        return gaussian(x1, x2)

    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="no luck"):
        store.compute(failing, executor=executor, progress=False)
    assert 3 <= TILES - len(store.missing()) < TILES
    assert store.compute(gaussian, progress=False).verify(gaussian, progress=False) == []


def test_forked_processes_and_closures_are_refused(store, unchecked_shapes):
    store.discard([(0, 0)])
    spawned = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    forked = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    with pytest.raises(ValueError, match="expected processes that are spawned"):
        store.compute(gaussian, executor=forked)
    with pytest.raises(ValueError, match="kernel_fn: expected a function that can be sent"):
        store.compute(lambda x1, x2=None: gaussian(x1, x2), executor=spawned)
    with pytest.raises(ValueError, match=r"executor: expected a concurrent\.futures\.Executor"):
        store.compute(gaussian, executor=3)


def dying(x1, x2=None):
    """Ends the process at one tile, but not the one that is of the parent."""
    if multiprocessing.parent_process() is not None and len(x1) == ROWS and x2 is not None:
        os._exit(9)
    return gaussian(x1, x2)


relu = functools.partial(mlp_kernels, depth=1, W_std=1.4)


@pytest.mark.slow
def test_spawned_processes_drive_tiles(store, x, tmp_path, monkeypatch):
    monkeypatch.setattr("ntk_jax.host.few.FEW", 2**14)  # as in the processes
    store = make(relu, tmp_path / "relu", x)
    whole = bytes_of(store.path)
    store.discard(store.facts.grid.corners[1:])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        store.compute(relu, executor=executor, progress=False)
    assert bytes_of(store.path) == whole


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_the_rest_is_computed(store, x):
    store.discard(store.facts.grid.corners)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as executor,
        pytest.raises(RuntimeError, match=r"a worker ended before its tile was done.*new executor"),
    ):
        store.compute(dying, executor=executor, progress=False)
    assert store.missing()
    assert store.compute(gaussian, progress=False).verify(gaussian, progress=False) == []


def fill_slowly(path):
    """What is killed: says which tiles are about to be computed."""

    def kernel_fn(x1, x2=None):
        sys.stdout.write("tile\n")
        sys.stdout.flush()
        return slow(x1, x2)

    make(kernel_fn, Path(path), examples())


def killed(path, after):
    """A process that ends with -9 after so many tiles; all of its calls if it was not."""
    code = f"from test_kernel_store import fill_slowly; fill_slowly({str(path)!r})"
    places = [str(Path(__file__).parent), str(Path(ntk_jax.__file__).parents[1])]
    own = os.environ | {"PYTHONPATH": os.pathsep.join(places), "JAX_ENABLE_X64": "1"}
    calls = 0
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=own, text=True
    ) as run:
        for _ in run.stdout:
            calls += 1
            if calls == after:
                time.sleep(np.random.default_rng(after).uniform(0, 0.05))
                run.send_signal(signal.SIGKILL)
    assert run.returncode == (0 if after is None else -signal.SIGKILL)
    return calls


@pytest.mark.parametrize(
    "moments", [(9,), pytest.param((2, 1, 4, 3, 5, 7), marks=pytest.mark.slow)]
)
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(store, tmp_path, moments):
    path = tmp_path / "killed.zarr"
    for after in moments:
        before = contents(path)
        killed(path, after)
        now = contents(path)
        assert {name: now[name] for name in before} == before  # none was computed again
        if (path / "zarr.json").exists():
            assert KernelStore.open(path).verify(gaussian, progress=False) == []
    before, missing = contents(path), KernelStore.open(path).missing()
    assert 0 < len(missing) < TILES
    assert killed(path, None) == 1 + len(missing)
    now = contents(path)
    assert {name: now[name] for name in before} == before
    assert bytes_of(path) == bytes_of(store.path)
