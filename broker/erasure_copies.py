"""What erasures mean for the copies this broker holds: which wait for it, what still counts.

- A follower waits until it has all that an erasure is about, committed: what it would fetch later
  may hold it still.
- Done is done only for the log it was done in. One that was filled anew since then, from another
  replica, may have it again, and is looked through again; the store is told first. What a log loses
  at its end was not committed, and it is filled from its end: one that had everything when it was
  opened is the same.
- A log start inside of a segment is a leader's to clear away at once. A follower's segments end
  elsewhere than its leader's: where these expire one by one, the rest of its own goes as a whole
  soon, so it waits for as long as a segment takes.
"""

from dataclasses import dataclass, field, replace

import trio

from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.erasure import Erasure, Replicas
from tailrace.broker.erasures import Erasures
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf


@dataclass(slots=True)
class _Copy:
    """What is remembered of one."""

    log: object = None  # the log as it was opened: another one after a cut
    done: set[bytes] = field(default_factory=set[bytes])  # erasures, in that log
    start: int = -1  # of the log, when it was last looked at
    start_since: float = 0.0  # in trio's time


class Copies:
    """``replicas``: who holds a copy of a partition now."""

    def __init__(self, shelf: Shelf, erasures: Erasures, replicas: Replicas) -> None:
        self.me = erasures.broker_id
        self.replicas = replicas
        self.behind = False  # some follower lacks something that an erasure is about
        self._shelf = shelf
        self._erasures = erasures
        self._copies: dict[PartitionId, _Copy] = {}

    def begin_round(self) -> None:
        """Everything is about to be looked at."""
        self.behind = False
        self._copies = {
            where: one for where, one in self._copies.items() if self._shelf.get(*where)
        }

    def wanted(self, partition: Partition) -> list[Erasure]:
        """The erasures that are to be carried out in it, and can be."""
        wanted: list[Erasure] = []
        for one in self._erasures.pending(partition.topic_id):
            if one.target(partition.number, self.me) is None:
                continue
            end = one.shares[partition.number].end
            if partition.role != "leader" and partition.high_watermark < end:
                self.behind = True
            else:
                wanted.append(one)
        return wanted

    def done(self, partition: Partition, erasure: Erasure) -> None:
        """It was carried out in this log."""
        copy = self._copy(partition)
        if copy.log is not partition.log.recovery:
            copy.log, copy.done = partition.log.recovery, set[bytes]()
        copy.done.add(erasure.erasure_id)

    def stays(self, partition: Partition) -> bool:
        """Whether the log start is there to stay for a while."""
        if partition.role == "leader":
            return True
        copy, now = self._copy(partition), trio.current_time()
        if copy.start != partition.log.start:
            copy.start, copy.start_since = partition.log.start, now
        return now - copy.start_since >= partition.config.segment_age_ms / 1000

    def waits_for_me(self, erasure: Erasure) -> bool:
        """Whether there is something left to be done in a copy that this broker holds."""
        return any(
            erasure.target(number, self.me) is not None
            and self.me in self.replicas(erasure.topic_id, number)
            for number in erasure.shares
        )

    async def take_back(self) -> None:
        """What was done in logs that are no more is not done. T100."""
        for topic_id in self._erasures.topic_ids():
            for erasure in self._erasures.pending(topic_id):
                again = {
                    number: replace(share.of(self.me), done=False)
                    for number, share in erasure.shares.items()
                    if share.of(self.me).done and not self._counts(erasure, number, share.end)
                }
                if again:
                    await self._erasures.store(erasure, again)

    def _counts(self, erasure: Erasure, number: int, end: int) -> bool:
        """Whether what was done in a partition is so still."""
        where = (erasure.topic_id, number)
        partition = self._shelf.get(*where)
        if partition is None:
            return self.me not in self.replicas(*where)  # then it is nobody's concern
        copy = self._copy(partition)
        same = copy.log is partition.log.recovery and erasure.erasure_id in copy.done
        return same or partition.log.found_end >= end

    def _copy(self, partition: Partition) -> _Copy:
        return self._copies.setdefault((partition.topic_id, partition.number), _Copy())
