"""A bounded memory whose entries go when what they were made of goes."""

import threading
import weakref
from collections import OrderedDict
from typing import Any


class Memory:
    """The values used last, each until one of the objects that it was made of is gone."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.lock = capacity, threading.RLock()
        self.values: OrderedDict[Any, tuple[Any, list[Any]]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The value, or None."""
        with self.lock:
            found = self.values.get(key)
            if found is None:
                return None
            self.values.move_to_end(key)
            return found[0]

    def put(self, key: Any, value: Any, objects: list[Any]) -> None:
        """Remember `value` as long as all `objects` live and it is among those used last."""
        with self.lock:
            self.values[key] = (
                value,
                [weakref.ref(o, lambda _: self.values.pop(key, None)) for o in objects],
            )
            while len(self.values) > self.capacity:
                self.values.popitem(last=False)
