"""A progress bar where tqdm is installed (extra `progress`), nothing where it is not: results never depend on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Silent:
    def update(self, num_steps: int) -> None:
        """Advance."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Show a short status."""


@contextmanager
def progress_bar(total: int, description: str, *, enabled: bool) -> Iterator[Any]:
    """Yield a bar with `update(n)` and `set_postfix_str(text, refresh)`, removed when done."""
    try:
        from tqdm import tqdm
    except ImportError:
        enabled = False
    if not enabled:
        yield _Silent()
        return
    with tqdm(total=total, desc=description, leave=False, dynamic_ncols=True, mininterval=0.5) as bar:
        yield bar
