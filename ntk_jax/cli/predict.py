"""`ntk-jax predict` and `ntk-jax explain`: the estimators on tables."""

import argparse
import csv
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from ntk_jax.cli.options import (
    add_command,
    add_table_options,
    as_inputs,
    check_out,
    notify,
    show,
)
from ntk_jax.data.encoding import (
    Encoder,
    encoder,
    is_numeric,
    look_like_classes,
    numbers_of,
    text_of,
)
from ntk_jax.data.reading import Table, read_table
from ntk_jax.inference.regression import kernel_regression
from ntk_jax.memory import free_bytes
from ntk_jax.scale.kernel_operator import kernel_operator
from ntk_jax.scale.store import KernelStore
from ntk_jax.scale.tiles import tile
from ntk_jax.types import KernelFn, Kernels

PREDICT_EXAMPLES = """examples:
  ntk-jax predict --train train.csv --target price --test new.csv --out predictions.csv
  ntk-jax predict --train train.csv --target kind --test new.csv --kernel nngp --json
  ntk-jax predict --train train.csv --target price --test new.csv --store K.zarr
"""
EXPLAIN_EXAMPLES = """examples:
  ntk-jax explain --train train.csv --target price --test new.csv --top 3
  ntk-jax explain --train train.csv --target kind
"""


class Task(NamedTuple):
    """Training rows and targets, the table they are of, and whether targets are classes."""

    table: Table
    encode: Encoder
    x: np.ndarray
    y: np.ndarray
    classes: bool


KernelOf: TypeAlias = Callable[
    [argparse.Namespace, np.ndarray], tuple[KernelFn[Kernels], np.ndarray]
]
"""A kernel function of the options of `ntk-jax kernel`, and the rows as it takes them."""


def add_commands(
    commands: argparse._SubParsersAction,
    add_model_options: Callable[[argparse._ActionsContainer], None],
    kernel_fn_of: KernelOf,
) -> None:
    """Both subcommands, with the options of a kernel and what makes it from them."""
    command = add_command(
        commands,
        "predict",
        run_predict,
        summary="a column of one table from another table in which it is known",
        description="Fit NTKRegressor (a target of numbers) or NTKClassifier to a table, and "
        "predict for another one. Everything but the target is an input; depth, scales and ridge "
        "are chosen by the leave-one-out loss. With --store the kernel of the training rows is "
        "that of `ntk-jax kernel A.csv --drop COLUMN --out K.zarr`, with the same options.",
        examples=PREDICT_EXAMPLES,
    )
    command.add_argument("--test", type=Path, required=True, metavar="B.csv")
    command.add_argument("--out", type=Path, metavar="P.csv", help="default: stdout")
    stored = command.add_argument_group("from a kernel on the disk")
    stored.add_argument("--store", type=Path, metavar="K.zarr", help="of the training rows")
    stored.add_argument("--ridge", type=float, default=1e-3, help="of the kernel's mean diagonal")
    add_model_options(stored)
    command.set_defaults(kernel_fn_of=kernel_fn_of)
    _add_options(command)
    command = add_command(
        commands,
        "explain",
        run_explain,
        summary="which training rows move the predictions most",
        description="For each row of --test, or of the training table itself, the training rows "
        "that move its prediction most, and by how much it would fall without them.",
        examples=EXPLAIN_EXAMPLES,
    )
    command.add_argument("--test", type=Path, metavar="B.csv", help="default: the training rows")
    command.add_argument("--top", type=int, default=5, help="training rows for each")
    command.add_argument("--out", type=Path, metavar="E.csv", help="default: stdout")
    _add_options(command)


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--train", type=Path, required=True, metavar="A.csv")
    command.add_argument("--target", required=True, metavar="COLUMN")
    command.add_argument("--task", choices=("regression", "classification"))
    command.add_argument("--kernel", choices=("ntk", "nngp"), default="ntk")
    command.add_argument("--method", choices=("ridge", "gp"), default="ridge")
    command.add_argument("--activation", default="relu", help="a name of ntk_jax.duals")
    command.add_argument("--depth", type=int, help="hidden layers (default: chosen)")
    add_table_options(command)


def run_predict(args: argparse.Namespace) -> int:
    """Fit, predict, save."""
    check_out(args.out)
    if args.store is not None:
        return _predict_from_store(args)
    task, test = _task(args), read_table(args.test)
    x_test = task.encode(test)
    notify(task.encode.notices)
    model = _fitted(args, task)
    if task.classes:
        names = [str(c) for c in model.classes_]
        header = ["prediction", *(f"p({name})" for name in names)]
        probabilities = model.predict_proba(x_test)
        best = model.classes_[probabilities.argmax(axis=1)]
        rows = [[str(b), *map(_digits, p)] for b, p in zip(best, probabilities, strict=True)]
    else:
        header = ["prediction", "std"]
        rows = [[_digits(m), _digits(s)] for m, s in zip(*model.predict(x_test, True), strict=True)]
    _write(args, header, rows)
    if args.out is not None or args.json:
        results: dict[str, object] = {
            "task": "classification" if task.classes else "regression",
            "rows": len(task.x),
            "kernel": str(model.kernel_),
            "ridge": model.ridge_,
            f"leave-one-out {'accuracy' if task.classes else 'R2'}": model.leave_one_out_score_,
        }
        if args.out is None:
            results["predictions"] = [dict(zip(header, row, strict=True)) for row in rows]
        else:
            results["out"] = str(args.out)
        show(args, results)
    return 0


