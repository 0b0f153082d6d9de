"""The sentences of explanations of consumer groups. Pure."""

from collections.abc import Sequence

from tailrace.protocol.texts import partition_name, record_name, shown
from tailrace.protocol.texts_explain import listed, span
from tailrace.protocol.units import counted, format_count as count


def group_stands(group: str, state: str, members: int, lag: int) -> str:
    behind = "has read everything" if not lag else f"is {counted(lag, 'record')} behind"
    return f"Group '{shown(group)}' is {state} with {counted(members, 'member')} and {behind}."


def lost_records(
    group: str,
    topic: str,
    partition: int,
    committed: int,
    start: int,
    *,
    retention: str | None,
    owned: bool,
) -> str:
    """``owned``: there are members, and offsets can be moved only when there are none.
    ``retention`` None: it keeps everything, as it is set now."""
    by = "" if retention is None else f" (retention {retention})"
    stop = " Stop its members first." if owned else ""
    return (
        f"Group '{shown(group)}' cannot go on in {partition_name(topic, partition)} (T041): it is"
        f" at {count(committed)}, but the log starts at {count(start)}, so"
        f" {count(start - committed)} offsets are gone unread{by}.{stop}"
    )


def ahead_of_log(
    group: str, topic: str, partition: int, committed: int, end: int, *, owned: bool
) -> str:
    stop = " Stop its members first." if owned else ""
    return (
        f"Group '{shown(group)}' cannot go on in {partition_name(topic, partition)} (T041): it is"
        f" at {count(committed)}, but the log ends at {count(end)}.{stop}"
    )


def topic_missing(topic: str, similar: Sequence[str]) -> str:
    text = f"Its members subscribe to '{shown(topic)}', which does not exist"
    return f"{text}; similar: {listed(similar)}." if similar else f"{text} (any more)."


def partition_down(topic: str, partition: int) -> str:
    return f"{partition_name(topic, partition)} is offline: nobody can read it."


def position_damaged(topic: str, partition: int, offset: int) -> str:
    return f"{record_name(topic, partition, offset)}, the next one, is damaged and not served."


def nobody_reads(committed_s: float | None) -> str:
    text = "Nobody reads: the group has no members"
    last = "" if committed_s is None else f"; it last committed {span(committed_s)} ago"
    return f"{text}{last}."


def nobody_owns(topic: str, partition: int) -> str:
    return f"{partition_name(topic, partition)} belongs to no member at present."


def gathering() -> str:
    return "Its first assignment waits for more members to join (group.assign_delay)."


def moving(topic: str, partition: int, owner: str, left_s: float) -> str:
    return (
        f"{partition_name(topic, partition)} changes hands: {shown(owner)} still has it, and has"
        f" {span(left_s)} left to finish and commit."
    )


def stalled(topic: str, partition: int, offset: int, since_s: float | None, owner: str) -> str:
    """``since_s``: of the last commit; None: there never was one."""
    since = "nothing was ever committed there"
    if since_s is not None:
        since = f"for {span(since_s)} nothing was committed there"
    return (
        f"It is stalled in {partition_name(topic, partition)} at offset {count(offset)}:"
        f" {since}. {shown(owner)} has it"
    )


def owner_lives(heard_s: float) -> str:
    return (
        f" and was heard {span(heard_s)} ago: its handler is busy with a record or stuck. Its own"
        " log names the line if it blocks the event loop (T050), and the error if one is raised."
    )


def falls_behind(topic: str, partition: int, lag: int, rate: float, write_rate: float) -> str:
    return (
        f"It falls behind in {partition_name(topic, partition)}: {count(lag)} records, it reads"
        f" {rate:,.1f}/s while {write_rate:,.1f}/s are written."
    )


def will_lose(topic: str, partition: int, margin_s: float) -> str:
    return f"Unread records of {partition_name(topic, partition)} expire in {span(margin_s)}."


def idle_members(clients: Sequence[str], partitions: int, members: int) -> str:
    verb = "is" if len(clients) == 1 else "are"
    return (
        f"{listed(clients)} {verb} idle (T071): {counted(partitions, 'partition')} for"
        f" {counted(members, 'member')}. Stop a member, or leave it as a spare."
    )


def catching_up(drain_s: float | None) -> str:
    if drain_s is None:
        return "At the present rates it does not catch up."
    return f"At the present rates it catches up in {span(drain_s)}."
