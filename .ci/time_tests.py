"""How long the commands of docs/testing.md take: runs each, into benchmarks/results/suites.json.

Without arguments all; else those named, the rest of the file stays. From a fresh clone, and
nothing else running: the first `make test` sets up and compiles.
"""

import json
import re
import subprocess
import sys
import time

from benchmarks.harness import RESULTS, environment, save_json

COMMANDS = ("test", "test-slow", "test-oldest", "lint")


def main(*names):
    """Raise if a command fails."""
    path = RESULTS / "suites.json"
    rows = {row["command"]: row for row in json.loads(path.read_text())["results"]}
    for name in names or COMMANDS:
        start = time.perf_counter()
        done = subprocess.run(["make", name], capture_output=True, text=True, check=True)
        passed = re.search(r"(\d+) passed", done.stdout)
        rows[f"make {name}"] = {
            "command": f"make {name}",
            "minutes": (time.perf_counter() - start) / 60,
            "passed": int(passed[1]) if passed else None,
            "measured": environment()["date"][:10],
        }
    save_json(path.parent, "suites", list(rows.values()), {})


if __name__ == "__main__":
    main(*sys.argv[1:])
