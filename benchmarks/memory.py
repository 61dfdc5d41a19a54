"""Peak memory of one call, measured in a fresh process: `python -m benchmarks.memory
MODULE:FUNCTION JSON`.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.processes import in_fresh_process

STATUS = Path("/proc/self/status")


class Memory(NamedTuple):
    """Bytes of host memory: held before the call (imports and inputs), and at most during it;
    seconds of the call.
    """

    baseline: int
    peak: int
    seconds: float

    @property
    def used(self) -> int:
        """What the call needed, its compilation included."""
        return self.peak - self.baseline


def peak_memory(target: str, **arguments: Any) -> Memory:
    """The memory of one call of `make_case(**arguments)()` in a process that does nothing else.

    Args:
        target: "module:make_case", importable from the root of the repository; `make_case` builds
            the inputs, which count as baseline, and returns the function without arguments that is
            measured.
        arguments: anything JSON can carry.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    return Memory(**in_fresh_process("benchmarks.memory", target, json.dumps(arguments)))


def allocate(mebibytes: int) -> Callable[[], Any]:
    """A case of known size, which tests the probe itself."""
    return lambda: np.ones(mebibytes << 20, np.uint8).sum()


def _peak_bytes() -> int:
    """The high-water mark of this process."""
    try:
        # Linux hands ru_maxrss down from the process that started this one, so a large parent would
        # hide the case.
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) << 10
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def _forget_peak() -> None:
    """Lower the high-water mark to what is held now, where the system can: else imports' own peak
    is the baseline.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _main(target: str, arguments: str) -> None:
    module, _, name = target.partition(":")
    case = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # the backend starts before the baseline is taken
    _forget_peak()
    baseline, start = _peak_bytes(), time.perf_counter()
    jax.block_until_ready(case())
    seconds = time.perf_counter() - start
    print(json.dumps({"baseline": baseline, "peak": _peak_bytes(), "seconds": seconds}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
