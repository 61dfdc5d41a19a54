"""An iteration that goes on after an interruption: its state on disk, by Orbax."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from ntk_jax.compat import on_device
from ntk_jax.extras import missing

Tree: TypeAlias = Any
"""A pytree of arrays."""

Orbax: TypeAlias = Any
"""What an optional package has."""


class Checkpoints:
    """The newest states of an iteration in a folder, and what problem they belong to."""

    def __init__(self, manager: Orbax, args: Orbax, problem: dict[str, list[float]]) -> None:
        self.manager, self.args, self.problem = manager, args, problem

    def restore(self, like: Tree) -> Tree:
        """The newest state, of the shapes and on the devices of `like`, or None.

        Raises:
            ValueError: it belongs to another problem.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        saved = self._restore(step, problem=self.args.JsonRestore())
        for name, mine in self.problem.items():
            theirs = saved.get(name, [])
            if len(theirs) != len(mine) or not np.allclose(theirs, mine, rtol=1e-4, atol=0):
                raise ValueError(
                    f"checkpoint: expected one of this problem; {self.manager.directory} holds one "
                    f"with another {name}. Name another folder, or delete this one."
                )
        found = self._restore(step, state=self.args.StandardRestore(like))
        # Bound to no device, as at the start: the operator may be on others than it was then.
        return jax.tree.map(lambda a: on_device(np.asarray(a)), found)

    def save(self, step: int, state: Tree) -> None:
        """Write a state in the background; the last two are kept."""
        parts = {
            "problem": self.args.JsonSave(self.problem),
            "state": self.args.StandardSave(state),
        }
        self.manager.save(step, args=self.args.Composite(**parts))

    def _restore(self, step: int, **parts: Orbax) -> Tree:
        (name,) = parts
        return self.manager.restore(step, args=self.args.Composite(**parts))[name]


@contextmanager
def checkpoints(
    folder: str | Path | None, problem: dict[str, list[float]]
) -> Iterator[Checkpoints | None]:
    """The checkpoints in a folder, all written when the block ends; None without one.

    Raises:
        ImportError: no Orbax.
    """
    if folder is None:
        yield None
        return
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise missing("checkpoint", "orbax-checkpoint", "scale") from error
    options = orbax.CheckpointManagerOptions(max_to_keep=2)
    manager = orbax.CheckpointManager(Path(folder).absolute(), options=options)
    try:
        yield Checkpoints(manager, orbax.args, problem)
    except BaseException:
        # To wait for a process that is gone would end this one before it can say why.
        if jax.process_count() == 1:
            manager.close()
        raise
    manager.close()
