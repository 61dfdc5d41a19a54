"""Options and habits that subcommands share: kernels by name, files in, results out."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ntk_jax.data.scaling import standardized


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


def check_out(path: Path | None) -> None:
    """Raise before any work if results could not be saved there."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists; got {path}.")
    if path.is_dir():
        raise ValueError(f"--out: expected a file; got the folder {path}.")


def as_inputs(x: np.ndarray, like: np.ndarray, *, raw: bool) -> np.ndarray:
    """Standardized like `like`, column by column, or as they are if `raw`; in float32."""
    return (x if raw else standardized(x, like)).astype(np.float32)


def as_bytes(text: str) -> int:
    """A size such as 2GiB, 500MB or 100000."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or not number:
        raise ValueError(f"--memory: expected a size such as 2GiB or 500MB; got {text!r}.")
    power = " KMGT".index(found[2].upper() or " ")
    return int(number * (1024 if found[3] else 1000) ** power)


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
