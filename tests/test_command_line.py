"""`ntk-jax` on awkward tables: the examples of --help, what is printed where, one-line errors."""

import csv
import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ntk_jax
from ntk_jax.cli import kernel, predict
from ntk_jax.cli.main import main
from ntk_jax.cli.options import as_bytes
from ntk_jax.data.encoding import encoder
from ntk_jax.data.reading import read_table

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 40)).round(3)
KIND = RNG.choice(["red", "green, dark", "blau"], 40)
PRICE = (A * B + (KIND == "red")).round(3)


def write(path, header, rows, *, delimiter=",", decimal=".", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows([str(c).replace(".", decimal) for c in row] for row in rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Tables as they come: with gaps, with semicolons and a byte order mark, with tabs."""
    gaps = ["" if i % 9 == 0 else "NA" if i % 9 == 1 else b for i, b in enumerate(B)]
    write(tmp_path / "train.csv", ["a", "b", "c", "kind", "price"],
          zip(A, gaps, C, KIND, PRICE, strict=True))  # fmt: skip
    write(tmp_path / "new.csv", ["price", "kind", "c", "b", "a"],
          zip(PRICE[:6], KIND[:6], C[:6], B[:6], A[:6], strict=True),
          delimiter=";", decimal=",", encoding="utf-8-sig")  # fmt: skip
    write(tmp_path / "table.csv", ["a", "price", "kind"], zip(A, PRICE, KIND, strict=True),
          delimiter="\t")  # fmt: skip
    np.save(tmp_path / "images.npy", RNG.normal(size=(6, 64)))
    (tmp_path / "my_models.py").write_text(
        "from flax import linen as nn\n\n\n"
        "def make_cnn():\n"
        "    return nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, lambda x: x.reshape(len(x), -1), "
        "nn.Dense(1)])\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def out_of(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr()


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def examples():
    texts = (predict.PREDICT_EXAMPLES, predict.EXPLAIN_EXAMPLES)
    texts += (kernel.KERNEL_EXAMPLES, kernel.SPECTRUM_EXAMPLES)
    return [line.strip() for text in texts for line in text.splitlines()[1:]]


@pytest.mark.parametrize("example", examples())
def test_examples_of_the_help_run(example, folder, capsys):
    words = shlex.split(example)
    assert words[0] == "ntk-jax"
    if "K.zarr" in words and words[1] != "kernel":
        out_of(capsys, "kernel", "train.csv", "--drop", "price", "--out", "K.zarr")
    out = out_of(capsys, *words[1:]).out
    if "--json" in words:
        json.loads(out)
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).stat().st_size > 0


def test_the_page_of_the_documentation_shows_commands_that_are_tested():
    page = (Path(ntk_jax.__file__).parent.parent / "docs" / "tabular.md").read_text()
    shown = re.findall(r"^ntk-jax .*$", page, flags=re.MULTILINE)
    known = {line.split()[1] for line in examples()} | {"demo"}
    assert {line.split()[1] for line in shown} == known


def test_the_project_installs_the_command():
    project = Path(ntk_jax.__file__).parent.parent / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["scripts"] == {
        "ntk-jax": "ntk_jax.cli.main:main"
    }


def test_predictions_are_those_of_the_estimator(folder, capsys):
    from ntk_jax.estimators import NTKRegressor

    command = "predict --train train.csv --target price --test new.csv --depth 1".split()
    captured = out_of(capsys, *command)
    assert "column b: 10 of 40 missing" in captured.err and "3 texts" in captured.err
    found = rows_of(captured.out)
    gaps = np.array([i % 9 < 2 for i in range(40)])
    b = np.where(gaps, np.median(B[~gaps]), B)
    onehot = (KIND[:, None] == np.unique(KIND)).astype(float)
    x = np.column_stack([A, b, gaps, C, onehot])
    new = np.column_stack([A, B, 0 * A, C, onehot])[:6]
    mean, std = NTKRegressor(depth=1).fit(x, PRICE).predict(new, return_std=True)
    np.testing.assert_allclose([float(r["prediction"]) for r in found], mean, rtol=1e-6)
    np.testing.assert_allclose([float(r["std"]) for r in found], std, rtol=1e-6)


def test_classes_come_with_probabilities(folder, capsys):
    command = "predict --train train.csv --target kind --test new.csv --json --depth 1".split()
    report = json.loads(out_of(capsys, *command).out)
    assert report["task"] == "classification" and 0 <= report["leave-one-out accuracy"] <= 1
    row = report["predictions"][0]
    assert {"p(red)", "p(green, dark)", "p(blau)"} < set(row)
    assert abs(sum(float(v) for k, v in row.items() if k.startswith("p(")) - 1) < 1e-6


def test_explanations_name_lines_of_the_files(folder, capsys):
    command = "explain --train train.csv --target price --top 1 --depth 1 --drop kind".split()
    found = rows_of(out_of(capsys, *command).out)
    assert [r["test line"] for r in found] == [str(i + 2) for i in range(40)]
    for row in found:
        assert float(row["target"]) == PRICE[int(row["training line"]) - 2]


def test_kernels_are_those_of_the_library(folder, capsys):
    out_of(capsys, "kernel", "table.csv", "--drop", "kind", "--raw", "--out", "K.npz")
    found = np.load("K.npz")
    x = np.column_stack([A, PRICE]).astype(np.float32)
    expected = ntk_jax.mlp_kernels(x, depth=2, W_std=2**0.5, b_std=0.1)
    np.testing.assert_allclose(found["ntk"], expected.ntk, rtol=1e-6)
    np.testing.assert_allclose(found["nngp"], expected.nngp, rtol=1e-6)


def test_spectra_are_those_of_the_library(folder, capsys):
    command = "spectrum table.csv --target price --drop kind --raw --json --out S.npz".split()
    report = json.loads(out_of(capsys, *command).out)
    k = ntk_jax.mlp_kernels(A[:, None].astype(np.float32), depth=2, W_std=2**0.5, b_std=0.1).ntk
    s = np.linalg.eigvalsh(np.asarray(k, np.float64))[::-1]
    np.testing.assert_allclose(report["largest eigenvalues"][:3], s[:3], rtol=1e-4)
    np.testing.assert_allclose(np.load("S.npz")["eigenvalues"][:3], s[:3], rtol=1e-4)
    assert 0 < report["centered alignment"] < 1


def test_a_kernel_on_the_disk_is_that_in_memory_and_is_gone_on_with(folder, capsys):
    to = lambda out: ["kernel", "table.csv", "--drop", "kind", "--out", out, "--memory", "300KB"]
    out_of(capsys, *to("K.npz"))
    report = json.loads(out_of(capsys, *to("K.zarr"), "--json").out)
    store, arrays = ntk_jax.KernelStore.open("K.zarr"), np.load("K.npz")
    np.testing.assert_array_equal(np.asarray(store.ntk), arrays["ntk"])
    assert report["mean nngp"] == pytest.approx(np.diagonal(arrays["nngp"]).mean())
    store.discard([(0, 0)])
    assert main(to("K.zarr")) == 1
    assert "--resume" in capsys.readouterr().err
    out_of(capsys, *to("K.zarr"), "--resume")
    assert store.missing() == []
    assert main([*to("K.zarr"), "--resume", "--depth", "3"]) == 1
    assert "expected the kernel function that the store was begun with" in capsys.readouterr().err


def test_a_store_has_the_spectrum_of_its_kernel(folder, capsys):
    out_of(capsys, "kernel", "train.csv", "--drop", "price", "--out", "K.zarr")
    command = "spectrum K.zarr --top 3 --json --out S.npz".split()
    report = json.loads(out_of(capsys, *command).out)
    k = np.asarray(ntk_jax.KernelStore.open("K.zarr").ntk)
    s = np.linalg.eigvalsh(k.astype(float))[::-1]
    np.testing.assert_allclose(report["largest eigenvalues"], s[:3], rtol=1e-4)
    np.testing.assert_allclose(np.load("S.npz")["eigenvalues"], s[:3], rtol=1e-4)
    assert report["trace"] == pytest.approx(s.sum(), rel=1e-5)
    rank = report["effective rank (participation)"]
    assert rank == pytest.approx(s.sum() ** 2 / np.square(s).sum(), rel=1e-5)


@pytest.mark.parametrize("memory", [None, 1], ids=["read", "multiplied"])
@pytest.mark.parametrize("target", ["price", pytest.param("kind", marks=pytest.mark.slow)])
def test_predictions_from_a_store_are_those_of_its_kernel(
    folder, capsys, target, memory, monkeypatch
):
    monkeypatch.setattr("ntk_jax.cli.predict.free_bytes", lambda: memory)
    out_of(capsys, "kernel", "train.csv", "--drop", target, "--out", "K.zarr")
    command = f"predict --store K.zarr --train train.csv --target {target} --test new.csv".split()
    rows = rows_of(out_of(capsys, *command, "--ridge", "0.01").out)
    table = read_table(Path("train.csv")).without([target])
    encode = encoder(table)
    raw, x_test = encode(table), encode(read_table(Path("new.csv")))
    store = ntk_jax.KernelStore.open("K.zarr")
    k, both = np.asarray(store.ntk, float), [(a - raw.mean(0)) / raw.std(0) for a in (x_test, raw)]
    np.testing.assert_allclose(both[1], store.x1, atol=1e-5)
    k_test = np.asarray(ntk_jax.mlp_kernels(*both, depth=2, W_std=2**0.5, b_std=0.1).ntk)
    y = PRICE[:, None] if target == "price" else (KIND[:, None] == np.unique(KIND)).astype(float)
    alpha = np.linalg.solve(k + 0.01 * np.diagonal(k).mean() * np.eye(40), y - y.mean(0))
    expected = k_test @ alpha + y.mean(0)
    columns = [name for name in rows[0] if target == "price" or name.startswith("score")]
    found = np.array([[float(row[name]) for name in columns] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    if target == "kind":
        assert [row["prediction"] for row in rows] == [*np.unique(KIND)[expected.argmax(1)]]


def test_a_store_of_other_options_is_not_predicted_from(folder, capsys):
    out_of(capsys, "kernel", "train.csv", "--drop", "price", "--out", "K.zarr")
    command = "predict --store K.zarr --train train.csv --target price --test new.csv".split()
    for more, message in (
        (["--depth", "3"], "expected the kernel function that the store was begun with"),
        (["--drop", "c"], "expected the examples that the store was made of"),
    ):
        assert main([*command, *more]) == 1
        assert message in capsys.readouterr().err


STORED = {
    "an array": ("kernel new.csv --out K.npz --resume", "expected together with --out K.zarr"),
    "memory": ("kernel new.csv --out K.zarr --memory lots", "expected a size such as 2GiB"),
    "no store": ("spectrum .", "expected a KernelStore of format 1; got nothing that is one"),
    "a target": ("spectrum . --target a", "expected together with a table"),
}


@pytest.mark.parametrize("case", STORED)
def test_bad_options_of_stores_are_one_line(folder, capsys, case):
    command, message = STORED[case]
    assert main(command.split()) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, size", [("2GiB", 2**31), ("500MB", 5 * 10**8), ("1.5 kib", 1536), ("100000", 10**5)]
)
def test_sizes_have_units(text, size):
    assert as_bytes(text) == size


def test_arrays_are_tables(folder, capsys):
    np.savez("both.npz", x=np.column_stack([A, B]), y=PRICE)
    np.save("new.npy", np.column_stack([A, B])[:3])
    command = "predict --train both.npz --target y --test new.npy --depth 1".split()
    assert len(rows_of(out_of(capsys, *command).out)) == 3


def test_parquet_is_read_where_pyarrow_is(folder):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"a": [1.0, None], "k": ["x", "y"]}), "t.parquet")
    assert read_table("t.parquet").columns == {"a": [1.0, None], "k": ["x", "y"]}


def test_parquet_without_pyarrow_names_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert main(["kernel", "t.parquet", "--out", "K.npz"]) == 1
    assert "pip install pyarrow" in capsys.readouterr().err


def test_quoted_cells_may_hold_lines_and_delimiters(folder):
    Path("q.csv").write_text('a,text\n1,"two\nlines"\n\n2,"a, b"\n')
    table = read_table("q.csv")
    assert table.columns["text"] == ["two\nlines", "a, b"] and table.lines == (2, 5)


def test_what_the_training_table_does_not_know_is_said(folder, capsys):
    write(folder / "odd.csv", ["a", "price", "kind"], [(1.0, 2.0, "pink"), ("", 2.0, "red")])
    command = "predict --train table.csv --target price --test odd.csv --depth 1".split()
    error = out_of(capsys, *command).err
    assert "odd.csv, line 2, column kind: 'pink' is not in the training table" in error
    assert "odd.csv, column a: 1 missing, filled" in error


def test_more_columns_than_rows_are_said_and_done(folder, capsys):
    wide = RNG.normal(size=(5, 8))
    write(folder / "wide.csv", list("abcdefgy"), wide)
    command = "predict --train wide.csv --target y --test wide.csv --depth 1".split()
    captured = out_of(capsys, *command)
    assert "more inputs (7) than rows (5)" in captured.err and len(rows_of(captured.out)) == 5


PREDICT = "predict --train {} --target y --test {}"
BAD = {
    "empty": (b"", PREDICT, r"bad.csv, line 1: expected a header"),
    "header only": (b"a,y\n", PREDICT, r"bad.csv: expected rows below the header of line 1"),
    "no target": (b"a,z\n1,2\n", PREDICT, r"bad.csv: expected a column y; got a, z"),
    "constant": (b"a,y\n1,2\n3,2\n", PREDICT, r"column y: expected a target that varies; got 2 in"),
    "one class": (b"a,y\n1,x\n3,x\n", PREDICT, r"column y: expected at least two classes; got x"),
    "no targets": (b"a,y\n1,\n3,\n", PREDICT, r"column y: expected at least 2 rows with a target"),
    "ragged": (b"a,y\n1,2\n3\n", PREDICT, r"bad.csv, line 3: expected 2 cells.*got 1"),
    "latin-1": (
        "a,y\n1,ä\n".encode("latin-1"),
        PREDICT,
        r"bad.csv, line 2: expected text in UTF-8",
    ),
    "names": (b"a,a,y\n1,2,3\n", PREDICT, r"line 1: .*a is that of columns 1 and 2"),
    "nameless": (b"a,,y\n1,2,3\n", PREDICT, r"line 1: .*column 2 has none"),
    "quote": (b'a,y\n1,"2\n3,4\n', PREDICT, r"bad.csv, line 2: .*quotation mark left open"),
    "a text": (b"a,y\n1,2\n2,3\nx,4\n", PREDICT, r"line 4, column a: expected a number.*'x'"),
    "infinite": (b"a,y\n1,2\ninf,3\n", PREDICT, r"line 3, column a: expected a finite number"),
    "only target": (b"y\n1\n2\n", PREDICT, r"expected a column besides the target"),
    "drop": (b"a,y\n1,2\n", "spectrum {} --drop z", r"bad.csv: expected a column z"),
    "out": (b"a,y\n1,2\n", "kernel {} --out no/where.npz", r"--out: expected a file in a folder"),
    "model": (b"a,y\n1,2\n", "kernel {} --model x --out K.npz", r"--model: expected PACKAGE"),
    "shape": (b"a,y\n1,2\n", "kernel {} --shape 2 --out K.npz", r"--shape: .*--model"),
    "activation": (b"a,y\n1,2\n", "spectrum {} --activation x", r"activation: expected"),
    "names of rows": (
        b"a,id,y\n" + b"".join(b"%d,u%d,%d\n" % (i, i, i % 3) for i in range(12)),
        PREDICT,
        r"column id: expected numbers, or texts that rows share; .*such as 'u0'.*--drop id",
    ),
    "equal rows": (b"a,y\n1,2\n1,3\n", "spectrum {} --target y", r"bad.csv: expected inputs that"),
    "missing file": (None, "spectrum {}", r"bad.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_where(case, folder, capsys):
    content, command, message = BAD[case]
    if content is not None:
        (folder / "bad.csv").write_bytes(content)
    arguments = command.replace("{}", "bad.csv").split()
    assert main(arguments) == 1
    captured = capsys.readouterr()
    error = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and re.search(message, error[0]), captured.err
    assert captured.out == "" and "Traceback" not in captured.err
    with pytest.raises((ValueError, OSError)):
        main([*arguments, "--debug"])


def test_columns_of_any_scale_and_constant_ones_are_standardized(folder, capsys):
    rng = np.random.default_rng(0)
    a, y = rng.normal(size=20), rng.normal(size=20)
    write(folder / "plain.csv", ["a", "y"], zip(a, y, strict=True))
    write(
        folder / "large.csv",
        ["a", "b", "y"],
        ((1e300 * u, 0.1, v) for u, v in zip(a, y, strict=True)),
    )
    write(folder / "new.csv", ["a", "b"], ((1e300 * u, 0.3) for u in a))
    plain = rows_of(
        out_of(capsys, *"predict --train plain.csv --target y --test plain.csv".split()).out
    )
    large = rows_of(
        out_of(capsys, *"predict --train large.csv --target y --test new.csv".split()).out
    )
    np.testing.assert_allclose(
        [float(row["prediction"]) for row in large],
        [float(row["prediction"]) for row in plain],
        rtol=1e-6,
    )
    spectra = [
        json.loads(out_of(capsys, "spectrum", name, "--drop", "y", "--json").out)["trace"]
        for name in ("plain.csv", "large.csv")
    ]
    # A constant column is 0, and counts in the number of inputs alone.
    assert spectra[0] > spectra[1] > spectra[0] / 2


def test_few_whole_numbers_may_be_classes_and_that_is_said(folder, capsys):
    write(folder / "labels.csv", ["a", "y"], [(i, i % 2) for i in range(12)])
    command = "predict --train labels.csv --target y --test labels.csv --depth 1".split()
    assert "--task classification" in out_of(capsys, *command).err
    assert "--task" not in out_of(capsys, *command, "--task", "regression").err


def test_pickled_arrays_are_refused(folder, capsys):
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert main(["spectrum", "objects.npy"]) == 1
    assert "not unpickled" in capsys.readouterr().err


def test_wrong_usage_has_its_own_status(capsys):
    for arguments in ([], ["predict"], ["kernel", "a.csv"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_an_encoder_keeps_what_the_training_table_said(folder):
    table = read_table("train.csv").without(["price"])
    encode = encoder(table)
    first = encode(table.rows([0]))
    assert first.shape == (1, 7) and first[0, 2] == 1  # b is missing there, and marked
    np.testing.assert_array_equal(encode(table)[:1], first)
