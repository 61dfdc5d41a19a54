"""Write limits.json: Monte-Carlo estimates of the kernels of every architecture in
cases.architectures, by cases.wide_networks.

    PYTHONPATH=.:tests python tests/references/limits.py [NAME ...]

About five minutes on two cores. Widths are such that terms of order 1/width are small beside the
standard errors.
"""

import json
import sys
from pathlib import Path

import numpy as np

from cases.architectures import CASES, SAMPLED, init_and_apply
from cases.wide_networks import estimate

PATH = Path(__file__).with_suffix(".json")
WIDTHS = {"dense": 512, "image": 128, "sequence": 256, "graph": 256}
NARROWER = {"flax_mnist": 64, "wide_resnet": 64}
WIDER = {"group_norm": 512}  # 128 channels in each group, which are what must be many
NUM_SAMPLES = 200


def reference(case):
    """Width, number of networks, and the estimates as lists."""
    x = case.inputs()
    width = {**NARROWER, **WIDER}.get(case.name, WIDTHS[case.tags.split()[0]])
    networks = 128 if case.name in NARROWER else NUM_SAMPLES
    found = estimate(
        lambda width, outputs: init_and_apply(case.build(width, outputs), x), x, width, networks
    )
    arrays = {
        name: [[float(f"{v:.6g}") for v in row] for row in np.asarray(value)]
        for name, value in found._asdict().items()
    }
    return {"width": width, "networks": networks, **arrays}


def main(names):
    document = json.loads(PATH.read_text()) if PATH.exists() else {}
    for case in [*CASES, *SAMPLED]:
        if not names or case.name in names:
            document[case.name] = reference(case)
            print(case.name, flush=True)
    rows = (f" {json.dumps(name)}: {json.dumps(row)}" for name, row in document.items())
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
