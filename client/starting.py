"""Where a member of a group begins to read a partition (C15), and what it means if that is gone.

The committed offset where there is one; else ``start``, but the beginning for a partition that was
added after the group first subscribed. With ``commit="after"`` a start other than the beginning is
committed at once: it must hold if nothing is processed before the next start.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from tailrace.client.commits import CommitPoint
from tailrace.client.holding import Place
from tailrace.client.member import Member
from tailrace.client.membership import Assignment
from tailrace.protocol import texts, texts_group
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.feed import Feed

_log = logging.getLogger("tailrace.client")


class _Known(TypedDict):
    requested: int
    start: int
    end: int


async def find_places(
    feed: "Feed", member: Member, assignments: Sequence[Assignment]
) -> dict[TopicPartition, Place]:
    """A place for each; tells T073 of those without a commit.

    Raises RequestTimeout T034 and what else the brokers say. Cancelled: nothing was told.
    """
    options = feed.options
    assert options.group is not None
    timeout_s = feed.client.options.request_timeout
    committed = await member.committed([one.at for one in assignments], timeout=timeout_s)
    positions = {at: one.offset for at, one in committed.items() if one is not None}
    fresh = [one.at for one in assignments if one.at not in positions and not one.added_later]
    later = [one.at for one in assignments if one.at not in positions and one.added_later]
    starts = await feed.offsets(fresh, options.start) if fresh else {}
    if later:
        starts |= await feed.offsets(later, "earliest")
    if fresh and options.start != "earliest" and options.group.commit == "after":
        points = {at: CommitPoint(starts[at]) for at in fresh}
        await member.commit(points, lower=False)
    skipped = 0
    if fresh and options.start == "latest":
        first = await feed.offsets(fresh, "earliest")
        skipped = sum(starts[at] - first[at] for at in fresh)
    ends: dict[TopicPartition, int] = {}
    if options.stop_at_end:
        ends = await feed.offsets([one.at for one in assignments], "latest")
    feed.skipped += skipped
    if starts:
        _tell_starts(starts, options.group.name)
    places: dict[TopicPartition, Place] = {}
    for one in assignments:
        at = one.at
        position, end = positions.get(at, starts.get(at, 0)), ends.get(at)
        wrong: OffsetOutOfRange | None = None
        if end is not None and position > end:  # nothing would ever be fetched that could tell
            lowest = (await feed.offsets([at], "earliest"))[at]
            name = options.group.name
            wrong = texts.offset_out_of_range(
                at.topic, at.partition, requested=position, start=lowest, end=end, group=name
            )
        places[at] = Place(position, at in positions, end, wrong)
    return places


def _tell_starts(starts: dict[TopicPartition, int], group: str) -> None:
    notice = texts_group.starting_at(
        [(at.topic, at.partition, starts[at]) for at in sorted(starts)], group=group
    )
    _log.info("%s", notice, extra={"event": "consumer.starting", "code": notice.code})


async def explained(
    feed: "Feed", at: TopicPartition, error: OffsetOutOfRange, group: str, began: Place | None
) -> OffsetOutOfRange:
    """T041 as a member of a group needs to hear it: what was committed, and how much expired."""
    known = _Known(requested=error.requested, start=error.start, end=error.end)
    committed = began is not None and began.committed and began.position == error.requested
    if not committed or error.requested >= error.start:
        return texts.offset_out_of_range(at.topic, at.partition, **known, group=group)
    retention = await _retention(feed, at.topic)
    return texts.committed_out_of_range(
        at.topic, at.partition, **known, group=group, retention=retention
    )


async def _retention(feed: "Feed", topic: str) -> str:
    """As it is set: "7d"; "unknown" if nobody says."""
    try:
        detail = await feed.client.admin.describe_topic(topic)
    except TailraceError:
        return "unknown"
    return next((entry.value for entry in detail.config if entry.key == "retention"), "unknown")
