"""One peer's process: reads a problem and a file of numbers, then computes once per line of
standard input.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peer_processes.problems import Problem


def serve(make_case) -> None:
    """`make_case(problem, numbers, method)` returns a function without arguments that returns a
    NumPy-like kernel.

    The answers are one JSON object per line: seconds, and with the first call the kernel's norm and
    its corner.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is not an answer
    request = json.loads(sys.stdin.readline())
    numbers = dict(np.load(request["numbers"])) if request["numbers"] else {}
    case = make_case(Problem(**request["problem"]), numbers, request["method"])
    for _ in sys.stdin:
        start = time.perf_counter()
        out = case()
        seconds = time.perf_counter() - start
        k = np.asarray(out)
        answer = {
            "seconds": seconds,
            "norm": float(np.linalg.norm(k)),
            "corner": k[:3, :3].tolist(),
        }
        answer["peak_mib"] = _peak_kib() / 2**10
        del out, k
        print(json.dumps(answer), file=answers, flush=True)


def _peak_kib() -> int:
    # ru_maxrss would count the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0])
