"""`ntk-jax kernel` and `ntk-jax spectrum`: the kernel of a table, and what it says of it."""

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ntk_jax.cli.options import (
    add_command,
    add_table_options,
    as_bytes,
    as_inputs,
    check_out,
    notify,
    show,
)
from ntk_jax.data.encoding import encoder, is_numeric, numbers_of
from ntk_jax.data.reading import Table, read_table
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.infinite.mlp.kernels import mlp_kernels
from ntk_jax.scale.store import KernelStore
from ntk_jax.scale.tiles import tile
from ntk_jax.spectrum.alignment import alignment
from ntk_jax.spectrum.eigenvalues import effective_rank, eigenvalues, top_eigenvalues
from ntk_jax.types import KernelFn, Kernels

KERNEL_EXAMPLES = """examples:
  ntk-jax kernel table.csv --out K.npz
  ntk-jax kernel table.csv --depth 3 --activation gelu --out K.npz
  ntk-jax kernel images.npy --model my_models:make_cnn --shape 8,8,1 --out K.npz
  ntk-jax kernel images.npy --out K.zarr --memory 2GiB --resume
"""
SPECTRUM_EXAMPLES = """examples:
  ntk-jax spectrum table.csv --target price
  ntk-jax spectrum table.csv --kernel nngp --top 3 --json
  ntk-jax spectrum K.zarr --top 20
"""


