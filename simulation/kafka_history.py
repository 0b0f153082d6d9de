"""Checks what clients did and saw, of whatever cluster: plain values in, findings out.

A history is a list of ``Op``: one send of some records, one poll that returned some, or a change
of what a process reads. Nobody asks the cluster anything, so the same checks go over simulated and
over real runs. The ideas are those of ``jepsen.tests.kafka``, in our own words and code:

- offsets give the order of each partition, so there is nothing to search: O(n log n);
- an operation without an answer (``info``) stays open: each of its records may be there once, or
  not at all. What was refused (``fail``) must never be seen;
- a record is known by its value: values are unique over the whole history.

Leniency, as in the original: a process that subscribes may skip and go back when its partitions
change hands; what nobody has read yet is *unseen*, which is no loss: only records below the
highest offset that anybody read are lost when nobody reads them. Records of several partitions
have no order among each other. Offsets of which nobody knows a record are no skips (compaction).
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Key = tuple[str, int]  # topic, partition
Sent = tuple[Key, bytes, int | None]  # partition, value, offset: None while nobody told
Polled = tuple[Key, int, bytes]  # partition, offset, value

Kind = Literal[
    "inconsistent-offsets",
    "duplicate",
    "lost-write",
    "aborted-read",
    "poll-skip",
    "nonmonotonic-poll",
    "int-poll-skip",
    "int-nonmonotonic-poll",
    "nonmonotonic-send",
    "int-nonmonotonic-send",
    "realtime-order",
    "unseen",
]
SHOWN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of one process. Times in seconds, of one clock."""

    process: str
    what: Literal["send", "poll", "assign", "subscribe"]
    outcome: Literal["ok", "fail", "info"]
    began_at: float
    ended_at: float | None = None  # None: it never came back
    sent: tuple[Sent, ...] = ()
    polled: tuple[Polled, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be. ``unseen`` is one only once everything was to be read."""

    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Facts:
    """What the whole history says of each partition."""

    values: dict[Key, dict[int, set[bytes]]] = field(
        default_factory=lambda: defaultdict[Key, dict[int, set[bytes]]](
            lambda: defaultdict(set[bytes])
        )
    )  # offset -> what was sent or read there
    offsets: dict[tuple[Key, bytes], set[int]] = field(
        default_factory=lambda: defaultdict[tuple[Key, bytes], set[int]](set[int])
    )
    places: dict[bytes, set[Key]] = field(
        default_factory=lambda: defaultdict[bytes, set[Key]](set[Key])
    )
    read: dict[Key, set[int]] = field(default_factory=lambda: defaultdict[Key, set[int]](set[int]))
    ranks: dict[Key, dict[int, int]] = field(default_factory=dict[Key, dict[int, int]])

    @classmethod
    def of(cls, ops: Sequence[Op]) -> "Facts":
        facts = cls()
        for op in ops:
            for key, value, offset in op.sent:
                if offset is not None and op.outcome != "fail":
                    facts._note(key, offset, value)
            for key, offset, value in op.polled:
                facts._note(key, offset, value)
                facts.read[key].add(offset)
        for key, known in facts.values.items():
            facts.ranks[key] = {offset: rank for rank, offset in enumerate(sorted(known))}
        return facts

    def _note(self, key: Key, offset: int, value: bytes) -> None:
        self.values[key][offset].add(value)
        self.offsets[key, value].add(offset)
        self.places[value].add(key)

    def skipped(self, key: Key, first: int, last: int) -> int:
        """How many offsets that hold records lie between two that do."""
        ranks = self.ranks[key]
        return ranks[last] - ranks[first] - 1


def check(ops: Sequence[Op], *, drained: bool = False) -> list[Finding]:
    """Everything that is wrong with a history, in the order in which operations began.

    ``drained``: at its end somebody read everything, so nothing may be unseen (L4).
    """
    facts = Facts.of(ops)
    checks: tuple[Callable[[Sequence[Op], Facts], Iterator[Finding]], ...] = (
        inconsistent_offsets,
        duplicates,
        lost_writes,
        aborted_reads,
        within_polls,
        between_polls,
        sends,
        realtime_order,
    )
    found = [finding for each in checks for finding in each(ops, facts)]
    if drained:
        found += unseen(ops, facts)
    return found


def inconsistent_offsets(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """One offset of one partition is one record, for ever and for everybody (S2, S12)."""
    for key, known in facts.values.items():
        for offset, values in sorted(known.items()):
            if len(values) > 1:
                shown = " and ".join(sorted(map(_short, values)))
                yield Finding("inconsistent-offsets", f"{_place(key, offset)} is {shown}")


def duplicates(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """One record is at one offset (S15)."""
    for (key, value), offsets in facts.offsets.items():
        if len(offsets) > 1:
            yield Finding("duplicate", f"{_short(value)} is at {sorted(offsets)} of {key}")
    for value, keys in facts.places.items():
        if len(keys) > 1:
            yield Finding("duplicate", f"{_short(value)} is in {sorted(keys)}")


def lost_writes(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """What was acked at or below the highest offset read by anybody was read by somebody (S2)."""
    highest = {key: max(read) for key, read in facts.read.items()}
    for op in ops:
        for key, value, offset in op.sent if op.outcome == "ok" else ():
            lost = offset is not None and offset <= highest.get(key, -1)
            if lost and offset not in facts.read[key]:
                what = (
                    f"{_short(value)} was acked at {_place(key, offset)}, {_highest(highest, key)}"
                )
                yield Finding("lost-write", what)


def aborted_reads(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """What was said not to be written is never read (G1a without transactions)."""
    refused = {value: op for op in ops if op.outcome == "fail" for _, value, _ in op.sent}
    for value in refused.keys() & facts.places.keys():
        [key, *_] = sorted(facts.places[value])
        where = sorted(facts.offsets[key, value])
        what = f"{_short(value)} of {refused[value].process} is at {where} of {key}"
        yield Finding("aborted-read", what)


def within_polls(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """One poll returns what follows upon each other, of each partition (S25)."""
    for op in ops:
        last: dict[Key, int] = {}
        for key, offset, _ in op.polled:
            before = last.get(key)
            last[key] = offset
            if before is None:
                continue
            if offset <= before:
                what = f"{op.process} was handed {_place(key, offset)} behind {before}"
                yield Finding("int-nonmonotonic-poll", what)
            elif skipped := facts.skipped(key, before, offset):
                what = f"{op.process}: {skipped} between {before} and {_place(key, offset)}"
                yield Finding("int-poll-skip", what)


def between_polls(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """The next poll of a process goes on where the last one ended.

    From a subscription nothing follows; an assignment is a new beginning.
    """
    last: dict[str, dict[Key, int]] = defaultdict(dict[Key, int])
    subscribed: set[str] = set()
    for op in ops:
        if op.what in ("assign", "subscribe"):
            last[op.process] = {}
            (subscribed.add if op.what == "subscribe" else subscribed.discard)(op.process)
        if op.process in subscribed:
            continue
        mine = last[op.process]
        firsts = {key: offset for key, offset, _ in reversed(op.polled)}
        for key, offset in firsts.items():
            before = mine.get(key)
            if before is None:
                continue
            if offset <= before:
                what = f"{op.process} was handed {_place(key, offset)} after {before}"
                yield Finding("nonmonotonic-poll", what)
            elif skipped := facts.skipped(key, before, offset):
                what = f"{op.process} missed {skipped} between {before} and {_place(key, offset)}"
                yield Finding("poll-skip", what)
        for key, offset, _ in op.polled:
            mine[key] = offset


def sends(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """What one process sends to a partition, one after the other, stands in that order (S16).

    Others may come between. Of sends that overlapped nothing follows.
    """
    done: dict[tuple[str, Key], tuple[int, float]] = {}  # highest offset, when that one ended
    for op in ops:
        if op.what != "send" or op.outcome == "fail":
            continue
        last: dict[Key, int] = {}
        for key, value, offset in op.sent:
            offset = _offset(facts, key, value, offset)
            if offset is None:
                continue
            before = last.get(key)
            if before is not None and offset <= before:
                what = f"{op.process} sent {_short(value)} second: {_place(key, offset)}, {before}"
                yield Finding("int-nonmonotonic-send", what)
            known = done.get((op.process, key))
            if known is not None and known[1] < op.began_at and offset <= known[0]:
                what = f"{op.process} sent {_short(value)} to {_place(key, offset)}, after {known}"
                yield Finding("nonmonotonic-send", what)
            last[key] = offset
        if op.outcome == "ok" and op.ended_at is not None:
            for key, offset in last.items():
                known = done.get((op.process, key))
                if known is None or offset > known[0]:
                    done[op.process, key] = offset, op.ended_at


def realtime_order(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """What was acked before another record was sent stands before it (S14)."""
    starts: dict[Key, list[tuple[float, int, bytes]]] = defaultdict(list)
    ends: dict[Key, list[tuple[float, int]]] = defaultdict(list)
    for op in ops:
        for key, value, offset in op.sent if op.outcome != "fail" else ():
            offset = _offset(facts, key, value, offset)
            if offset is not None:
                starts[key].append((op.began_at, offset, value))
                if op.outcome == "ok" and op.ended_at is not None:
                    ends[key].append((op.ended_at, offset))
    for key, begun in starts.items():
        ended, at, newest = sorted(ends[key]), 0, -1
        for began_at, offset, value in sorted(begun):
            while at < len(ended) and ended[at][0] < began_at:
                newest = max(newest, ended[at][1])
                at += 1
            if offset <= newest:
                what = f"{_short(value)} at {_place(key, offset)} was sent after {newest} was acked"
                yield Finding("realtime-order", what)


def unseen(ops: Sequence[Op], facts: Facts) -> Iterator[Finding]:
    """What was acked and never read, wherever it stands (L4)."""
    for key, count in unseen_counts(ops, facts.read).items():
        if count:
            yield Finding("unseen", f"{count} acked records of {key} were never read")


def unseen_counts(ops: Sequence[Op], read: Mapping[Key, Collection[int]]) -> dict[Key, int]:
    """How many acked records of each partition nobody has read."""
    found: dict[Key, int] = {}
    for op in ops:
        for key, _, offset in op.sent if op.outcome == "ok" else ():
            missing = offset is not None and offset not in read.get(key, ())
            found[key] = found.get(key, 0) + missing
    return found


def _offset(facts: Facts, key: Key, value: bytes, told: int | None) -> int | None:
    """Where a record is: as its producer was told, or else as it was read."""
    if told is not None:
        return told
    offsets = facts.offsets.get((key, value))
    return min(offsets) if offsets else None


def _short(value: bytes) -> str:
    return repr(value if len(value) <= SHOWN_BYTES else value[:SHOWN_BYTES] + b"...")


def _place(key: Key, offset: int | None) -> str:
    return f"{key[0]}[{key[1]}]@{offset}"


def _highest(highest: Mapping[Key, int], key: Key) -> str:
    return f"{highest[key]} was read, it never was"
