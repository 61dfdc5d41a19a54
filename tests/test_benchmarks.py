"""The benchmark harness is right about what it measures; no test looks at the wall clock."""

import json
import math
import types

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import accuracy, gpu, harness, kernels, limits, memory
from benchmarks.on_device import parity
from cases.compilations import optimized

pytestmark = pytest.mark.slow


class FakeClock:
    """Seconds that pass only when a case says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def case(self, name, durations):
        """A function whose calls take the given seconds, in order."""
        remaining = iter(durations)

        def call():
            self.log.append(name)
            self.now += next(remaining)
            return jax.numpy.zeros(())

        return call


def test_cases_are_interleaved():
    clock = FakeClock()
    cases = {name: clock.case(name, [1.0] * 5) for name in "ab"}
    harness.measure(cases, repeats=3, warmup=1, clock=clock)
    assert "".join(clock.log) == "ab" * 2 + "ab" + "ba" + "ab"


def test_first_call_warmup_and_median_are_kept_apart():
    clock = FakeClock()
    cases = {
        "a": clock.case("a", [9.0, 7.0, 1.0, 3.0, 2.0]),
        "b": clock.case("b", [1.0, 1.0, 2.0, 3.0, 8.0]),
    }
    timings = harness.measure(cases, repeats=3, warmup=1, clock=clock)
    assert timings["a"] == harness.Timing(9.0, (1.0, 3.0, 2.0))
    assert timings["a"].median == 2.0
    assert timings["a"].compile == 7.0
    assert timings["b"].compile == 0.0  # never negative
    assert timings["b"].ratio(timings["a"]) == 2.0  # median of 2, 1, 4
    record = timings["a"].record()
    assert (record["min_s"], record["max_s"], record["rounds_s"]) == (1.0, 3.0, [1.0, 3.0, 2.0])


def test_budget_ends_the_rounds_but_leaves_three():
    clock = FakeClock()
    cases = {name: clock.case(name, [1.0] * 20) for name in "ab"}
    assert {
        len(t.rounds) for t in harness.measure(cases, repeats=9, budget=0.5, clock=clock).values()
    } == {3}
    assert {
        len(t.rounds) for t in harness.measure(cases, repeats=9, budget=9.0, clock=clock).values()
    } == {5}


def test_a_case_is_waited_for():
    waited = []
    result = types.SimpleNamespace(block_until_ready=lambda: waited.append(True))
    harness.measure({"a": lambda: result}, repeats=2, warmup=1)
    assert len(waited) == 4


def test_memory_probe_sees_a_known_allocation():
    # A parent larger than the case must not hide it: on Linux ru_maxrss is inherited.
    ballast = np.ones(300 << 20, np.uint8)
    used = memory.peak_memory("benchmarks.memory:allocate", mebibytes=100).used
    assert ballast[-1] and 95 << 20 < used < 125 << 20


def test_memory_is_read_where_proc_is_missing(monkeypatch):
    here = memory._peak_bytes()
    monkeypatch.setattr(memory, "STATUS", memory.Path("/no/such/file"))
    assert memory._peak_bytes() >= here  # ru_maxrss: at least that of this process


def test_memory_probe_reports_a_failure():
    with pytest.raises(RuntimeError, match="no_such_case"):
        memory.peak_memory("benchmarks.memory:no_such_case")


def test_environment_names_software_and_processor_but_not_the_machine():
    environment = harness.environment()
    for key in (
        "date",
        "python",
        "jax",
        "jaxlib",
        "numpy",
        "platform",
        "cpu",
        "cores",
        "backend",
        "x64",
    ):
        assert environment[key] not in (None, "")
    text = json.dumps(environment)
    assert harness.platform.node() not in text or len(harness.platform.node()) < 4
    assert str(harness.Path.home()) not in text and str(harness.RESULTS.parent) not in text


def test_json_schema(tmp_path):
    rows = [{"n": 1, "median_s": 0.5, "rounds_s": [0.123456789]}, {"n": 2}]
    path = harness.save_json(tmp_path / "new", "name", rows, {"quick": True}, note="x")
    document = json.loads(path.read_text())
    assert set(document) == {"schema", "benchmark", "environment", "options", "results", "note"}
    assert document["schema"] == harness.SCHEMA and document["note"] == "x"
    assert document["results"] == [{"n": 1, "median_s": 0.5, "rounds_s": [0.123457]}, {"n": 2}]
    with pytest.raises(ValueError, match="JSON"):
        harness.save_json(tmp_path, "name", [{"median_s": math.nan}], {})


def test_table_is_aligned_and_marks_what_is_missing():
    text = harness.table(
        [{"case": "a", "t": 1.2345}, {"case": "long"}], {"case": "", "t|time [s]": ".2f"}
    )
    assert text.splitlines() == [
        "case  time [s]",
        "----  --------",
        "   a      1.23",
        "long         –",
    ]


def test_scripts_are_listed_with_their_first_line(capsys):
    command.main([])
    out = capsys.readouterr().out
    assert "kernels" in out and kernels.__doc__.splitlines()[0] in out
    assert "harness  " not in out and "memory  " not in out


@pytest.mark.parametrize("depth", [1, 3])
def test_naive_loops_compute_the_same_kernels(depth):
    problem = kernels.Problem(n=5, width=16, depth=depth)
    gradients = kernels.naive_gradients(problem)()
    assert gradients[0].shape == (problem.num_params,) and gradients[0].dtype == np.float32
    for case in kernels.EMPIRICAL:
        k = kernels.library_case(problem, case)()
        np.testing.assert_allclose(kernels.naive_pairs(gradients)(), k, rtol=1e-4)
    analytic = kernels.library_case(problem, kernels.ANALYTIC)().ntk
    assert analytic.dtype == np.float32
    np.testing.assert_allclose(kernels.naive_analytic(problem)(), analytic, rtol=1e-4)


def test_extrapolation_scales_gradients_linearly_and_pairs_quadratically():
    parts = (4.0, harness.Timing(1.0, (1.0, 2.0))), (16.0, harness.Timing(3.0, (0.5, 0.25)))
    assert kernels.combine(*parts) == harness.Timing(52.0, (12.0, 12.0))


def test_slow_cases_are_left_out_at_larger_sizes_only():
    row = {"case": "jacobian", "n": 64, "width": 32, "depth": 2, "median_s": 2.0}
    assert kernels.slow_cases(kernels.Problem(128, 32, 2), [row], slow=1.0) == {"jacobian"}
    assert kernels.slow_cases(kernels.Problem(32, 64, 2), [row], slow=1.0) == set()
    assert (
        kernels.slow_cases(kernels.Problem(128, 32, 2), [row | {"case": kernels.NAIVE}], slow=1.0)
        == set()
    )


def test_quick_run_leaves_valid_files(tmp_path, capsys):
    command.main(["kernels", "--quick", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "kernels.json").read_text())
    assert document["options"]["quick"] is True
    cases = {row["case"] for row in document["results"]}
    assert cases == {*kernels.EMPIRICAL, kernels.ANALYTIC, kernels.NAIVE, kernels.NAIVE_ANALYTIC}
    for row in document["results"]:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"] and row["share_of_matmul"] > 0
        extrapolated = (
            row["case"] in (kernels.NAIVE, kernels.NAIVE_ANALYTIC)
            and row["n"] > row["naive_measured_n"]
        )
        assert bool(row.get("extrapolated_from_n")) == extrapolated
    assert all(row["used_bytes"] > 0 for row in document["memory"])
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert all(
        word in out
        for word in ("Against n", "Against width", "Against depth", "Memory", "extrapolated")
    )


def test_dynamics_quick_run(tmp_path, capsys):
    command.main(["dynamics", "--quick", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "dynamics.json").read_text())
    assert [row["case"] for row in document["results"]] == [
        "diagonalize",
        "flow",
        "flow, test outputs only",
        "descent, momentum",
        "one time by expm",
    ]
    assert all(row["median_s"] > 0 and row["over_diagonalize"] > 0 for row in document["results"])
    assert "/ diagonalize" in capsys.readouterr().out


def test_accuracy_quick_run_and_that_closed_forms_with_kinks_were_measured(tmp_path):
    command.main(["accuracy", "--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "accuracy.json").read_text())["results"]
    assert {(row["activation"], row["depth"]) for row in rows} == {
        (name, depth) for name in ("relu", "step") for depth in (1, 3)
    }
    measured = json.loads((harness.RESULTS / "accuracy.json").read_text())["results"]
    closed = {"abs", "leaky_relu", "rectifier", "relu", "sign", "step"}
    assert closed < {row["activation"] for row in measured} <= set(accuracy.kinked_names())


def test_equations_inside_calls_count_too():
    jaxpr = jax.make_jaxpr(lambda x: jax.jit(lambda y: y * y + 1)(x) - 2)(1.0).jaxpr
    assert limits.equations(jaxpr) == 4  # the call, two inside, one after


def test_peers_quick_run_compares_results_before_times(tmp_path):
    command.main(["peers", "--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "peers.json").read_text())["results"]
    assert [row["peer"] for row in rows] == ["ntk_jax", "naive"]
    assert rows[0]["difference"] == 0 < rows[1]["difference"] < 1e-5
    assert all(row["median_s"] > 0 and row["peak_mib"] > 50 for row in rows)


def test_a_run_on_a_device_compares_all_and_measures_all(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SPEED_UNTIL", 1e4)
    monkeypatch.setattr(gpu, "DOUBLE_UNTIL", 1e4)
    with optimized(False):  # other tests hold optimized programs against their truths
        command.main(["gpu", "--quick", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["options"]["failed"] == []
    compared = {(row["case"], row["dtype"]) for row in document["parity"]}
    assert {(name, dtype) for name in parity.cases() for dtype in parity.TOLERANCES} <= compared
    measured = document["results"]
    assert not any("error" in row for row in measured) and all(r["seconds"] > 0 for r in measured)
    for word in ("product", "mlp_kernels", "empirical_ntk", "ResNet-18", "flat CNN", "flow"):
        assert any(word in row["case"] for row in measured)


def test_a_wrong_value_fails_parity(monkeypatch):
    right = parity.cases()["flow"]
    wrong = lambda dtype: {name: value * 1.001 for name, value in right(dtype).items()}
    monkeypatch.setattr(parity, "cases", lambda: {"flow": wrong})
    (row,) = parity.compare("float32")
    assert not row["passed"] and row["difference"] > row["tolerance"]
