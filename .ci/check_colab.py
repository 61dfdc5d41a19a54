"""The notebooks with the versions that Colab has: first cells touch no pins, and all cells run."""

import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

INSTALLED = r'%pip install -q "ntk-jax\[(.*?)\] @ git\+https://github.com/ntk-jax/ntk_jax"'


def main(folder):
    """Install this tree as the first cell of every notebook would, then run the notebook."""
    for path in sorted(Path(folder).glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        extras = re.search(INSTALLED, first.source)[1]
        before = pins()
        pip("install", "-q", f"ntk-jax[{extras}] @ file://{Path.cwd()}")
        after = pins()
        changed = {name for name, version in before.items() if after.get(name) != version}
        assert changed <= {"ntk-jax"}, f"{path.name} changes {changed}"
        start = time.perf_counter()
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


def pins():
    """Name -> version of what is installed."""
    lines = pip("list", "--format=freeze").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def pip(*arguments):
    """What it prints."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(sys.argv[1])
