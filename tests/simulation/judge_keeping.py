"""What the second scenario promises: nothing goes that should stay, nothing stays that should go.

Pure: the history of the clients, the topics as they were read at the end, and what was asked to be
removed. A record may be gone if it was in a log that began anew, if it is older than the retention
(S29) or below a start that was asked for, if a newer one has its key (S26), or if its key was
erased after it was sent. A record whose erasure is said to be done must be gone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tailrace.simulation.checkers import (
    Violation,
    changed_reads,
    duplicates,
    producer_order,
    real_time_order,
    refused_but_written,
)
from tailrace.simulation.history import FinalLog, History, Send

FLEETING, LATEST, PEOPLE, BRIEF = "fleeting", "latest", "people", "brief"
RETENTION_S = 8.0

Start = tuple[float, int, int]  # when the log start of a partition of FLEETING was first shown


@dataclass
class Erasure:
    """Of one key; ``done_at`` None: nobody knows how far it came."""

    key: bytes
    began_at: float
    done_at: float | None = None


@dataclass(frozen=True)
class Deletion:
    """Of the records of FLEETING below an offset; it may have failed."""

    partition: int
    before: int


@dataclass
class Life:
    """Of one topic under the name BRIEF: the one before it was gone at ``began_at``."""

    began_at: float


@dataclass
class Removals:
    """What was asked to be removed, and when."""

    erasures: list[Erasure] = field(default_factory=list[Erasure])
    deletions: list[Deletion] = field(default_factory=list[Deletion])
    lives: list[Life] = field(default_factory=list[Life])


def judge(
    history: History, final: FinalLog, removals: Removals, starts: Sequence[Start], ended_at: float
) -> list[Violation]:
    """Everything that is wrong. ``ended_at``: when the last record was read."""
    checks = (real_time_order, duplicates, refused_but_written, producer_order)
    found = [violation for each in checks for violation in each(history, final)]
    found += changed_values(history, final)
    found += expired_too_early(history, removals, starts)
    found += lost_from_fleeting(history, final, starts, ended_at)
    found += not_the_latest(history, final)
    found += wrongly_erased(history, final, removals)
    found += from_an_earlier_life(history, final, removals)
    return found


def changed_values(history: History, final: FinalLog) -> Iterator[Violation]:
    """S12: whatever is there is what was acked and delivered there before."""
    there = [read for read in history.reads if read.offset in final.get(read.where, {})]
    yield from changed_reads(History(history.sends, there), final)
    for send in history.acked:
        found = final.get(send.where, {}).get(send.offset)
        if send.topic != BRIEF and found is not None and found != (send.key, send.value):
            yield Violation("S2", f"{name(send)}: {found[1][:24]!r} is there now")


def expired_too_early(
    history: History, removals: Removals, starts: Sequence[Start]
) -> Iterator[Violation]:
    """S29: whatever the wall clock said, no record went that was younger than the retention."""
    asked: dict[int, int] = {}
    for one in removals.deletions:
        asked[one.partition] = max(asked.get(one.partition, 0), one.before)
    for at, partition, start in starts:
        for send in history.acked:
            gone = send.topic == FLEETING and send.partition == partition and send.offset < start
            if gone and send.offset >= asked.get(partition, 0) and at - send.began_at < RETENTION_S:
                age = at - send.began_at
                yield Violation("S29", f"{name(send)} was {age:.1f} s old and gone at {at:.1f} s")


def lost_from_fleeting(
    history: History, final: FinalLog, starts: Sequence[Start], ended_at: float
) -> Iterator[Violation]:
    """S2: what is above the last start that was shown, and not old by now, is there."""
    first = {partition: start for _, partition, start in starts}  # they only rise
    for send in history.acked:
        if send.topic != FLEETING or send.offset < first.get(send.partition, 0):
            continue
        young = ended_at - send.began_at < RETENTION_S
        if young and send.offset not in final.get(send.where, {}):
            yield Violation("S2", f"{name(send)} is gone, and not below the log start")


def not_the_latest(history: History, final: FinalLog) -> Iterator[Violation]:
    """S26: for every key the last record is there, and so is every record without a key."""
    last: dict[tuple[int, bytes], int] = {}
    for (topic, partition), log in final.items():
        if topic == LATEST:
            for offset, (key, _) in log.items():
                if key is not None:
                    last[partition, key] = max(offset, last.get((partition, key), -1))
    for send in history.acked:
        if send.topic != LATEST:
            continue
        if send.key is None:
            kept = send.offset in final.get(send.where, {})
        else:
            kept = last.get((send.partition, send.key), -1) >= send.offset
        if not kept:
            yield Violation("S26", f"{name(send)} is gone, and nothing newer has its key")


def wrongly_erased(history: History, final: FinalLog, removals: Removals) -> Iterator[Violation]:
    """Erased: what was there when it was asked for. Kept: every other record."""
    for send in history.acked:
        if send.topic != PEOPLE:
            continue
        there = send.offset in final.get(send.where, {})
        own = [one for one in removals.erasures if one.key == send.key]
        ended_at = send.ended_at or 0.0
        must_go = any(one.done_at is not None and one.began_at > ended_at for one in own)
        may_go = any(one.done_at is None or one.done_at > send.began_at for one in own)
        if there and must_go:
            yield Violation("E1", f"{name(send)} was erased, and is there")
        if not there and not may_go:
            yield Violation("S2", f"{name(send)} is gone, and its key was not erased")


def from_an_earlier_life(
    history: History, final: FinalLog, removals: Removals
) -> Iterator[Violation]:
    """S30: no record of a topic that was deleted is in the one that has its name now."""
    began_at = removals.lives[-1].began_at if removals.lives else 0.0
    for send in history.acked:
        there = final.get(send.where, {}).get(send.offset) == (send.key, send.value)
        if send.topic == BRIEF and there and (send.ended_at or 0.0) < began_at:
            yield Violation("S30", f"{name(send)} was acked before the topic was deleted")


def name(send: Send) -> str:
    return f"{send.topic}[{send.partition}]@{send.offset} {send.value[:24]!r} of {send.producer}"
