"""Arrays in files: TensorStore's zarr3 driver, one writer, writes that end on the disk."""

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ntk_jax.extras import missing
from ntk_jax.scale.grid import Corner, Grid

try:
    import fcntl
except ImportError:  # where there is no POSIX, nobody keeps a second writer out
    fcntl = None  # type: ignore[assignment]

Opened: TypeAlias = Any
"""An array of TensorStore's."""

WINDOW = 8  # tiles on their way to the disk

_GROUP = "zarr.json"  # of a folder, which is also what its one writer locks


def tensorstore() -> Opened:
    """The package, which not everybody needs.

    Raises:
        ImportError: it is not there.
    """
    try:
        import tensorstore as ts
    except ImportError as error:
        raise missing("KernelStore", "tensorstore", "scale") from error
    return ts


def create_array(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Opened:
    """A new array on the disk, without compression; what is not written is NaN, where there is."""
    fill = {"fill_value": "NaN"} if dtype.startswith("float") else {}
    grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
    metadata = {"shape": shape, "data_type": dtype, "chunk_grid": grid, **fill}
    metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    # What is there is left of a creation that was interrupted.
    return _open(path, metadata=metadata, create=True, delete_existing=True)


def open_array(path: Path) -> Opened:
    """An array that is there."""
    return _open(path, open=True)


def write_array(path: Path, x: np.ndarray) -> None:
    """All of a new array."""
    create_array(path, x.shape, x.shape, x.dtype.name).write(x).result()


def _open(path: Path, **options: object) -> Opened:
    kvstore = {"driver": "file", "path": f"{path.absolute()}/"}
    return tensorstore().open({"driver": "zarr3", "kvstore": kvstore, **options}).result()


def chunk_file(path: Path, at: Corner, grid: Grid, num_outputs: int) -> Path:
    """The file of a tile."""
    return path.joinpath(
        "c", str(at[0] // grid.rows1), str(at[1] // grid.rows2), *("0",) * num_outputs
    )


def read_attributes(path: Path) -> dict[str, Any] | None:
    """The attributes of a group; None if there is none, or not all of it."""
    try:
        return json.loads((path / _GROUP).read_text(encoding="utf-8")).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def write_attributes(path: Path, attributes: dict[str, Any]) -> None:
    """The group itself, in the file that is locked: once it can be read, it is whole."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with (path / _GROUP).open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def is_ours(path: Path, names: Iterable[str]) -> bool:
    """Whether a folder without a group is empty, or one in which a creation was interrupted."""
    if not any(path.iterdir()):
        return True
    # A creation ends before the first tile.
    return (path / _GROUP).exists() and not any((path / name / "c").exists() for name in names)


def remove(file: Path) -> None:
    """A tile that is to be computed again."""
    if file.is_dir():
        shutil.rmtree(file)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            file.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with the right to write. The system gives it back when the process ends, however.

    Raises:
        OSError: another process has it, or nobody may write there.
    """
    try:
        descriptor = os.open(path / _GROUP, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OSError(
            f"{path}: expected a folder that can be written to; got: {error}. Reading needs no "
            "right to write: KernelStore.open(path)."
        ) from error
    try:
        if fcntl is not None:
            _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(
            f"{path}: expected one writer at a time; another one is writing. Wait for it, or give "
            "it an executor to compute faster."
        ) from None


class Writer:
    """Writes tiles while others are computed; leaving the context waits for the last ones."""

    def __init__(self, path: Path, arrays: tuple[Opened, ...], grid: Grid):
        self.path, self.arrays, self.grid = path, arrays, grid
        self.pending: deque[tuple[Corner, list[Opened]]] = deque()
        self.done = 0
        self.failed: tuple[Corner, Exception] | None = None

    def write(self, at: Corner, tile: tuple[np.ndarray, ...]) -> None:
        """Start to write a tile, which must not change any more."""
        place = self.grid.place(at)
        writes = [
            array[place].write(part, can_reference_source_data_indefinitely=True)
            for array, part in zip(self.arrays, tile, strict=True)
        ]
        self.pending.append((at, writes))
        if len(self.pending) > WINDOW:
            self._finish_oldest()
            self._raise_failed()

    def _finish_oldest(self) -> None:
        at, writes = self.pending.popleft()
        try:
            for write in writes:
                write.commit.result()
            self.done += 1
        except Exception as error:
            self.failed = self.failed or (at, error)

    def _raise_failed(self) -> None:
        if self.failed is None:
            return
        at, error = self.failed
        raise OSError(
            f"{self.path}: the tile at {at} could not be written: {error}. All tiles before it are "
            f"on the disk, {self.done} of this call. Free space or mend the disk, and call again: "
            "the missing ones are computed."
        ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        while self.pending:
            self._finish_oldest()
        if kind is None:
            self._raise_failed()


def read_tiles(
    array: Opened, grid: Grid, which: Iterable[Corner]
) -> Iterator[tuple[Corner, np.ndarray]]:
    """Tiles as they are on the disk; some are read ahead."""
    pending: deque[tuple[Corner, Opened]] = deque()
    for at in which:
        pending.append((at, array[grid.place(at)].read()))
        if len(pending) > WINDOW:
            first, read = pending.popleft()
            yield first, read.result()
    for first, read in pending:
        yield first, read.result()
