"""Compiles front doors for one device; a line of JSON each: `python -m
benchmarks.ahead.compile_doors h100 2048 [name ...]`.
"""

import json
import sys
import time
from typing import Any

from benchmarks.ahead.devices import compile_for, device
from benchmarks.ahead.hlo import CALLBACKS, COLLECTIVES, read_program
from cases.device_doors import Door, doors

MIB = 2**20


def compiled_row(name: str, door: Door, where: Any, keep: str | None = None) -> dict[str, Any]:
    """What the compiled program of a front door launches, and holds."""
    start = time.perf_counter()
    compiled = compile_for(where, door.call, door.arguments)
    seconds, text = time.perf_counter() - start, compiled.as_text()
    if keep:
        with open(keep, "w") as out:
            out.write(text)
    program, memory = read_program(text), compiled.memory_analysis()
    return {
        "door": name,
        "launches": program.launches,
        "in_branches": program.in_branches,
        "loops": [list(loop) for loop in program.loops],
        "most_trips": max((loop.trips or 0 for loop in program.loops), default=0),
        "open_loops": sum(loop.trips is None for loop in program.loops),
        "temporary_mib": memory.temp_size_in_bytes / MIB,
        "output_mib": memory.output_size_in_bytes / MIB,
        "library_calls": program.library_calls,
        "collectives": program.of(*COLLECTIVES),
        "callbacks": program.of(*CALLBACKS),
        "complex": program.has_complex,
        "compile_s": seconds,
    }


def main(target: str, n: str, *names: str) -> None:
    """Compile and print."""
    where = device(target)
    for name, door in doors(int(n)).items():
        if not names or name in names:
            try:
                row = compiled_row(name, door, where)
            except Exception as error:  # the table says so, and goes on
                row = {"door": name, "error": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps({"target": target, "n": int(n), **row}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
