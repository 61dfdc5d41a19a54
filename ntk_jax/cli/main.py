"""`ntk-jax` and `python -m ntk_jax`: parse, call, save."""

import argparse
import sys
import time
from pathlib import Path

from ntk_jax.cli import demo, kernel, predict, report
from ntk_jax.cli.options import add_debug
from ntk_jax.data import csv_data, digits_data, linear_data


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    try:
        return args.command(args)
    except (ValueError, ImportError, OSError, ArithmeticError) as error:
        if args.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ntk-jax", description=sys.modules["ntk_jax"].__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "demo",
        help="train wide networks and predict their training from the tangent kernel",
        description="Train wide networks on real data; predict the same trajectories from the "
        "kernel in closed form.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(command=run_demo)
    command.add_argument(
        "--width",
        type=int,
        help="units of each hidden layer (default: 4096 linear, 1024 otherwise)",
    )
    command.add_argument("--depth", type=int, help="hidden layers (default: 1 linear, 2 otherwise)")
    command.add_argument("--seed", type=int, default=0, help="of the network's initialization")
    command.add_argument(
        "--data", type=Path, metavar="FILE.csv", help="your own table with a header row"
    )
    command.add_argument("--target", metavar="COLUMN", help="the column of --data to predict")
    command.add_argument(
        "--task",
        choices=("regression", "classification"),
        help="what --target is (default: look at it)",
    )
    command.add_argument(
        "--no-figures", action="store_true", help="write demo.json alone, without matplotlib"
    )
    command.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for figures and demo.json"
    )
    add_debug(command)
    kernel.add_commands(commands)
    predict.add_commands(commands, kernel.add_model_options, kernel.kernel_fn_of)
    return parser


def run_demo(args: argparse.Namespace) -> int:
    """Run the experiments, print one table, save figures and numbers."""
    start = time.perf_counter()
    for name, minimum in (("width", 1), ("depth", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise ValueError(f"--{name}: expected at least {minimum}; got {value}.")
    report.check_out(args.out, figures=not args.no_figures)
    experiments = []
    for settings in _settings(args):
        print(
            f"{settings.data.name}: {settings.depth} hidden layers of {settings.width}", flush=True
        )
        experiments.append(demo.run(settings))
    print("  save ...", flush=True)
    paths = report.save(experiments, args.out, figures=not args.no_figures)
    print("\n" + report.summary(experiments))
    print(
        f"\nDone in {time.perf_counter() - start:.0f} s. Look at "
        f"{', '.join(str(path) for path in paths)}"
    )
    return 0


def _settings(args: argparse.Namespace) -> list[demo.Settings]:
    table = {"width": args.width or 1024, "depth": args.depth or 2, "seed": args.seed}
    if args.data is None:
        for name in ("target", "task"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name}: expected together with --data FILE.csv; got it alone.")
        linear = {"width": args.width or 4096, "depth": args.depth or 1, "seed": args.seed}
        return [
            demo.linear_settings(linear_data(), **linear),
            demo.table_settings(digits_data(), **table),
        ]
    if args.target is None:
        raise ValueError("--data: expected together with --target COLUMN; got it alone.")
    return [
        demo.table_settings(
            csv_data(args.data, args.target, task=args.task, seed=args.seed), **table
        )
    ]
