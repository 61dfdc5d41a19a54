"""One Python environment per peer, built where it is missing."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    python = _environment(peer) if peer in REQUIREMENTS else sys.executable
    return [str(python), "-u", "-m", f"benchmarks.peer_processes.with_{peer}"]


def _environment(peer: str) -> Path:
    folder = FOLDER / peer
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        print(f"building the environment of {peer} in {folder} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]], check=True)
        ready.touch()
    return python
