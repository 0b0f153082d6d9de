"""Who has series of its own: the first so many that come, until they go. Pure.

The others share ``__other__``, for as long as there are any. When a place becomes free nobody is
moved there from them, as a counter would begin again under another name; but by ``keep``, which is
for gauges.
"""

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

OTHER = "__other__"

N = TypeVar("N", bound=Hashable)


class Places(Generic[N]):
    """``own`` and ``others`` are disjoint; ``own`` are at most ``most``."""

    def __init__(self, most: int) -> None:
        self.own: dict[N, None] = {}
        self.others: dict[N, None] = {}
        self._most = most

    def take(self, name: N) -> bool:
        """Whether it has its own, from now on until it leaves."""
        if name in self.own:
            return True
        if name in self.others or len(self.own) >= self._most:
            self.others[name] = None
            return False
        self.own[name] = None
        return True

    def leave(self, name: N) -> None:
        """It is gone; also if it never was here."""
        self.own.pop(name, None)
        self.others.pop(name, None)

    def keep(self, names: Collection[N]) -> None:
        """All others are gone; whoever was over the limit may have a place now."""
        for name in [name for name in (*self.own, *self.others) if name not in names]:
            self.leave(name)
        for name in list(self.others)[: self._most - len(self.own)]:
            del self.others[name]
            self.own[name] = None
