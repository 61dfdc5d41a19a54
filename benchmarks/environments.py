"""Python environments for what does not go with the project's own: built where missing."""

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these packages, which is built first if it is missing."""
    python = folder / "bin" / "python"
    if not is_ready(folder):
        print(f"building {folder} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / ".ready").touch()
    return python


def is_ready(folder: Path) -> bool:
    """Whether an environment was built to the end."""
    return (folder / ".ready").exists()
