"""One Python environment per peer, built where it is missing."""

import sys

from benchmarks.environments import ROOT, environment

FOLDER = ROOT / ".peers"

# google/neural-tangents needs TensorFlow and does not import on JAX newer than this.
REQUIREMENTS = {
    "neural_tangents": [
        "neural-tangents==0.6.5",
        "jax==0.4.38",
        "jaxlib==0.4.38",
        "flax==0.10.2",
        "numpy<2",
    ],
    "torch": ["torch==2.13.0", "numpy"],
}


def command(peer: str) -> list[str]:
    """What starts a peer's process; its environment is built first if it is missing."""
    known = peer in REQUIREMENTS
    python = environment(FOLDER / peer, REQUIREMENTS[peer]) if known else sys.executable
    return [str(python), "-u", "-m", f"benchmarks.peer_processes.with_{peer}"]
