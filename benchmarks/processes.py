"""A part of a benchmark in a process that does nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.environments import ROOT


def in_fresh_process(
    module: str, *arguments: str, settings: Mapping[str, str] | None = None
) -> Any:
    """The JSON that `python -m module arguments` prints last, with settings added to the
    environment.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    command = [sys.executable, "-m", module, *arguments]
    env = os.environ | dict(settings or {})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: ended with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
