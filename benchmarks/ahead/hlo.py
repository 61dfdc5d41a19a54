"""What a program asks of its device, read from the text of its optimized HLO module: launches,
loops, library calls, collectives.

A launch is a fusion, a library call, a copy or any other operation that is a kernel of its own;
those in loops count once per trip, of a conditional the branch with more.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

NO_LAUNCH = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "async-done copy-done opt-barrier add-dependency".split()
)
CALLS = ("call", "async-start")
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
CALLBACKS = ("callback", "host_compute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
_LINE = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ")


class Loop(NamedTuple):
    """Trips of a loop, None where they depend on data, and launches of one trip."""

    trips: int | None
    launches: int


class Program(NamedTuple):
    """Launches by kind, how many of them in branches of conditionals, loops, and whether complex
    numbers are computed with.
    """

    kinds: Counter[str]
    in_branches: int
    loops: tuple[Loop, ...]
    has_complex: bool

    @property
    def launches(self) -> int:
        """All of them; loops that end by their data count one trip."""
        return self.kinds.total()

    def of(self, *names: str) -> list[str]:
        """The kinds of launches whose names contain one of these."""
        return sorted(kind for kind in self.kinds if any(name in kind for name in names))

    @property
    def library_calls(self) -> dict[str, int]:
        """Calls of libraries by name."""
        calls = {k.removeprefix("call:"): v for k, v in self.kinds.items() if k.startswith("call:")}
        return dict(sorted(calls.items()))


def read_program(text: str) -> Program:
    """The program of a module's text."""
    found, entry = _computations(text)
    loops: list[Loop] = []
    kinds = _Counting(found, loops).of(entry)
    always = _Counting(found, [], branches=False).of(entry)
    in_branches = kinds.total() - always.total()
    return Program(kinds, in_branches, tuple(loops), bool(re.search(r"\bc(64|128)\[", text)))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of every computation, and the name of the entry."""
    found: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            found[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name and _LINE.match(line):
            found[name].append(_LINE.sub("", line))
    return found, entry


class _Counting(NamedTuple):
    """Counts the launches of computations, with or without those in `branches` of conditionals;
    notes loops on the way.
    """

    computations: dict[str, list[str]]
    loops: list[Loop]
    branches: bool = True

    def of(self, name: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for line in self.computations.get(name, ()):
            for kind, count in self._of_instruction(line):
                total[kind] += count
        return total

    def _of_instruction(self, line: str) -> Iterator[tuple[str, int]]:
        operation = _operation(line)
        if operation == "while":
            yield from self._of_loop(line).items()
        elif operation == "conditional":
            yield "conditional", 1
            if self.branches:
                yield from max(map(self.of, _branches(line)), key=Counter.total).items()
        elif operation in CALLS:
            yield from self.of(_named(line, "to_apply|calls")).items()
        elif operation == "custom-call":
            yield "call:" + _named(line, "custom_call_target"), 1
        elif operation == "fusion":
            yield "fusion:" + _named(line, "kind"), 1
        elif operation not in NO_LAUNCH:
            yield operation, 1

    def _of_loop(self, line: str) -> Counter[str]:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        trips = int(known[1]) if known else None
        each = self.of(_named(line, "body"))
        if trips is None:  # the condition is a launch, and is waited for
            each += self.of(_named(line, "condition"))
        self.loops.append(Loop(trips, each.total()))
        return Counter({kind: count * (trips or 1) for kind, count in each.items()})


def _operation(line: str) -> str:
    """The name behind the shape, which is one word or a tuple in parentheses."""
    if line.startswith("("):
        depths = itertools.accumulate((c == "(") - (c == ")") for c in line)
        closed = next(i for i, depth in enumerate(depths) if not depth)
        rest = line[closed + 1 :].lstrip()
    else:
        rest = line.partition(" ")[2]
    return rest.partition("(")[0].strip()


def _named(line: str, attribute: str) -> str:
    found = re.search(rf'\b(?:{attribute})="?%?([\w.$\-]+)', line)
    return found[1] if found else ""


def _branches(line: str) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", line)
    if listed:
        return listed[1].replace("%", "").split(", ")
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
