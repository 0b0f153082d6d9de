"""What opening a log found: for logs, metrics and tests, and how far it is while it goes on."""

from dataclasses import dataclass, field

from tailrace.storage.segment import Quarantine


@dataclass(frozen=True, slots=True)
class Cut:
    """A torn tail that was removed."""

    file: str
    position: int
    bytes: int  # up to the last byte that was not zero
    offset: int  # the log end after the cut


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log checked, cut and rebuilt."""

    clean: bool = False  # the log was closed cleanly; only what is needed was checked
    batches: int = 0  # verified
    records: int = 0
    scanned_bytes: int = 0
    walked_bytes: int = 0  # of which only headers were looked at
    adopted_bytes: int = 0  # below the flushed mark: verified before they are first served
    truncated_bytes: int = 0
    cuts: list[Cut] = field(default_factory=list[Cut])
    quarantined: list[Quarantine] = field(default_factory=list[Quarantine])
    rebuilt: list[str] = field(default_factory=list[str])  # files found missing or unsound
    data_loss_possible: bool = False  # sound batches lay behind a cut (S3)


@dataclass(slots=True)
class Progress:
    """How far recovery of one log is. Written by the thread that recovers it alone."""

    planned_bytes: int = 0  # to be read; an estimate
    read_bytes: int = 0
    done: bool = False

    @property
    def done_bytes(self) -> int:
        """At most what was planned."""
        return self.planned_bytes if self.done else min(self.read_bytes, self.planned_bytes)
