"""One partition that a group gave to a consumer: how far it is handed out, processed, committed."""

from dataclasses import dataclass
from typing import NamedTuple

from tailrace.client.commits import CommitPoint
from tailrace.client.membership import Assignment
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.client.progress import Holder
from tailrace.protocol.errors import OffsetOutOfRange


class Place(NamedTuple):
    """Where reading begins."""

    position: int
    committed: bool  # it is what the group has committed
    stop: int | None  # with ``stop_at_end``: the end as it is now
    wrong: OffsetOutOfRange | None  # where that is below the position


@dataclass(eq=False, slots=True)
class Holding:
    """See the module."""

    assignment: Assignment
    buffer: PartitionBuffer
    began: Place
    leaving: bool = False  # withdrawn, but not released yet
    sent: int = -1  # the highest offset that was committed by a call
    told: bool = False  # that it was lost, or all that was handed out is committed

    @property
    def stands_at(self) -> int:
        """What is not above this is no news to the coordinator."""
        return max(self.sent, self.began.position)

    @property
    def holder(self) -> Holder | None:
        """Who has its records in hand; None: nobody has read any."""
        source = self.buffer.source
        return None if source is None else source.holder

    @property
    def busy_since(self) -> float | None:
        """Since when a record of it is in hand; None: none is."""
        return None if self.holder is None else self.holder.busy_since(self.buffer)

    @property
    def processed(self) -> CommitPoint | None:
        """Up to the first record in hand; None: nobody has read of it yet."""
        if self.holder is None:
            return None
        return self._under(self.holder.unprocessed(self.buffer) or self._position)

    @property
    def handed_out(self) -> CommitPoint:
        """With the record in hand."""
        return self._under(self._position)

    def point(self, offset: int) -> CommitPoint:
        """That offset, to be committed under this assignment."""
        return self._under(self.buffer.point(offset))

    @property
    def _position(self) -> CommitPoint:
        return self.buffer.point(self.buffer.position)

    def _under(self, point: CommitPoint) -> CommitPoint:
        return point._replace(assignment_epoch=self.assignment.assignment_epoch)
