"""The published protocol for tables, end to end on a small set in its layout."""

import json
import types

import numpy as np
import pytest

import ntk_jax
from benchmarks import tables, tabular

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))


def write_rows(path, parts):
    path.write_text("\n".join(" ".join(map(str, part)) for part in parts) + "\n")


@pytest.fixture
def uci(tmp_path):
    """Two sets in the UCI-121 layout, and one with a test set of its own, which does not count."""
    for name in ("rings", "stripes", "other"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        y = (np.sum(X**2, axis=1) > 2.4 if name == "rings" else X[:, 0] > 0).astype(int)
        lines = [f"{i + 1}\t" + "\t".join(map(str, x)) + f"\t{c}" for i, (x, c) in
                 enumerate(zip(X, y, strict=True))]  # fmt: skip
        header = "\tf1\tf2\tf3\tclase"
        (folder / f"{name}_R.dat").write_text("\n".join([header, *lines]) + "\n")
        facts = ["n_entradas= 3", "n_clases= 2", "n_arquivos= 1", f"fich1= {name}_R.dat"]
        facts += ["n_patrons1= 40"] + (["n_patrons2= 7"] if name == "other" else [])
        (folder / f"{name}.txt").write_text("\n".join(facts))
        order = np.random.default_rng(1).permutation(40)
        write_rows(folder / "conxuntos.dat", [order[:20], order[20:]])
        quarters = np.split(order, 4)
        write_rows(folder / "conxuntos_kfold.dat", [part for i in range(4) for part in
              (np.concatenate(quarters[:i] + quarters[i + 1 :]), quarters[i])])  # fmt: skip
    return tmp_path


def run(uci, monkeypatch=None):
    args = types.SimpleNamespace(quick=True, out=uci / "out", data=uci / "data")
    tabular.run(args)
    return json.loads((uci / "out" / "tabular.json").read_text())


@pytest.mark.slow
def test_the_protocol_runs_and_is_resumed(uci, capsys, monkeypatch):
    document = run(uci)
    rows = document["results"]
    assert {row["set"] for row in rows} == {"rings", "stripes"} and len(rows) == 2 * 6
    assert all(0.4 < row["score"] <= 1 and row["seconds"] > 0 for row in rows)
    assert all(row["sets"] == 2 and 0 < row["pma"] <= 1 for row in document["summary"])
    assert np.mean([row["rank"] for row in document["summary"]]) == pytest.approx(3.5)
    assert "NTK-SVM" in capsys.readouterr().out
    monkeypatch.setattr(tabular, "tuned", lambda *_: pytest.fail("ran again"))
    monkeypatch.setattr(tabular, "ntk_svm", lambda *_: pytest.fail("ran again"))
    assert run(uci)["results"] == rows


def test_the_layout_is_read(uci):
    assert tables.uci_problems(uci / "data") == ["rings", "stripes"]
    problem = tables.uci_problem(uci / "data", "rings")
    np.testing.assert_array_equal(problem.x, X)
    assert problem.y.tolist() == (np.sum(X**2, axis=1) > 2.4).astype(int).tolist()
    assert [len(part) for part in problem.tune] == [20, 20] and len(problem.folds) == 4
    for train, test in problem.folds:
        assert sorted([*train, *test]) == list(range(40))
    (uci / "data" / "rings" / "conxuntos.dat").write_text("1 2\n3 99\n")
    with pytest.raises(ValueError, match=r"conxuntos.dat: expected pairs of lines"):
        tables.uci_problem(uci / "data", "rings")
    with pytest.raises(ValueError, match="found none in"):
        tables.uci_problems(uci / "out")


def test_kernels_with_frozen_first_layers_are_sums_over_later_ones():
    """Θ with `frozen` layers is the sum over layers l >= frozen of K^l times all later slopes."""
    found = tabular.layer_kernels(X)
    K = X @ X.T
    terms = []
    for depth in range(tabular.DEPTH):
        terms.append(K)
        for frozen in range(depth + 1):
            i = depth * (depth + 1) // 2 + frozen
            np.testing.assert_allclose(found[i], sum(terms[frozen:]), rtol=1e-9, atol=1e-12)
        root = np.sqrt(np.diag(K))
        rho = np.clip(K / np.outer(root, root), -1, 1)
        np.fill_diagonal(rho, 1)
        slope = (np.pi - np.arccos(rho)) / (2 * np.pi)
        K = np.outer(root, root) * (np.sqrt(1 - rho**2) / (2 * np.pi) + rho * slope)
        terms = [term * slope for term in terms]
    whole = ntk_jax.mlp_kernels(X, depth=4, W_std=(3**0.5, 1, 1, 1, 1), b_std=None).ntk
    np.testing.assert_allclose(found[10], whole, rtol=1e-7)


def test_the_summary_is_that_of_the_definitions():
    scores = {"a": (1.0, 0.8), "b": (0.92, 0.8), "c": (0.5, 0.4)}
    rows = [
        {"set": str(i), "method": name, "score": value, "seconds": 1.0, "classes": True}
        for name, values in scores.items()
        for i, value in enumerate(values)
    ]
    a, b, c = tabular.summary([*rows, {**rows[0], "set": "unfinished"}])
    assert (a["accuracy"], a["p95"], a["pma"], a["rank"]) == pytest.approx((0.9, 1, 1, 1.25))
    assert (b["p90"], b["p95"], b["pma"], b["rank"]) == pytest.approx((1, 0.5, 0.96, 1.75))
    assert (c["p90"], c["pma"], c["rank"], c["seconds"]) == pytest.approx((0, 0.5, 3, 2))
