"""The README's Python blocks run, in order, in one namespace, as a reader would type them."""

import re
from pathlib import Path

import jax
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_python_blocks_run(monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, str(README), "exec"), namespace)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?://|#)([^)]+)\)", README.read_text()))
def test_linked_files_exist(target):
    assert (README.parent / target).exists()


@pytest.mark.parametrize("command", ["demo", "test"])
def test_commands_exist(command):
    assert f"make {command}" in README.read_text()
    assert re.search(rf"^{command}:", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
