"""The rebalances of one group: what they were for, what they moved, how long they took (pure).

A rebalance begins with the first change and ends when everything is where it shall be; what changes
meanwhile belongs to it. The newest are kept for members that have not heard of them (C14).
"""

from collections import deque
from collections.abc import Iterable, Mapping

from tailrace.broker.assignment import Partition
from tailrace.protocol.messages import MovedPartitions, Rebalance

KEPT_MAX = 16
PARTITIONS_MAX = 100  # listed in one notice
REASONS = ", "  # between those of one rebalance, in the order in which they came


class Notices:
    """At most one rebalance under way, and those that ended."""

    def __init__(self) -> None:
        self._reasons: list[str] = []  # of the one under way; none: there is none
        self._began = 0.0
        self._before: dict[Partition, str] = {}
        self._ended: deque[Rebalance] = deque(maxlen=KEPT_MAX)
        self._fresh: list[Rebalance] = []

    @property
    def newest(self) -> int:
        """The generation of the newest that ended; -1: none did."""
        return self._ended[-1].generation if self._ended else -1

    def begin(self, now: float, reason: str, owners: Mapping[Partition, str]) -> None:
        """One more change. ``owners``: as they were before it."""
        if not self._reasons:
            self._began = now
            self._before = dict(owners)
        if reason not in self._reasons:
            self._reasons.append(reason)

    def end(
        self,
        now: float,
        generation: int,
        owners: Mapping[Partition, str],
        topics: Mapping[bytes, str],
        clients: Mapping[str, str],
    ) -> None:
        """All is stable. ``topics``: names by id, ``clients``: client ids by member."""
        if not self._reasons:
            return
        moved = [key for key, owner in owners.items() if self._before.get(key) != owner]
        listed, more = _listed(moved or owners, owners, topics, clients)
        ended = Rebalance(
            generation=generation,
            reason=REASONS.join(self._reasons),
            took_ms=max(0, round((now - self._began) * 1000)),
            moved=listed,
            more=more,
        )
        self._reasons, self._before = [], {}
        self._ended.append(ended)
        self._fresh = [*self._fresh, ended][-KEPT_MAX:]

    def since(self, generation: int) -> tuple[Rebalance, ...]:
        """Those that ended in a later generation, the oldest first."""
        if generation >= self.newest:
            return ()
        return tuple(one for one in self._ended if one.generation > generation)

    def take(self) -> list[Rebalance]:
        """Those that ended since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return fresh


def _listed(
    keys: Iterable[Partition],
    owners: Mapping[Partition, str],
    topics: Mapping[bytes, str],
    clients: Mapping[str, str],
) -> tuple[tuple[MovedPartitions, ...], int]:
    """Grouped by topic and owner, and how many were left out."""
    named = sorted(
        (topics[topic_id], number, owners[topic_id, number]) for topic_id, number in keys
    )
    groups: dict[tuple[str, str], list[int]] = {}
    for topic, number, owner in named[:PARTITIONS_MAX]:
        groups.setdefault((topic, owner), []).append(number)
    moved = tuple(
        MovedPartitions(topic, tuple(numbers), clients[owner])
        for (topic, owner), numbers in groups.items()
    )
    return moved, max(0, len(named) - PARTITIONS_MAX)
