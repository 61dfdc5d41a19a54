"""List the benchmarks, or run one or all of them."""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks.harness import RESULTS


def scripts() -> dict[str, ModuleType]:
    """The modules of this folder that have a docstring and a function `run`, by name; without
    those that need a package which is not installed.
    """
    names = sorted(
        info.name for info in pkgutil.iter_modules(benchmarks.__path__) if info.name != "__main__"
    )
    found = {}
    for name in names:
        try:
            module = importlib.import_module(f"benchmarks.{name}")
        except ModuleNotFoundError as error:  # such as Matplotlib, on a machine with a device
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if module.__doc__ and hasattr(module, "run"):
            found[name] = module
    return found


def listing(found: dict[str, ModuleType]) -> str:
    """One line per script: its name and the first line of its docstring."""
    width = max(map(len, found), default=0)
    return "\n".join(
        f"  {name:{width}}  {(module.__doc__ or '').splitlines()[0]}"
        for name, module in found.items()
    )


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run what it names."""
    found = scripts()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What the library costs, as ratios measured in one run.",
        epilog=f"scripts:\n{listing(found)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "script", nargs="?", choices=(*found, "all"), help="which to run; none lists them"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: seconds instead of minutes"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for JSON and figures (benchmarks/results)"
    )
    parser.add_argument(
        "--data", type=Path, help="of tabular: a folder of sets in the UCI-121 layout"
    )
    parser.add_argument("--store", action="store_true", help="of scale: kernels to disk alone")
    parser.add_argument("--rows", type=int, help="of solves, tabular: only a fit of so many rows")
    args = parser.parse_args(argv)
    if args.script is None:
        print(listing(found))
        print(
            "\nRun one: python -m benchmarks NAME [--quick] [--out DIR]; all: python -m benchmarks "
            "all [--quick]"
        )
        return
    for name in found if args.script == "all" else (args.script,):
        found[name].run(args)


if __name__ == "__main__":
    main()
