"""Python environments for what does not go with the project's own: built where missing."""

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of an environment with these packages, which are installed where they are not."""
    python, wanted = folder / "bin" / "python", "\n".join(requirements)
    built = _stamp(folder).read_text() if is_ready(folder) else None
    if built != wanted:
        print(f"building {folder} ...", flush=True)
        if built is None:
            venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        _stamp(folder).write_text(wanted)
    return python


def is_ready(folder: Path) -> bool:
    """Whether an environment was built to the end."""
    return _stamp(folder).exists()


def _stamp(folder: Path) -> Path:
    return folder / ".ready"
