"""What google/neural-tangents gives for the lines of `cases/neural_tangents.py`, and its names.

Run in an environment that has it, as `python -m benchmarks peers` makes one under `.peers`:
`PYTHONPATH=. .peers/neural_tangents/bin/python tests/references/migration.py`.
"""

import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from cases.neural_tangents import DATA, THEIRS, VALUES

PATH = Path(__file__).with_suffix(".json")


def public_names(nt):
    """Of the package, and of its three modules."""
    found = [n for n in dir(nt) if n[0] != "_" and n not in ("predict", "stax", "experimental")]
    for module in ("predict", "stax", "experimental"):
        inside = vars(getattr(nt, module)).items()
        found += [
            f"{module}.{n}" for n, v in inside if n[0] != "_" and not isinstance(v, ModuleType)
        ]
    return found


def main():
    """Write the values."""
    jax.config.update("jax_enable_x64", True)
    here: dict = {}
    exec(DATA + THEIRS, here)
    values = {}
    for line in VALUES:
        leaves = jax.tree_util.tree_leaves(_as_tuple(eval(line.theirs, here)))
        values[line.name] = [np.round(np.asarray(a, float), 12).tolist() for a in leaves]
    found = {"version": here["nt"].__version__, "names": public_names(here["nt"]), "values": values}
    PATH.write_text(json.dumps(found) + "\n")


def _as_tuple(value):
    return tuple(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    main()