def _predict_from_store(args: argparse.Namespace) -> int:
    """Regression with a kernel on the disk, which is read where memory holds it and a factor of it,
    and else only multiplied with.
    """
    task, test = _task(args), read_table(args.test)
    args.depth = 2 if args.depth is None else args.depth
    x_test = as_inputs(task.encode(test), task.x, raw=args.raw)
    notify(task.encode.notices)
    kernel_fn, x = args.kernel_fn_of(args, as_inputs(task.x, task.x, raw=args.raw))
    store = KernelStore.open(args.store)
    store.check(kernel_fn, x)
    on_disk, x_test = getattr(store, args.kernel), x_test.reshape(len(x_test), *x.shape[1:])
    free = free_bytes()
    if free is None or 2 * math.prod(store.shape) * store.dtype.itemsize < free:
        one = lambda x1, x2=None: getattr(kernel_fn(x1, x2), args.kernel)
        k, k_test = np.asarray(on_disk), tile(one)(x_test, x)
    else:
        k = on_disk
        k_test = kernel_operator(kernel_fn, x_test, x, kernel=args.kernel, storage="recompute")
    classes = np.unique(task.y)
    y = np.asarray(task.y[:, None] == classes if task.classes else task.y[:, None], store.dtype)
    ridge = args.ridge * float(np.mean(on_disk.diagonal()))
    fit = kernel_regression(k, y - y.mean(axis=0), k_test, diag_reg=ridge)
    found = np.asarray(fit.test) + y.mean(axis=0)
    header, rows = ["prediction"], [[_digits(value)] for value in found[:, 0].tolist()]
    if task.classes:
        header += [f"score({name})" for name in classes]
        best = classes[found.argmax(axis=1)]
        rows = [[str(b), *map(_digits, s)] for b, s in zip(best, found.tolist(), strict=True)]
    _write(args, header, rows)
    if args.out is not None:
        show(args, {"rows": len(x), "store": str(args.store), "out": str(args.out)})
    elif args.json:
        show(args, {"predictions": [dict(zip(header, row, strict=True)) for row in rows]})
    return 0


def run_explain(args: argparse.Namespace) -> int:
    """Fit, name the most influential training rows, by their line in the file."""
    check_out(args.out)
    if args.top < 1:
        raise ValueError(f"--top: expected at least 1; got {args.top}.")
    task = _task(args)
    test = task.table if args.test is None else read_table(args.test)
    x_test = task.encode(test)
    notify(task.encode.notices)
    model = _fitted(args, task)
    found, predictions = model.explain(x_test, top=args.top), model.predict(x_test)
    where = "row" if task.table.lines is None else "line"
    header = [f"test {where}", "prediction", f"training {where}", "target", "change"]
    rows = []
    for i, (numbers, changes) in enumerate(zip(*found, strict=True)):
        for j, change in zip(numbers, changes, strict=True):
            given = [
                _line(test, i),
                _text(predictions[i]),
                _line(task.table, int(j)),
                _text(task.y[j]),
            ]
            rows.append([*given, _digits(change)])
    _write(args, header, rows)
    if args.json and args.out is None:
        show(args, {"influences": [dict(zip(header, row, strict=True)) for row in rows]})
    elif args.out is not None:
        show(args, {"rows": len(x_test), "out": str(args.out)})
    return 0


def _task(args: argparse.Namespace) -> Task:
    """The training table without rows that have no target.

    Raises:
        ValueError: nothing to learn from: a target that is constant, of one class, or no number.
    """
    table = read_table(args.train).without(args.drop)
    cells = table.column(args.target)
    known = [i for i, cell in enumerate(cells) if cell is not None]
    if len(known) < len(cells):
        notify([f"column {args.target}: {len(cells) - len(known)} rows without it left out"])
        table = table.rows(known)
    if len(known) < 2:
        raise ValueError(
            f"{args.train}, column {args.target}: expected at least 2 rows with a target; got "
            f"{len(known)}."
        )
    classes = args.task == "classification" or (
        args.task is None and not is_numeric(table, args.target)
    )
    if classes:
        y = np.array([text_of(cell) for cell in table.column(args.target)])
    else:
        y = numbers_of(table, args.target)
        if args.task is None and look_like_classes(y):
            notify(
                [f"column {args.target}: whole numbers, as a regression (--task classification?)"]
            )
    if len(np.unique(y)) < 2:
        what = "at least two classes" if classes else "a target that varies"
        raise ValueError(
            f"{args.train}, column {args.target}: expected {what}; got {_text(y[0])} in all "
            f"{len(y)} rows."
        )
    inputs = table.without([args.target])
    encode = encoder(inputs)
    x = encode(inputs)
    if x.shape[1] > len(x):
        notify([f"{args.train}: more inputs ({x.shape[1]}) than rows ({len(x)})"])
    return Task(table, encode, x, y, classes)


def _fitted(args: argparse.Namespace, task: Task):
    """The estimator, which is imported where scikit-learn is."""
    from ntk_jax.estimators import NTKClassifier, NTKRegressor

    print(f"fit {len(task.x)} rows of {task.x.shape[1]} inputs ...", file=sys.stderr)
    estimator = NTKClassifier if task.classes else NTKRegressor
    depth = "auto" if args.depth is None else args.depth
    options = {"kernel": args.kernel, "method": args.method, "activation": args.activation}
    return estimator(depth=depth, **options).fit(task.x, task.y)


def _write(args: argparse.Namespace, header: list[str], rows: list[list[str]]) -> None:
    """To the file, or to stdout where nothing else is written."""
    if args.out is None and args.json:
        return
    opened = (
        nullcontext(sys.stdout)
        if args.out is None
        else args.out.open("w", newline="", encoding="utf-8")
    )
    with opened as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _line(table: Table, row: int) -> str:
    return str(row + 1 if table.lines is None else table.lines[row])


def _digits(value: float) -> str:
    return f"{value:.8g}"


def _text(value: object) -> str:
    return _digits(float(value)) if isinstance(value, float | np.floating) else str(value)
