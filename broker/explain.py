"""What explanations rest on: facts as values, gathered by ``explainer.py``, and how they are shown.

The verdicts are reached in ``explain_record``, ``explain_partition`` and ``explain_group``, the
sentences stand in ``protocol/texts_explain.py``. All of it is pure: times are given as ages.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tailrace.protocol.shapes import Fact, Scalar, Verdict

MoveCause = Literal["expired", "expired_or_dropped", "deleted"]


@dataclass(frozen=True, slots=True)
class Damage:
    """A range that is not served."""

    file: str
    position: int
    first_offset: int
    next_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """What keeps the high watermark below the log end."""

    batches: int  # of producers that wait
    sync_s: float | None  # how long a sync has been under way; None: there is none


@dataclass(frozen=True, slots=True)
class Lacking:
    """A replica that has not everything."""

    broker: str
    alive: bool
    behind: int | None  # records; None: not known


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """Who holds a partition, and who of them counts."""

    wanted: tuple[str, ...]
    in_sync: tuple[str, ...]  # of the living
    min_isr: int
    missing: tuple[Lacking, ...] = ()  # those that are wanted and not in sync
    slow: tuple[Lacking, ...] = ()  # in sync, and what the high watermark waits for
    no_lease: str | None = None  # why the leader may not write


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """One member of a group."""

    client_id: str
    host: str
    heard_s: float  # ago
    partitions: int  # assigned to it

    @property
    def name(self) -> str:
        return f"{self.client_id} at {self.host}"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a group stands in one partition."""

    topic: str
    partition: int
    committed: int | None
    committed_s: float | None  # ago; None: nothing was committed
    log_start: int  # -1, here and in ``log_end``: the partition is offline
    log_end: int
    lag_records: int
    rate: float  # offsets per second, over the verdict's window
    write_rate: float
    verdict: Verdict
    margin_s: float | None  # until unread records expire; None: never
    owner: MemberFacts | None
    damaged: bool  # the next record is
    retention: str | None  # what it keeps; None: everything

    @property
    def position(self) -> int:
        """The next offset it reads."""
        return self.log_start if self.committed is None else self.committed


@dataclass(frozen=True, slots=True)
class Reading:
    """A group as far as it reads the partition that is explained."""

    group: str
    standing: Standing | None  # None: it does not read it


def facts(**named: Scalar | Iterable[Scalar]) -> list[Fact]:
    """Those that are known, in this order; a list that is empty is none."""
    found: list[Fact] = []
    for name, value in named.items():
        if value is None or isinstance(value, str | int | float | bool):
            plain: Scalar | list[Scalar] = round(value, 3) if isinstance(value, float) else value
        else:
            plain = list(value)
        if plain not in (None, "", []):
            found.append(Fact(name, plain))
    return found


def standing_facts(reading: Reading | None) -> list[Fact]:
    """What is known of a group beside what it is asked about."""
    if reading is None:
        return []
    one = reading.standing
    if one is None:
        return facts(group=reading.group)
    return facts(
        group=reading.group,
        group_committed=one.committed,
        group_lag_records=one.lag_records,
        group_rate_per_s=one.rate,
        group_verdict=one.verdict,
        group_owner=None if one.owner is None else one.owner.name,
        group_margin_seconds=one.margin_s,
    )
