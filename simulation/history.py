"""What clients did and saw, in the order of (virtual or real) time: the input of the checkers.

Values must be unique over the whole history: a value is how a record is known again. An
operation that never came back stays open: it may appear in the log, at most once.
"""

from dataclasses import dataclass, field
from typing import Literal

Where = tuple[str, int]  # topic, partition
FinalLog = dict[Where, dict[int, tuple[bytes | None, bytes]]]  # offset -> key, value


@dataclass(slots=True)
class Send:
    """One record given to one producer."""

    producer: str
    number: int  # in the order in which that producer accepted its records
    key: bytes | None
    value: bytes
    began_at: float
    ended_at: float | None = None
    outcome: Literal["open", "acked", "refused", "unknown"] = "open"
    topic: str = ""
    partition: int = -1
    offset: int = -1

    @property
    def where(self) -> Where:
        return self.topic, self.partition

    def acked(self, at: float, topic: str, partition: int, offset: int) -> None:
        """The broker promised that the record is durable there."""
        self.ended_at, self.outcome = at, "acked"
        self.topic, self.partition, self.offset = topic, partition, offset

    def failed(self, at: float, *, maybe_written: bool) -> None:
        """The call raised; ``maybe_written`` says whether the record may still appear (C4)."""
        self.ended_at, self.outcome = at, "unknown" if maybe_written else "refused"


@dataclass(frozen=True, slots=True)
class Read:
    """One record handed to a consumer."""

    reader: str  # one consumer from one start position: it must see every offset from there
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    at: float

    @property
    def where(self) -> Where:
        return self.topic, self.partition


@dataclass
class History:
    """Everything the clients of one run did, in order."""

    sends: list[Send] = field(default_factory=list[Send])
    reads: list[Read] = field(default_factory=list[Read])

    def send(self, producer: str, key: bytes | None, value: bytes, at: float) -> Send:
        """A record was handed to a producer; complete it by ``acked`` or ``failed``."""
        send = Send(producer, len(self.sends), key, value, at)
        self.sends.append(send)
        return send

    @property
    def acked(self) -> list[Send]:
        return [send for send in self.sends if send.outcome == "acked"]

    def final(self, reader: str) -> FinalLog:
        """The log as that reader, who read all of it at the end, saw it."""
        log: FinalLog = {}
        for read in self.reads:
            if read.reader == reader:
                log.setdefault(read.where, {})[read.offset] = read.key, read.value
        return log
