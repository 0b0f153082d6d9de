"""Where logs end of which this broker has no copy to go by: their leaders are asked.

The coordinator of a group looks at it each second, so a look asks each leader once, for all that is
wanted of it. What a leader does not say stays as it was last known.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from tailrace.broker.asking import ask_brokers
from tailrace.broker.cluster_status import leadership
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.broker.partition import Partition
from tailrace.broker.peer import Peers
from tailrace.broker.shelf import Shelf
from tailrace.broker.views import Views
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    OFFSET_LATEST,
    READ_COMMITTED,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetQuery,
)

AT_ONCE = PARTITIONS_PER_REQUEST_MAX // 2  # partitions in a request: each is asked for twice
UNKNOWN = -1


class DistantLog(NamedTuple):
    """What its leader said last; -1: nothing yet."""

    start: int = UNKNOWN
    end: int = UNKNOWN

    @property
    def known(self) -> bool:
        return self.start != UNKNOWN and self.end != UNKNOWN


NOTHING = DistantLog()


class Distant:
    def __init__(
        self, shelf: Shelf, views: Views, peers: Peers, broker_id: str, listener: str
    ) -> None:
        self._shelf = shelf
        self._views = views
        self._peers = peers
        self._broker_id = broker_id
        self._listener = listener
        self._logs: dict[PartitionId, DistantLog] = {}

    @property
    def version(self) -> object:
        """Another one when another broker may lead something, or hold a copy."""
        return self._views.view

    def here(self, where: PartitionId) -> Partition | None:
        """A copy to go by: the leader's, or one that is in sync, and good within half a second."""
        partition = self._shelf.get(*where)
        if partition is None or partition.role == "leader":
            return partition
        in_sync = self._broker_id in partition.leadership.isr
        return partition if in_sync or self._leader(where) in (None, self._broker_id) else None

    def of(self, where: PartitionId) -> DistantLog:
        """What is known of one that is not here."""
        return self._logs.get(where, NOTHING)

    def keep(self, wanted: Collection[PartitionId]) -> None:
        """Nobody wants to know of others any more."""
        self._logs = {where: one for where, one in self._logs.items() if where in wanted}

    async def ask(self, wanted: Iterable[PartitionId]) -> None:
        """Ask the leaders; within about a second."""
        by_leader: dict[str, list[PartitionId]] = {}
        for where in wanted:
            leader = self._leader(where)
            if leader is not None and leader != self._broker_id:
                by_leader.setdefault(leader, []).append(where)
        while by_leader:
            part = {leader: some[:AT_ONCE] for leader, some in by_leader.items()}
            await self._ask(part)
            rest = {leader: some[AT_ONCE:] for leader, some in by_leader.items()}
            by_leader = {leader: some for leader, some in rest.items() if some}

    async def _ask(self, part: dict[str, list[PartitionId]]) -> None:
        requests = {
            leader: ListOffsetsRequest(
                READ_COMMITTED,
                tuple(
                    OffsetQuery(*where, time)
                    for where in some
                    for time in (OFFSET_EARLIEST, OFFSET_LATEST)
                ),
            )
            for leader, some in part.items()
        }
        answers = await ask_brokers(
            *(self._peers, self._views.view, self._listener, requests), ListOffsetsResponse
        )
        for answer in answers.values():
            for first, last in zip(answer.results[::2], answer.results[1::2], strict=True):
                if first.error is None and last.error is None:
                    where = (first.topic_id, first.partition)
                    self._logs[where] = DistantLog(first.offset, last.offset)

    def _leader(self, where: PartitionId) -> str | None:
        return leadership(self._views.view, where).leader
