"""The Python blocks of README and documentation run, page by page, as a reader would type them, and
print what they say.
"""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
LINKS = [
    (page.relative_to(ROOT), target)
    for page in PAGES
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", BLOCK.sub("", page.read_text()))
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda page: page.stem
)
def test_python_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in BLOCK.findall(page.read_text()):
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(block, str(page), "exec"), namespace)
            for line in re.findall(r"^# (.*)$", block.rstrip(), flags=re.MULTILINE)[-1:]:
                if block.rstrip().endswith(line):  # a comment at the end is what it prints
                    assert said.getvalue().rstrip().endswith(line)


@pytest.mark.parametrize(("page", "target"), LINKS, ids=map("{0[0]}->{0[1]}".format, LINKS))
def test_linked_files_exist(page, target):
    generated = target.startswith("reference/")
    assert generated or ((ROOT / page).parent / target).exists()


@pytest.mark.parametrize("command", ["demo", "test"])
def test_commands_exist(command):
    assert f"make {command}" in README.read_text()
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


def test_every_public_name_has_its_place_in_the_reference():
    site = ROOT / "docs" / "site" / "build.py"
    rooms = re.findall(r'"(ntk_jax\.[a-z_]+)"', site.read_text())
    import ntk_jax

    for name in set(ntk_jax.__all__) - {"duals", "losses"}:
        home = getattr(getattr(ntk_jax, name), "__module__", "")
        assert not home.startswith("ntk_jax") or home.startswith(tuple(rooms)), name


UNITS = "s|ms|µs|seconds?|minutes?|hours?|[kKMGT]i?B|[MGT]?flops?|%|times as|ulps"
NUMBERS = r"[\d,]*\.?\d+[ -]?|(?:two|three|four|five|six|seven|eight|nine|ten)[ -]"
AMOUNT = re.compile(rf"(?<![\w.^])(?:{NUMBERS})(?:{UNITS})(?![\w%])")
# Amounts that nobody measured on a machine: settings, aims, bounds of a test, and what is quoted.
NOT_MEASURED = {
    "accelerators": {"16 GiB"},  # assumed for a device that is not there
    "scaling": {"10 s", "300 s"},  # timeouts
    "testing": {"6 minutes"},  # an aim
    "training": {"4 %"},  # the bound of test_wide_networks
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_measured_numbers_come_from_the_files_of_results(page):
    """No time, memory or share is typed, but by a test or notebook that its row names (sources),
    or where a section says that it is a calculation.
    """
    text = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"^## [^\n]*, on paper\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    found = set(AMOUNT.findall(text)) if page.stem != "sources" else set()
    assert found == NOT_MEASURED.get(page.stem, set())
