"""The notebooks with the versions that Colab has: a first cell changes none, and all cells run."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PUBLISHED = "git+https://github.com/ntk-jax/ntk_jax"
UNPUBLISHED = Path.cwd().as_uri()


def main(*paths):
    """Run notebooks from another folder, their first cells installing this tree."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert PUBLISHED in first.source, f"{path} does not install the library"
        first.source = first.source.replace(PUBLISHED, UNPUBLISHED)
        pip("uninstall", "-q", "-y", "ntk-jax")
        before, start = pins(), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            where = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
        after = pins()
        changed = {name for name, version in before.items() if after.get(name) != version}
        assert not changed, f"{path} changes {changed}"
        assert "ntk-jax" in after
        print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)


def pins():
    """Name -> version of what is installed."""
    lines = pip("list", "--format=freeze").splitlines()
    return dict(re.match(r"(\S+)==(\S+)", line).groups() for line in lines)


def pip(*arguments):
    """What it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(*sys.argv[1:])
