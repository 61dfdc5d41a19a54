"""What the build of the documentation makes itself: the reference of every public name, tables of
measured numbers, formulas.

`<!-- results FILE.json | column "title" format | ... -->` in a page becomes a table of that file in
`benchmarks/results`, with the machine and the date that it was measured on: no number is typed.
"""

import base64
import html
import importlib
import inspect
import json
import re
import struct
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

import ntk_jax
from cases.neural_tangents import OURS, SECTIONS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Files that are not written by the benchmark of their name.
COMMANDS = {
    "tabular_rows": "python -m benchmarks tabular --rows 30000",
    "scale_store": "python -m benchmarks scale --store",
    "suites": "PYTHONPATH=. python .ci/time_tests.py",
    "suite_files": "PYTHONPATH=. python .ci/time_tests.py",
}
# Rooms of the reference, in the order of a reader's work.
ROOMS = {
    "Networks": ("ntk_jax.networks",),
    "Finite width": ("ntk_jax.finite",),
    "Infinite width": ("ntk_jax.infinite", "ntk_jax.initializers"),
    "Training under a kernel": ("ntk_jax.modes", "ntk_jax.dynamics"),
    "Regression and Gaussian processes": ("ntk_jax.inference",),
    "Scale": ("ntk_jax.scale", "ntk_jax.operators", "ntk_jax.devices"),
    "Spectrum": ("ntk_jax.spectrum",),
    "Diagnostics": ("ntk_jax.diagnostics",),
    "Training the network": ("ntk_jax.training", "ntk_jax.losses"),
    "Types": ("ntk_jax.types",),
}
SUBMODULES = ("duals", "losses", "plots", "estimators", "data")


def on_files(files, config):
    """Pages of the reference."""
    pages = reference()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def reference():
    """Path of a page -> its text: every public name once.

    Raises:
        ValueError: a name without a docstring, or in no room.
    """
    left = {name: getattr(ntk_jax, name) for name in ntk_jax.__all__ if name not in SUBMODULES}
    pages, index = {}, ["# Reference\n"]
    for title, modules in ROOMS.items():
        names = [n for n, v in left.items() if _home(v).startswith(modules)]
        slug = title.lower().replace(" ", "_")
        if names:
            pages[f"reference/{slug}.md"] = _page(title, "ntk_jax", names, left)
            index.append(_row(title, slug, names))
        left = {n: v for n, v in left.items() if n not in names}
    if left:
        raise ValueError(f"reference: no room for {', '.join(left)}")
    for module in SUBMODULES:
        inside = _public(module)
        pages[f"reference/{module}.md"] = _page(module, f"ntk_jax.{module}", list(inside), inside)
        index.append(_row(module, module, list(inside)))
    pages["reference/index.md"] = "\n".join(index)
    return pages


def _public(module):
    """Public functions and classes of a submodule."""
    found = vars(importlib.import_module(f"ntk_jax.{module}"))
    ours = lambda v: (inspect.isfunction(v) or inspect.isclass(v)) and "ntk_jax" in v.__module__
    return {n: v for n, v in found.items() if n[0] != "_" and ours(v)}


def _row(title, slug, names):
    return f"- [{title}]({slug}.md): " + ", ".join(f"`{name}`" for name in names)


def _home(value):
    """The module that a name is from; of an alias, that of types."""
    home = getattr(value, "__module__", "")
    return home if home.startswith("ntk_jax") else "ntk_jax.types"


def _page(title, module, names, values):
    blocks = [f"# {title}\n"]
    for name in names:
        value = values[name]
        is_alias = not (inspect.isfunction(value) or inspect.isclass(value))
        if not is_alias and not inspect.getdoc(value):
            raise ValueError(f"reference: {module}.{name} has no docstring")
        home = f"ntk_jax.types.{name}" if is_alias else f"{value.__module__}.{value.__qualname__}"
        blocks.append(f"::: {home}\n    options:\n      heading: {name}\n")
    return "\n".join(blocks)


def on_page_markdown(markdown, page, config, files):
    """Tables of results, and the lines that replace those of another library."""
    if "<!-- neural_tangents -->" in markdown:
        markdown = markdown.replace("<!-- neural_tangents -->", _lines())
    return re.sub(r"<!-- results (.*?) -->", lambda m: _table(m[1]), markdown, flags=re.DOTALL)


