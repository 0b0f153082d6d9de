"""Which partitions a member has, as its event loop knows it, and what became of those it had. Pure.

The heart's side of it (``membership.py``) is a moment ahead. Both know a partition by its
assignment, so that whoever comes late with an older one is passed over.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tailrace.client.commits import CommitPoint, Ledger, Points
from tailrace.client.membership import Assignment
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.errors import PartitionLost
from tailrace.protocol.shapes import TopicPartition


class Gone(NamedTuple):
    """What is remembered of a partition that is not the member's any more."""

    reason: str
    committed: int  # what it had committed of it, -1: nothing


class Tenure:
    """See the module."""

    def __init__(self, ledger: Ledger) -> None:
        self.assignments: dict[TopicPartition, Assignment] = {}  # not lost, not given up
        self.withdrawn: set[TopicPartition] = set()  # part of it
        self._ledger = ledger
        self._gone: dict[TopicPartition, Gone] = {}  # and no commit has said so

    def has(self, one: Assignment) -> bool:
        """Whether that is still its own, under the same assignment."""
        return self.assignments.get(one.at) == one

    def take(self, partitions: Sequence[Assignment]) -> None:
        """They are its own now."""
        for one in partitions:
            self.assignments[one.at] = one
            self._gone.pop(one.at, None)

    def drop(self, one: Assignment, reason: str) -> None:
        """It is not its own any more."""
        del self.assignments[one.at]
        self.withdrawn.discard(one.at)
        self._gone[one.at] = Gone(reason, self._ledger.known(one))
        self._ledger.forget(one)

    def clear(self) -> None:
        """Nothing is its own any more, by its own will: no commit has to say so."""
        for one in self.assignments.values():
            self._ledger.forget(one)
        self.assignments.clear()
        self.withdrawn.clear()

    # ── commits ──────────────────────────────────────────────────────────────────────────────

    def known_committed(self, at: TopicPartition) -> int:
        """What was committed of a partition since it was assigned, -1: nothing is known."""
        if (assignment := self.assignments.get(at)) is not None:
            return self._ledger.known(assignment)
        return self._gone[at].committed if at in self._gone else -1

    def points(self, points: Mapping[TopicPartition, CommitPoint]) -> Points:
        """Those whose assignment is still the one they were read under."""
        found: dict[Assignment, CommitPoint] = {}
        for at, point in points.items():
            one = self.assignments.get(at)
            if one is not None and point.assignment_epoch in (-1, one.assignment_epoch):
                found[one] = point
        return found

    def due(self, points: Points) -> list[str]:
        """Names of partitions that are still its own and further than what is committed."""
        ours = {one: point for one, point in points.items() if self.has(one)}
        return [f"{one.topic}[{one.partition}]" for one in sorted(self._ledger.due(ours), key=_at)]

    def check(self, partitions: Iterable[TopicPartition]) -> None:
        """UsageError T055 for what neither is nor was its own."""
        for at in partitions:
            if at not in self.assignments and at not in self._gone:
                raise texts_client.not_assigned(*at)

    def lost(
        self, points: Mapping[TopicPartition, CommitPoint], group: str
    ) -> PartitionLost | None:
        """T040 for these, once: they went away before they were committed. None for none."""
        if not points:
            return None
        gone = [one for at in points if (one := self._gone.pop(at, None)) is not None]
        reason = gone[0].reason if gone else "it was assigned anew meanwhile"
        offsets = {at: point.offset for at, point in points.items()}
        return texts_group.partition_lost(offsets, group=group, reason=reason)


def _at(one: Assignment) -> TopicPartition:
    return one.at
