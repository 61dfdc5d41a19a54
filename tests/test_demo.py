"""The command line as a user runs it, at sizes that take seconds."""

import json

import numpy as np
import pytest

from ntk_jax.cli.main import main


def run_demo(tmp_path, *arguments):
    assert main(["demo", "--out", str(tmp_path / "out"), *arguments]) == 0
    return json.loads((tmp_path / "out" / "demo.json").read_text())


@pytest.mark.slow
def test_demo_on_both_inputs(tmp_path, capsys):
    report = run_demo(tmp_path, "--width", "256", "--depth", "1")
    out = capsys.readouterr().out
    assert set(report) == {"linear", "digits"}
    linear = report["linear"]["numbers"]
    assert linear["test MSE between network and empirical kernel"] < 0.02
    assert linear["kernel error, empirical vs analytic"] < 0.3
    assert report["digits"]["numbers"]["test accuracy, network"] > 0.8
    assert "test accuracy, network" in out
    assert report["digits"]["numbers"]["test accuracy, linear model"] > 0.5
    assert report["digits"]["numbers"]["test accuracy, mean of targets"] < 0.3
    figures = [f"{name}_{kind}.png" for name in report for kind in ("kernels", "training")]
    for name in figures:
        assert (tmp_path / "out" / name).stat().st_size > 10_000
        assert name in out.splitlines()[-1]
    curves = report["linear"]["curves"]
    assert (
        len(curves["t"])
        == len(curves["training loss"]["network"])
        == len(curves["training loss"]["empirical"])
    )


@pytest.mark.slow
def test_demo_on_a_table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    rows = [f"{a},{b},{c},{a * b + c}" for a, b, c in x]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,c,y", *rows]))
    report = run_demo(
        tmp_path,
        "--data",
        str(tmp_path / "mine.csv"),
        "--target",
        "y",
        "--width",
        "64",
        "--seed",
        "3",
    )
    assert report["mine"]["settings"]["depth"] == 2 and report["mine"]["settings"]["seed"] == 3
    assert report["mine"]["numbers"]["final training loss"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "missing.csv", "--target", "y"], "missing.csv"),
        (["--data", "missing.csv"], "--target COLUMN"),
        (["--target", "y"], "--data FILE.csv"),
        (["--width", "0"], "--width: expected at least 1"),
        (["--seed", "-1"], "--seed: expected at least 0"),
        (["--task", "regression"], "--data FILE.csv"),
    ],
)
def test_bad_arguments_are_one_line_on_stderr(arguments, message, capsys):
    assert main(["demo", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.fixture
def no_work(monkeypatch):
    """A demo that must not begin."""

    def run(settings):
        raise AssertionError("trained before the arguments were checked")

    monkeypatch.setattr("ntk_jax.cli.demo.run", run)


def test_out_that_is_a_file_is_found_before_training(tmp_path, capsys, no_work):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        assert main(["demo", "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert (
            "--out: expected a folder" in error and "is a file" in error and error.count("\n") == 1
        )


def test_matplotlib_is_asked_for_before_training(tmp_path, capsys, no_work, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert (
        "pip install 'ntk-jax[plots]" in error
        and "--no-figures" in error
        and error.count("\n") == 1
    )
    (tmp_path / "t.csv").write_text("a,b\n1,2.5\n2,3.5\n4,1.5\n3,3.25")
    with pytest.raises(AssertionError, match="trained"):  # without figures the work begins
        main(
            [
                "demo",
                "--data",
                str(tmp_path / "t.csv"),
                "--target",
                "b",
                "--out",
                str(tmp_path),
                "--no-figures",
            ]
        )


def test_a_long_field_is_one_line_on_stderr(tmp_path, capsys, no_work):
    (tmp_path / "long.csv").write_text("a,b\n1," + "9" * 131_073)
    assert (
        main(
            ["demo", "--data", str(tmp_path / "long.csv"), "--target", "b", "--out", str(tmp_path)]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "long.csv, line 2" in error and error.count("\n") == 1
