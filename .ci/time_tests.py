"""How long the commands of docs/testing.md take, and every file of tests in them: runs each, into
benchmarks/results/suites.json and suite_files.json.

Without arguments all; else those named, the rest of the files stays. From a fresh clone, and
nothing else running: the first `make test` sets up and compiles.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from benchmarks.harness import RESULTS, environment, save_json

COMMANDS = ("test", "test-slow", "test-oldest", "lint")


def main(*names):
    """Raise if a command failed, after all."""
    failed = [name for name in names or COMMANDS if not timed(name)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def timed(name):
    """Run and save; whether all was well."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        start = time.perf_counter()
        reported = os.environ | {"PYTEST_ADDOPTS": f"--junitxml={report}"}
        code = subprocess.run(["make", name], check=False, env=reported).returncode
        minutes = (time.perf_counter() - start) / 60
        tests, seconds = files(report) if report.exists() else (Counter(), Counter())
    line = {"command": f"make {name}", "passed": sum(tests.values()) or None}
    save("suites", "command", [line | {"minutes": minutes, "measured": environment()["date"][:10]}])
    kind = {"test": "quick", "test-slow": "slow"}.get(name)
    if kind:
        found = [{"file": f, kind: tests[f], f"{kind}_seconds": s} for f, s in seconds.items()]
        save("suite_files", "file", found)
    return code == 0


def files(report):
    """Tests that passed, and seconds of one worker, of every file."""
    tests, seconds = Counter(), Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname").split(".")[1]
        tests[file] += all(case.find(kind) is None for kind in ("skipped", "failure", "error"))
        seconds[file] += float(case.get("time"))
    return tests, seconds


def save(name, key, found):
    """Lines of the file replaced or added, in the order of their keys."""
    path = RESULTS / f"{name}.json"
    rows = {r[key]: r for r in json.loads(path.read_text())["results"]} if path.exists() else {}
    for row in found:
        rows[row[key]] = rows.get(row[key], {}) | row
    save_json(RESULTS, name, sorted(rows.values(), key=lambda row: row[key]), {})


if __name__ == "__main__":
    main(*sys.argv[1:])
