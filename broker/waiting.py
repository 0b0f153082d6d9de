"""Who waits for a partition, and what it tells them: producers, readers, followers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tailrace.protocol.errors import TailraceError
from tailrace.storage.log import Appended

if TYPE_CHECKING:
    from tailrace.broker.partition import Partition


class Producing(Protocol):
    """A produce request in hand. Each slot is settled or refused once."""

    acks: int
    timeout_s: float
    deadline: float  # in trio's time

    def settle(self, slot: int, written: Appended, log_start: int) -> None: ...

    def refuse(self, slot: int, error: TailraceError) -> None: ...


class Room(Protocol):
    """The room on the disk."""

    def appended(self, size_bytes: int) -> None:
        """So much of it was taken."""
        ...

    def rolled(self, partition: "Partition") -> None:
        """A segment was closed."""
        ...

    def failed(self, partition: "Partition") -> None:
        """It went offline."""
        ...

    def ran_out(self, partition: "Partition", error: OSError) -> TailraceError:
        """A write found no room: what to tell the producer."""
        ...


class Reader(Protocol):
    """Somebody who waits for records."""

    def wake(self) -> None:
        """There is more to read, or never will be. Must not raise."""
        ...


class Copier(Protocol):
    """A follower's fetch that waits. None of this must raise, or change who waits."""

    def written(self, partition: "Partition") -> None:
        """It has more, or will not serve followers any more."""
        ...

    def moved(self, partition: "Partition") -> None:
        """Its high watermark rose."""
        ...

    def contradicted(self, partition: "Partition", broker_id: str) -> None:
        """If it is this follower's: over another connection that says now that it holds less."""
        ...


class Told(NamedTuple):
    """What a follower knows of its leader's partition; -1: nothing."""

    high_watermark: int
    log_start: int
    cleaned_min: int


UNTOLD = Told(-1, -1, -1)


@dataclass(slots=True)
class Following:
    """What a follower was told by its leader in this epoch."""

    high_watermark: int = -1
    log_start: int = -1
    near: bool = False  # it had all that is committed, and is to join those in sync
