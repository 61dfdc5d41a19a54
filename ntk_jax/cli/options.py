"""Options and habits that subcommands share: kernels by name, files in, results out."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntk_jax.data.encoding import encoder
from ntk_jax.data.reading import Table, read_table
from ntk_jax.infinite.flax.limit import infinite_width
from ntk_jax.infinite.mlp.kernels import mlp_kernels
from ntk_jax.types import Kernels


class Frame(NamedTuple):
    """A table in and its matrix, standardized by column."""

    table: Table
    x: np.ndarray


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples."""
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    return command


def add_table_options(command: argparse.ArgumentParser) -> None:
    """What every command that reads a table has."""
    command.add_argument("--drop", metavar="COLUMN", action="append", default=[], help="leave out")
    command.add_argument("--json", action="store_true", help="results as JSON on stdout")
    add_debug(command)


def add_debug(command: argparse.ArgumentParser) -> None:
    """The whole traceback instead of one line."""
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_kernel_options(command: argparse.ArgumentParser) -> None:
    """An MLP by its options, or any model by its name."""
    command.add_argument("--depth", type=int, default=2, help="hidden layers")
    command.add_argument("--activation", default="relu", help="a name of ntk_jax.duals")
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
    if not args.raw:
        std = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.where(std > 0, std, 1)
    return Frame(table, x.astype(np.float32))


def kernels_of(args: argparse.Namespace, x: np.ndarray) -> Kernels:
    """NNGP and NTK of the rows, by the kernel options."""
    if args.model is None:
        if args.shape is not None:
            raise ValueError("--shape: expected together with --model; got it alone.")
        scales = {"W_std": args.W_std, "b_std": args.b_std}
        return mlp_kernels(x, depth=args.depth, activation=args.activation, **scales)
    return infinite_width(_model(args.model))(x.reshape(len(x), *_shape(args.shape, x)))


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


def check_out(path: Path | None) -> None:
    """Raise before any work if results could not be saved there."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists; got {path}.")
    if path.is_dir():
        raise ValueError(f"--out: expected a file; got the folder {path}.")


def notify(notices: list[str]) -> None:
    """What a reader should know, on stderr."""
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


def show(args: argparse.Namespace, results: dict[str, object]) -> None:
    """Results on stdout, one line each or as JSON."""
    if args.json:
        print(json.dumps(results, indent=2))
        return
    width = max(map(len, results))
    for name, value in results.items():
        print(f"{name:<{width}}  {_readable(value)}")


def _readable(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
