"""Checks a history against the promises: no broker is asked, no search is needed.

Each check is a pure function of the history and of the log as it was read at the end; it yields
what is wrong. Offsets give the total order, so all of them take O(n log n).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tailrace.simulation.history import FinalLog, History, Read, Send, Where

SHOWN_BYTES = 24  # of a value, in texts


@dataclass(frozen=True)
class Violation:
    """One promise that was broken."""

    invariant: str  # S1 …, C4 …
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} violated: {self.what}"


def check(history: History, final: FinalLog) -> list[Violation]:
    """Everything that is wrong, by all the checks of this file."""
    checks = (
        lost_or_changed_writes,
        changed_reads,
        skipped_offsets,
        real_time_order,
        duplicates,
        refused_but_written,
        producer_order,
    )
    return [violation for each in checks for violation in each(history, final)]


def lost_or_changed_writes(history: History, final: FinalLog) -> Iterator[Violation]:
    """S2: every acked record is read at the end, at its offset, with its bytes."""
    for send in history.acked:
        found = final.get(send.where, {}).get(send.offset)
        if found is None:
            yield Violation("S2", f"{_send(send)} was acked at {send.offset} and is gone")
        elif found != (send.key, send.value):
            now = _short(found[1])
            yield Violation("S2", f"{_send(send)} was acked at {send.offset}; now {now} is there")


def changed_reads(history: History, final: FinalLog) -> Iterator[Violation]:
    """S12: what was delivered once at an offset is there for every later reader."""
    seen: dict[tuple[Where, int], Read] = {}
    for read in history.reads:
        before = seen.setdefault((read.where, read.offset), read)
        if (before.key, before.value) != (read.key, read.value):
            yield Violation("S12", f"{_read(before)} became {_short(read.value)} for {read.reader}")
    for (where, offset), read in seen.items():
        found = final.get(where, {}).get(offset)
        if found != (read.key, read.value):
            now = _short(found[1]) if found is not None else "nothing"
            yield Violation("S12", f"{_read(read)} was delivered; at the end: {now}")


def skipped_offsets(history: History, final: FinalLog) -> Iterator[Violation]:
    """S10, S25: without compaction a reader sees every offset from its start on, once."""
    last: dict[tuple[str, Where], int] = {}
    for read in history.reads:
        before = last.get((read.reader, read.where))
        if before is not None and read.offset != before + 1:
            yield Violation("S10", f"{read.reader} read {_read(read)} after offset {before}")
        last[read.reader, read.where] = read.offset


def real_time_order(history: History, final: FinalLog) -> Iterator[Violation]:
    """S14: a record acked before another was sent has the smaller offset."""
    by_partition: dict[Where, list[Send]] = defaultdict(list)
    for send in _written(history, final):
        by_partition[send.where].append(send)
    for sends in by_partition.values():
        acked = sorted((s for s in sends if s.outcome == "acked"), key=lambda s: s.ended_at or 0)
        position, newest = 0, None
        for send in sorted(sends, key=lambda s: s.began_at):
            while position < len(acked) and (acked[position].ended_at or 0) < send.began_at:
                if newest is None or acked[position].offset > newest.offset:
                    newest = acked[position]
                position += 1
            if newest is not None and newest.offset >= send.offset:
                yield Violation(
                    "S14",
                    f"{_send(send)} was sent after {_send(newest)} was acked, "
                    f"but stands at {send.offset}, before {newest.offset}",
                )


def duplicates(history: History, final: FinalLog) -> Iterator[Violation]:
    """S15: each record is in the log at most once, and nothing is there that nobody sent."""
    sent = {send.value for send in history.sends}
    places: dict[bytes, tuple[Where, int]] = {}
    for where, log in final.items():
        for offset, (_, value) in log.items():
            if value not in sent:
                yield Violation("S15", f"{_short(value)} at {where}@{offset} was never sent")
            if value in places:
                yield Violation(
                    "S15", f"{_short(value)} at {where}@{offset} and at {places[value]}"
                )
            places[value] = where, offset


def refused_but_written(history: History, final: FinalLog) -> Iterator[Violation]:
    """C4: a send that failed with ``maybe_written=False`` is not in the log."""
    values = {value for log in final.values() for _, value in log.values()}
    for send in history.sends:
        if send.outcome == "refused" and send.value in values:
            yield Violation("C4", f"{_send(send)} was said not to be written, and is there")


def producer_order(history: History, final: FinalLog) -> Iterator[Violation]:
    """S16, C2: in a partition, one producer's records stand in the order it accepted them."""
    last: dict[tuple[str, Where], Send] = {}
    for send in sorted(_written(history, final), key=lambda s: s.number):
        before = last.get((send.producer, send.where))
        if before is not None and before.offset > send.offset:
            yield Violation(
                "S16", f"{_send(send)} at {send.offset} stands before {_send(before)}, sent first"
            )
        last[send.producer, send.where] = send


def _written(history: History, final: FinalLog) -> list[Send]:
    """The sends that are in the log, with their places, also where no ack said so."""
    places = {
        value: (where, offset) for where, log in final.items() for offset, (_, value) in log.items()
    }
    written: list[Send] = []
    for send in history.sends:
        if send.value in places:
            (topic, partition), offset = places[send.value]
            if send.outcome != "acked":
                send = Send(
                    send.producer, send.number, send.key, send.value, send.began_at,
                    send.ended_at, send.outcome, topic, partition, offset,
                )  # fmt: skip
            written.append(send)
    return written


def _short(value: bytes) -> str:
    return repr(value if len(value) <= SHOWN_BYTES else value[:SHOWN_BYTES] + b"...")


def _send(send: Send) -> str:
    return f"{_short(send.value)} of {send.producer} (at {send.began_at:.6f} s)"


def _read(read: Read) -> str:
    return f"{read.topic}[{read.partition}]@{read.offset} {_short(read.value)} (at {read.at:.6f} s)"