def _lines():
    """The tables of `cases/neural_tangents.py`, after what their lines share."""
    blocks = [f"```python\n{OURS.strip()}\n```"]
    for title, lines in SECTIONS.items():
        blocks.append(f"## {title}\n\n| there | here | what differs |\n| --- | --- | --- |")
        blocks[-1] += "".join(
            f"\n| `{line.name}` | {f'`{line.ours}`' if line.ours else ''} | {line.note} |"
            for line in lines
        )
    return "\n\n".join(blocks)


def _table(spec):
    """A table by `FILE.json [key=value ...] | column "title" format | ...`."""
    head, *columns = [part.strip() for part in spec.split("|")]
    name, *conditions = head.split()
    data = json.loads((RESULTS / name).read_text())
    kept = dict(c.split("=", 1) for c in conditions)
    pivot, rows = kept.pop("pivot", None), data[kept.pop("rows", "results")]
    rows = [r for r in rows if all(str(r.get(k)) == v.replace("_", " ") for k, v in kept.items())]
    if not rows:
        raise ValueError(f"{name}: no row of {kept}")
    if pivot:
        return _source(_pivoted(rows, pivot.split(","), columns[0]), data)
    keys, titles, formats = zip(*map(_column, columns), strict=True)
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    lines += [
        "| " + " | ".join(_shown(r.get(k), f) for k, f in zip(keys, formats, strict=True)) + " |"
        for r in rows
    ]
    return _source(lines, data)


def _pivoted(rows, keys, form):
    """A line per value of the first key, a column per value of the second."""
    of_line, of_column, shown = keys
    rows = [r for r in rows if r.get(shown) is not None]
    columns = list(dict.fromkeys(r[of_column] for r in rows))
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(r[of_line] for r in rows):
        mine = [r for r in rows if r[of_line] == name]
        # The best of several methods.
        found = {r[of_column]: r[shown] for r in sorted(mine, key=lambda r: -r[shown])}
        one_size = of_line != "n" and len({r["n"] for r in mine}) == 1
        size = f", n = {mine[0]['n']}" if one_size else ""
        lines.append(
            f"| {name}{size} | " + " | ".join(_shown(found.get(c), form) for c in columns) + " |"
        )
    return lines


def _source(lines, data):
    """With where the numbers are from."""
    where = data["environment"]
    said = f"{where['cpu']}, {where['cores']} cores, JAX {where['jax']}, {where['date'][:10]}"
    name = data["benchmark"]
    command = COMMANDS.get(name, f"python -m benchmarks {name}")
    return "\n".join(lines) + f"\n\n*{said}; `{command}`.*\n"


def _column(text):
    key, title, form = re.fullmatch(r'(\S+) "([^"]*)" ?(\S*)', text).groups()
    return key, title, form


def _shown(value, form):
    if value is None:
        return "–"
    if form.endswith("m"):  # seconds as milliseconds
        value, form = 1e3 * value, form[:-1]
    return format(value, form) if form else str(value)


MARKED = r'<(?:span|div) class="arithmatex">\\(?:\((?P<i>.*?)\\\)|\[(?P<b>.*?)\\\])</(?:span|div)>'
IN_CELLS = r"\$\$(?P<b>.+?)\$\$|(?<![\\$])\$(?P<i>[^$]+?)\$(?!\d)"


def on_page_content(content, page, config, files):
    """Formulas as MathML: nothing is loaded, and nothing runs, to draw them."""
    if not page.file.src_uri.endswith(".ipynb"):
        return re.sub(MARKED, _formula, content, flags=re.DOTALL)
    # Code and outputs of notebooks stay as they are.
    parts = re.split(
        r"(<(?:pre|code|script|style)\b.*?</(?:pre|code|script|style)>)", content, flags=re.DOTALL
    )
    content = "".join(
        part if i % 2 else re.sub(IN_CELLS, _formula, part, flags=re.DOTALL)
        for i, part in enumerate(parts)
    )
    return re.sub(PICTURE, _picture, content)


PICTURE = r'<img(?P<attributes>[^>]*src="data:image/png;base64,\s*(?P<data>[A-Za-z0-9+/]{32}))'


def _picture(found):
    """A picture of several panels is marked: a phone shows it by a part at a time."""
    width, height = struct.unpack(">II", base64.b64decode(found["data"])[16:24])
    wide = ' class="wide"' if width > 1.7 * height else ""
    return f"<img{wide}{found['attributes']}"


def _formula(found):
    block = found["b"] is not None
    text = html.unescape(found["b"] if block else found["i"])
    return convert(text.strip(), display="block" if block else "inline")
