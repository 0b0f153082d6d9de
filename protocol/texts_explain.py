"""The sentences of explanations, and the commands they end in (``tailrace explain``). Pure.

A command is whole: names are quoted for a shell, and one that begins with a dash stands behind
``--``. Commands that destroy or move something ask before they do it. What is said of groups alone
stands in ``texts_explain_group``.
"""

import math
import shlex
from collections.abc import Sequence

from tailrace.protocol import errors
from tailrace.protocol.texts import partition_name, shown
from tailrace.protocol.units import (
    counted,
    duration_setting,
    format_count as count,
    format_duration,
    format_size,
    size_setting,
)

LISTED_MAX = 5  # names in one sentence


# ── commands ─────────────────────────────────────────────────────────────────────────────────


def command(verb: str, name: str, *options: str) -> str:
    """``tailrace group reset billing --to start``."""
    words = [name, *options] if not name.startswith("-") else [*options, "--", name]
    return " ".join(("tailrace", verb, *map(shlex.quote, words)))


def cat(topic: str, partition: int, offset: int) -> str:
    return command("cat", f"{topic}:{partition}:{offset}")


def read_on(topic: str, partition: int, offset: int) -> str:
    """The first record from an offset on; ends also where there is none."""
    return command("consume", topic, *("-p", str(partition), "-o", str(offset), "-n", "1", "-e"))


def last_record(topic: str, partition: int) -> str:
    return command("tail", topic, *("-p", str(partition), "-n", "1"))


def reset(group: str, topic: str, partition: int, to: int | str) -> str:
    """Refused with T044 while the group has members."""
    return command("group reset", group, "--to", str(to), "--partition", f"{topic}:{partition}")


def explain(target: str, group: str | None = None) -> str:
    return command("explain", target, *(("-g", group) if group is not None else ()))


def explain_group(group: str) -> str:
    """``--group=`` takes any name, also one that begins with a dash."""
    option = shlex.quote(f"--group={group}") if group[:1] == "-" else f"-g {shlex.quote(group)}"
    return f"tailrace explain {option}"


def describe_group(group: str) -> str:
    return command("group describe", group)


DOCTOR = "tailrace doctor"
HEALTH = "tailrace cluster health"
TOPICS = "tailrace topic list"


def bad_target(reason: str) -> errors.InputError:
    """T062: what is to be explained cannot be told. ``reason``: "an offset needs its partition"."""
    hint = "Name a topic, a partition and an offset, in this order, or a group."
    return errors.InputError("T062", f"nothing to explain: {shown(reason)}", hint)


# ── words ────────────────────────────────────────────────────────────────────────────────────


def span(seconds: float) -> str:
    """``0.6 s``, ``5,400 s``, ``3.5 h``, ``6.9 d``: what takes so long is not read in seconds."""
    for unit, unit_s in (("d", 86_400), ("h", 3_600)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.1f}".removesuffix(".0") + f" {unit}"
    return format_duration(round(seconds, 1))


