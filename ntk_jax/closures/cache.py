"""A bounded cache whose entries go when what they were made of goes."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any


class Cache:
    """The values used last, each until one of the objects that it was made of is gone."""

    def __init__(self, capacity: int) -> None:
        # Objects can go, and their entries with them, in any thread and in the middle of a look-up.
        self.capacity, self.lock = capacity, threading.RLock()
        self.values: OrderedDict[Hashable, tuple[Any, list[weakref.ref[Any]]]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        with self.lock:
            found = self.values.get(key)
            if found is not None:
                self.values.move_to_end(key)
        return None if found is None else found[0]

    def put(self, key: Hashable, value: object, objects: Sequence[object]) -> None:
        """Remember `value` as long as all `objects` live and it is among those used last."""
        with self.lock:
            references = [weakref.ref(o, lambda _: self.values.pop(key, None)) for o in objects]
            self.values[key] = value, references
            while len(self.values) > self.capacity:
                self.values.popitem(last=False)
