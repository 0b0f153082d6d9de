"""How far the partitions of a group are processed: what may be committed of them, and when.

Invariants:
- a record that was handed out and is not processed is never behind what may be committed (C12);
- of a partition that was withdrawn, no record is begun that comes after all that were begun.

Pure. Which record is in hand is known by whoever handed it out (``Holder``): nothing is written
down per record, it is worked out when somebody asks.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tailrace.client.commits import CommitPoint
from tailrace.client.partition_buffer import point_after
from tailrace.client.records import Record

if TYPE_CHECKING:
    from tailrace.client.partition_buffer import PartitionBuffer


class Loss(NamedTuple):
    """What was not committed of a partition when it went to another member."""

    offset: int  # up to there it was handed out
    processed: bool  # some of it was processed: not only a record that was in hand
    reason: str


class Holder(Protocol):
    """Who has the records of a source in hand: its reader, or whoever takes them from that."""

    def unprocessed(self, buffer: "PartitionBuffer") -> CommitPoint | None:
        """The first record that was handed out and is not processed; None: all of them are."""
        ...

    def busy_since(self, buffer: "PartitionBuffer") -> float | None:
        """Since when a record is in hand, by the client's clock; None: none is."""
        ...

    def withdrawn(self, buffer: "PartitionBuffer") -> None:
        """It goes to another member: what was not begun is left to that one."""
        ...


class Finishing:
    """Of one partition: which of the records that were taken are done, in whatever order.

    After a ``seek`` one may be taken again while it is being worked on.
    """

    def __init__(self) -> None:
        self._taken: deque[int] = deque()  # offsets from the first that is not done on
        self._done: dict[int, list[CommitPoint]] = {}  # offsets among them; no record is kept
        self._begun: dict[int, list[float]] = {}  # offsets that are worked on, and since when
        self._last: CommitPoint | None = None  # behind the one before the first that is not done

    def __len__(self) -> int:
        """Records from the first that is not done on."""
        return len(self._taken)

    def take(self, record: Record[Any, Any]) -> None:
        """One more, behind the others."""
        self._taken.append(record.offset)

    def begin(self, record: Record[Any, Any], now: float) -> None:
        """It is being worked on."""
        self._begun.setdefault(record.offset, []).append(now)

    def done(self, record: Record[Any, Any]) -> None:
        """It is processed."""
        offset = record.offset
        since = self._begun[offset]
        del since[-1]
        if not since:
            del self._begun[offset]
        self._done.setdefault(offset, []).append(point_after(record, offset))
        while self._taken and (points := self._done.get(self._taken[0])) is not None:
            self._last = points.pop()
            if not points:
                del self._done[self._taken[0]]
            self._taken.popleft()

    def stop(self) -> None:
        """Nothing is worked on any more."""
        self._begun.clear()

    @property
    def unprocessed(self) -> CommitPoint | None:
        """The first that is not done; None: all are."""
        if not self._taken:
            return None
        offset = self._taken[0]
        return CommitPoint(offset) if self._last is None else self._last._replace(offset=offset)

    @property
    def begun_last(self) -> int:
        """The highest offset that is being worked on, or is done before one below it; -1: none.

        What lies below it has to be done too, or that one would be handled again elsewhere.
        """
        return max((*self._begun, *self._done), default=-1)

    @property
    def busy_since(self) -> float | None:
        """When the work on the oldest one began."""
        return min((since[0] for since in self._begun.values()), default=None)