def listed(names: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    names = [shown(name) for name in names]
    if len(names) > LISTED_MAX:
        names = [*names[:LISTED_MAX], f"{count(len(names) - LISTED_MAX)} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# ── a record ─────────────────────────────────────────────────────────────────────────────────


def offline(topic: str, partition: int, reason: str) -> str:
    why = shown(reason).removesuffix(".")
    return f"{partition_name(topic, partition)} is offline, nothing of it can be read: {why}."


def beyond_end(topic: str, partition: int, offset: int, end: int) -> str:
    return (
        f"{partition_name(topic, partition)} ends at {count(end)}: there is no record"
        f" {count(offset)} yet, the next one to be written gets {count(end)}."
    )


def not_committed(topic: str, partition: int, high_watermark: int, end: int) -> str:
    return (
        f"The record is written but not committed: {partition_name(topic, partition)} ends at"
        f" {count(end)}, and nobody is shown what lies at or above its high watermark"
        f" {count(high_watermark)}."
    )


def waits_for_sync(sync_s: float | None, batches: int) -> str:
    """Why the high watermark stays behind: durability fsync. ``batches`` of waiting producers."""
    text = "With durability = fsync a record counts once the disk has it; "
    if sync_s is None:
        text += "no sync is under way"
    else:
        text += f"a sync has been under way for {span(sync_s)}"
    if batches:
        text += f", and {counted(batches, 'batch').replace('batchs', 'batches')} of producers"
        text += f" {'waits' if batches == 1 else 'wait'} for it"
    return f"{text}."


def log_starts(topic: str, partition: int, start: int) -> str:
    return f"{partition_name(topic, partition)} starts at {count(start)}: the record is gone."


def kept(retention_s: float, size_bytes: int | None) -> str | None:
    """What retention keeps, as it is set: "7d", "64KiB", "7d and 64KiB"; None: everything."""
    by_age = None if math.isinf(retention_s) else duration_setting(retention_s)
    by_size = None if size_bytes is None else size_setting(size_bytes)
    return " and ".join(filter(None, (by_age, by_size))) or None


def removed_by_retention(retention: str | None) -> str:
    """``retention`` None: the topic keeps everything, as it is set now."""
    if retention is None:
        return "Retention removed it; the topic had one then."
    return f"Retention ({retention}) removed it."


def removed_for_room(retention: str | None) -> str:
    """Of a topic that may be dropped from; ``retention`` None: it has none."""
    room = "it was dropped for want of room (on_full = drop_oldest)"
    if retention is None:
        return f"I{room[1:]}."
    return f"Retention ({retention}) removed it, or {room}: the broker's log says which."


def removed_by_command() -> str:
    return "delete-records moved the start past it."


def removed_somehow(retention: str | None, *, may_drop: bool) -> str:
    """``retention`` None: the topic keeps everything, as it is set now. ``may_drop``: but where
    room is short."""
    if may_drop:
        by = "It" if retention is None else f"Retention ({retention}) removed it, or it"
        return (
            f"{by} was dropped for want of room (on_full = drop_oldest), or delete-records removed"
            " it; which of them is not kept over a restart of the broker."
        )
    if retention is None:
        return (
            "As the topic is set now (no retention) only delete-records removes records; what it"
            " was is not kept over a restart of the broker."
        )
    return (
        f"Retention ({retention}) or delete-records removed it; which of them is not kept over a"
        " restart of the broker."
    )


def damaged(file: str, position: int, first: int, following: int, reason: str) -> str:
    return (
        f"The record lies in a damaged range, offsets {count(first)} to {count(following - 1)},"
        f" which is not served (T035): {shown(file)} at byte {count(position)}, {shown(reason)}."
        " The rest of the partition can be read. Restore the file from a copy while the broker is"
        " stopped, or go on behind the range."
    )


def undecodable(reason: str) -> str:
    return (
        "The record's batch is stored as it was sent and its checksums hold, but it cannot be"
        f" decoded: {shown(reason)}. It is served, and readers fail on it."
    )


def unreadable_file(reason: str) -> str:
    return f"Its file cannot be read at present: {shown(reason)}."


def readable(topic: str, partition: int, start: int, end: int) -> str:
    return (
        f"The record is there and can be read: {partition_name(topic, partition)} serves offsets"
        f" {count(start)} to {count(end - 1)}."
    )


def soon_erased(receipt: str) -> str:
    return f"Erasure {receipt} names it and is under way: it will be gone."


def compacted(offset: int) -> str:
    return (
        "Compaction removed the record: a later one has its key, or it was a tombstone whose time"
        f" was over. Which one that is cannot be told, as its key is not kept; offset"
        f" {count(offset)} stays a gap."
    )


def perhaps_erased(receipts: Sequence[str]) -> str:
    return (
        f"It may have been erased instead: {listed(receipts)} erased records of this partition,"
        " and receipts keep neither keys nor positions."
    )


def erased_by(receipt: str, *, certain: bool) -> str:
    if certain:
        return f"The record was erased: erasure {receipt} names it."
    return (
        f"The record was erased by erasure {receipt}: its fingerprint (16 bits) is that of a"
        " request for this record alone."
    )


def erased_by_one_of(receipts: Sequence[str]) -> str:
    """``receipts`` empty: none that fits is kept."""
    text = "The record was erased: nothing else leaves a gap in a topic that was never compacted."
    if not receipts:
        return f"{text} Its receipt is not kept any more (30 days, the newest 1,000 of a topic)."
    which = _by_one_of(receipts)
    return f"{text} That was {which}; receipts keep neither keys nor positions."


def erased_or_compacted(receipts: Sequence[str]) -> str:
    """Compaction has not reported to have come so far, which it does at its end."""
    return (
        f"The record was erased {_by_one_of(receipts)}, unless a compaction that has not come to"
        " its end took it: none has cleaned as far as here, and receipts keep neither keys nor"
        " positions."
    )


def _by_one_of(receipts: Sequence[str]) -> str:
    return f"by erasure {receipts[0]}" if len(receipts) == 1 else f"by one of {listed(receipts)}"


# ── a group and one partition ────────────────────────────────────────────────────────────────


def group_is_behind(group: str, verdict: str, lag: int, position: int) -> str:
    return (
        f"Group '{shown(group)}' is {counted(lag, 'record')} behind, at {count(position)}:"
        f" {verdict}."
    )


def reads_not(group: str, topic: str) -> str:
    return f"Group '{shown(group)}' does not read {shown(topic)}: no subscription, no commit."


def has_committed(group: str, committed: int) -> str:
    return f"Group '{shown(group)}' is past it: it has committed {count(committed)}."


def has_not_come(group: str, committed: int | None, before: int) -> str:
    """``before``: offsets that stand between its position and the record."""
    where = "has committed nothing here" if committed is None else f"is at {count(committed)}"
    ahead = "it is the next one" if not before else f"{count(before)} offsets come first"
    return f"Group '{shown(group)}' {where}: {ahead}."


# ── a partition ──────────────────────────────────────────────────────────────────────────────


def serves(topic: str, partition: int, start: int, end: int) -> str:
    name = partition_name(topic, partition)
    if start == end:
        return f"{name} is online and has no records."
    return f"{name} is online: offsets {count(start)} to {count(end - 1)} can be read."


def uncommitted(records: int) -> str:
    which = "1 record is" if records == 1 else f"{count(records)} records are"
    return f"{which} written but not committed."


def read_only(broker: str, has: str, limit: str) -> str:
    return (
        f"Producers get T031: broker {shown(broker)} is read-only, {has}, {limit}. They go on by"
        " themselves when there is room: shorten the retention of a large topic (tailrace topic"
        " alter NAME --set retention=1d), delete one, or free the disk from outside."
    )


def memory_full(limit_bytes: int) -> str:
    return (
        "Producers wait for memory: limits.request_memory"
        f" ({format_size(limit_bytes)}) is used up by requests in hand."
    )


def damaged_ranges(ranges: Sequence[str]) -> str:
    return f"Damaged and not served (T035): {listed(ranges)}."


def damaged_range(first: int, following: int, file: str, position: int) -> str:
    return f"offsets {count(first)}-{count(following - 1)} ({shown(file)} byte {count(position)})"


def only_open(size_bytes: int, limit_bytes: int, age_s: float) -> str:
    return (
        f"It does not shrink: all of it ({format_size(size_bytes)}) is in the open segment, and"
        " only closed ones are removed; that one is closed at"
        f" {format_size(limit_bytes)} or in {span(age_s)}."
    )


def kept_for(retention: str, oldest_s: float, left_s: float) -> str:
    return (
        f"It does not shrink before retention ({retention}) is over for its oldest segment: the"
        f" last record there is {span(oldest_s)} old, so it goes in {span(left_s)}."
    )


def kept_forever() -> str:
    return "It does not shrink: retention is forever, and there is no retention_size."


def kept_below_size(size_bytes: int, limit_bytes: int) -> str:
    return (
        f"It has {format_size(size_bytes)} of retention_size {format_size(limit_bytes)}; a segment"
        " goes when so much is left without it."
    )


def kept_for_doubt(doubt_s: float) -> str:
    return (
        "By the wall clock its oldest segment has expired, but that clock was set forward, or the"
        f" broker was off, by {span(doubt_s)}: retention believes that after a day of running."
    )


def kept_for_work() -> str:
    return (
        "Its oldest segment has expired and goes when the compaction or erasure that is at work"
        " there gives way."
    )


def kept_for_look() -> str:
    return "Its oldest segment has expired and goes with the next look (at most 30 s)."


def compaction(state: str, reason: str) -> str:
    return f"Compaction is {state}: {shown(reason).removesuffix('.')}."


def compaction_failed(error: str) -> str:
    return f"Compaction failed and is tried again: {shown(error).removesuffix('.')}."


def erasures_wait(pending: int, problem: str) -> str:
    text = f"{counted(pending, 'erasure')} {'is' if pending == 1 else 'are'} under way"
    return f"{text}: {shown(problem)}." if problem else f"{text}."


# ── a topic ──────────────────────────────────────────────────────────────────────────────────


def topic_serves(topic: str, partitions: int, records: int, size_bytes: int) -> str:
    return (
        f"{shown(topic)} has {counted(partitions, 'partition')}, all online, about"
        f" {counted(records, 'record')} in {format_size(size_bytes)}."
    )


def topic_offline(topic: str, partitions: int, down: int) -> str:
    verb = "is" if down == 1 else "are"
    return f"{shown(topic)}: {count(down)} of {counted(partitions, 'partition')} {verb} offline."


def group_reads(group: str, lag: int) -> str:
    behind = "has read all of it" if not lag else f"is {counted(lag, 'record')} behind in it"
    return f"Group '{shown(group)}' {behind}."