class Frame(NamedTuple):
    """A table and its matrix, standardized by column."""

    table: Table
    x: np.ndarray


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Both subcommands."""
    command = add_command(
        commands,
        "kernel",
        run_kernel,
        summary="the NNGP and the NTK of a table's rows",
        description="Write both kernels of all rows, nngp (n, n) and ntk (n, n), to K.npz, or "
        "tile by tile to K.zarr: what is there when the command is interrupted need not be "
        "computed again.",
        examples=KERNEL_EXAMPLES,
    )
    command.add_argument("data", type=Path, help="CSV, NPY, NPZ or Parquet")
    command.add_argument("--out", type=Path, required=True, metavar="K.npz|K.zarr")
    command.add_argument("--memory", metavar="SIZE", help="for tiles, such as 2GiB or 500MB")
    command.add_argument("--resume", action="store_true", help="go on with a K.zarr that is there")
    add_kernel_options(command)
    add_table_options(command)
    command = add_command(
        commands,
        "spectrum",
        run_spectrum,
        summary="eigenvalues of the kernel, and how well it fits a target",
        description="The largest eigenvalues of the kernel of a table's rows, its effective rank, "
        "and with --target its alignment with it. Of a K.zarr, without reading all of it at a "
        "time: its largest eigenvalues.",
        examples=SPECTRUM_EXAMPLES,
    )
    command.add_argument("data", type=Path, help="CSV, NPY, NPZ or Parquet, or K.zarr")
    command.add_argument("--target", metavar="COLUMN", help="left out of the inputs")
    command.add_argument("--kernel", choices=("ntk", "nngp"), default="ntk")
    command.add_argument("--top", type=int, default=10, help="eigenvalues to show")
    command.add_argument("--out", type=Path, metavar="S.npz", help="save all eigenvalues")
    add_kernel_options(command)
    add_table_options(command)


def run_kernel(args: argparse.Namespace) -> int:
    """Compute, save, say what was saved."""
    to_store = args.out.suffix == ".zarr"
    _check_kernel_out(args, to_store)
    memory = None if args.memory is None else as_bytes(args.memory)
    frame = read_frame(args)
    print(f"kernels of {len(frame.x)} rows ...", file=sys.stderr)
    kernel_fn, x = kernel_fn_of(args, frame.x)
    if to_store:
        store = tile(kernel_fn, memory_limit=memory, out=args.out)(x)
        means = {f"mean {n}": float(getattr(store, n).diagonal().mean()) for n in Kernels._fields}
    else:
        tiled = kernel_fn if memory is None else tile(kernel_fn, memory_limit=memory)
        found = tiled(x)
        kernels = {n: np.asarray(getattr(found, n)) for n in Kernels._fields}
        with args.out.open("wb") as file:  # np.savez would add an ending to the name
            np.savez(file, nngp=kernels["nngp"], ntk=kernels["ntk"])
        means = {f"mean {n}": float(np.diagonal(k).mean()) for n, k in kernels.items()}
    show(args, {"rows": len(frame.x), "columns": frame.x.shape[1], **means, "out": str(args.out)})
    return 0


def _check_kernel_out(args: argparse.Namespace, to_store: bool) -> None:
    """Raise before any work if there is no place for the kernel, or if something is there."""
    if not to_store:
        if args.resume:
            raise ValueError(f"--resume: expected together with --out K.zarr; got {args.out}.")
        return check_out(args.out)
    if args.out.exists() and not args.resume:
        raise ValueError(
            f"--out: expected a path that is free; {args.out} is there. Go on with it: --resume."
        )
    return None


def run_spectrum(args: argparse.Namespace) -> int:
    """Compute, say the largest eigenvalues and what they tell."""
    check_out(args.out)
    if args.top < 1:
        raise ValueError(f"--top: expected at least 1; got {args.top}.")
    if args.data.is_dir():
        return _spectrum_of_store(args)
    frame = read_frame(args, () if args.target is None else (args.target,))
    k = np.asarray(getattr(kernels_of(args, frame.x), args.kernel))
    s = np.asarray(eigenvalues(k), np.float64)
    results: dict[str, object] = {
        "rows": len(frame.x),
        "columns": frame.x.shape[1],
        "largest eigenvalues": s[: args.top].tolist(),
        "trace": float(s.sum()),
        "effective rank": float(np.asarray(effective_rank(k))),
    }
    if args.target is not None:
        y = _target(frame.table, args.target)
        for what, values in (("inputs", frame.x), (f"values of {args.target}", y)):
            if np.all(values == values[0]):
                raise ValueError(f"{args.data}: expected {what} that vary; all rows have the same.")
        results["centered alignment"] = float(np.asarray(alignment(k, y, centered=True)))
    if args.out is not None:
        with args.out.open("wb") as file:
            np.savez(file, eigenvalues=s)
        results["out"] = str(args.out)
    show(args, results)
    return 0


def _spectrum_of_store(args: argparse.Namespace) -> int:
    """The same by products with a kernel on the disk."""
    if args.target is not None:
        raise ValueError("--target: expected together with a table; a store has no columns.")
    store = KernelStore.open(args.data)
    store = store if store.name else getattr(store, args.kernel)
    n, grid = store.shape[0], store.facts.grid
    top = top_eigenvalues(store, min(args.top, n), key=jax.random.key(0))
    if not top.converged:
        notify([f"largest eigenvalues: residuals up to {float(top.residuals.max()):.2g}"])
    trace = float(store.diagonal().astype(float).sum())
    squares = 0.0
    for at in grid.corners:
        part = store[grid.place(at)].astype(float)
        squares += float(np.vdot(part, part)) * (2 if grid.has_mirror(at) else 1)
    s = np.asarray(top.eigenvalues, np.float64)
    results: dict[str, object] = {
        "rows": n,
        "largest eigenvalues": s.tolist(),
        "trace": trace,
        "effective rank (participation)": trace**2 / squares,
    }
    if args.out is not None:
        with args.out.open("wb") as file:
            np.savez(file, eigenvalues=s, eigenvectors=top.eigenvectors)
        results["out"] = str(args.out)
    show(args, results)
    return 0


def _target(table: Table, name: str) -> np.ndarray:
    """Numbers, or one column for each class."""
    if not is_numeric(table, name):
        only = table.without([other for other in table.columns if other != name])
        return encoder(only)(only).astype(np.float32)
    y = numbers_of(table, name)
    if np.isnan(y).any():
        row = int(np.argmax(np.isnan(y)))
        raise ValueError(f"{table.place(row, name)}: expected a number; got none.")
    return y.astype(np.float32)[:, None]


def add_kernel_options(command: argparse.ArgumentParser) -> None:
    """An MLP by its options, or any model by its name."""
    command.add_argument("--depth", type=int, default=2, help="hidden layers")
    command.add_argument("--activation", default="relu", help="a name of ntk_jax.duals")
    add_model_options(command)


def add_model_options(command: argparse._ActionsContainer) -> None:
    """What else makes the kernel."""
    command.add_argument("--W-std", type=float, default=2**0.5, help="weight scale")
    command.add_argument("--b-std", type=float, default=0.1, help="bias scale")
    command.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:FACTORY",
        help="a function without arguments that returns a Flax model, taken to infinite width",
    )
    command.add_argument(
        "--shape", metavar="H,W,C", help="of one example for the model, such as 8,8,1"
    )
    command.add_argument(
        "--raw", action="store_true", help="inputs as they are, not standardized by column"
    )


def read_frame(args: argparse.Namespace, targets: tuple[str, ...] = ()) -> Frame:
    """The table of `args.data` without its targets, as the matrix that kernels take."""
    table = read_table(args.data).without(args.drop)
    encode = encoder(table.without(list(targets)))
    x = encode(table)
    notify(encode.notices)
    return Frame(table, as_inputs(x, x, raw=args.raw))


def kernels_of(args: argparse.Namespace, x: np.ndarray) -> Kernels:
    """NNGP and NTK of the rows, by the kernel options."""
    kernel_fn, x = kernel_fn_of(args, x)
    return kernel_fn(x)


def kernel_fn_of(args: argparse.Namespace, x: np.ndarray) -> tuple[KernelFn[Kernels], np.ndarray]:
    """The kernel function of the kernel options, and the rows as it takes them."""
    if args.model is None:
        if args.shape is not None:
            raise ValueError("--shape: expected together with --model; got it alone.")
        scales = {"W_std": args.W_std, "b_std": args.b_std}
        options = {"depth": args.depth, "activation": args.activation, **scales}
        return partial(mlp_kernels, **options), x
    return infinite_width(_model(args.model)), x.reshape(len(x), *_shape(args.shape, x))


def _model(name: str) -> object:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"--model: expected PACKAGE.MODULE:FACTORY; got {name!r}.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model: expected {name} to be importable; {error}.") from error
    finally:
        sys.path.pop(0)
    return factory()


def _shape(text: str | None, x: np.ndarray) -> tuple[int, ...]:
    if text is None:
        return x.shape[1:]
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"--shape: expected whole numbers such as 8,8,1; got {text!r}.") from None
    if int(np.prod(shape)) != x.shape[1]:
        raise ValueError(
            f"--shape: expected the shape of one row, of {x.shape[1]} numbers; got {text}."
        )
    return shape
