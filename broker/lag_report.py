"""What ListGroups and DescribeGroup answer, and what a scrape shows of groups.

The coordinator knows the groups, the watcher how far they are; here it is put together.
"""

import difflib
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import trio

from tailrace.broker.catalog import Catalog
from tailrace.broker.lag import VERDICTS, worst
from tailrace.broker.metrics import GroupGauges, LagGauges
from tailrace.broker.watcher import Progress, Watcher, topics_of
from tailrace.protocol import texts_group
from tailrace.protocol.errors import GroupNotFound
from tailrace.protocol.messages import (
    DescribeGroupResponse,
    GroupSummary,
    ListGroupsResponse,
    PartitionProgress,
)
from tailrace.protocol.seams import Clock

if TYPE_CHECKING:
    from tailrace.broker.group import Group

SIMILAR_MAX = 3
SIMILAR_AMONG_MAX = 500  # names compared, the nearest by the alphabet: up to 0.1 ms each
AT_ONCE = 8  # groups, before others get their turn
FRESH_S = 1.0  # two scrapes within that see the same


class LagReport:
    """``groups``: the coordinator's, all that are loaded."""

    def __init__(self, watcher: Watcher, clock: Clock, broker_id: str) -> None:
        self._watcher = watcher
        self._clock = clock
        self._broker_id = broker_id
        self._gauges: list[GroupGauges] = []
        self._gauged_at = float("-inf")

    async def look(self) -> None:
        """Look at all groups now, not only each second."""
        await self._watcher.look()

    async def list_groups(self, groups: Iterable["Group"]) -> ListGroupsResponse:
        """Every group, sorted by name."""
        found: list[GroupSummary] = []
        for count, group in enumerate(sorted(groups, key=lambda one: one.name), 1):
            found.append(self.summary(group, await self._watcher.progress(group)))
            if count % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return ListGroupsResponse(tuple(found))

    async def describe_group(self, group: "Group") -> DescribeGroupResponse:
        """One group; after a second at most, where the disk has to be read."""
        progress = await self.progress(group)
        return DescribeGroupResponse(
            summary=self.summary(group, progress),
            members=group.describe_members(trio.current_time(), self._clock.wall_ms()),
            partitions=tuple(self._partition(group, one) for one in progress),
        )

    async def progress(self, group: "Group") -> list[Progress]:
        """What is known of each partition; as ``describe_group``."""
        await self._watcher.warm(group)
        return await self._watcher.progress(group)

    def summary(self, group: "Group", progress: Sequence[Progress]) -> GroupSummary:
        """A group, from what is known of each of its partitions."""
        drains = [one.drain_s for one in progress if one.lag_records]
        known = [one.lag_ms for one in progress if one.lag_ms is not None]
        return GroupSummary(
            name=group.name,
            state=group.state,
            members=len(group.members),
            generation=group.generation,
            topics=group.topics(),
            coordinator=self._broker_id,
            lag_records=sum(one.lag_records for one in progress),
            lag_ms=max(known) if known else None if progress else 0,
            drain_ms=_slowest_ms(drains),
            verdict=worst(one.verdict for one in progress),
        )

    def _partition(self, group: "Group", one: Progress) -> PartitionProgress:
        committed = one.committed
        return PartitionProgress(
            topic=one.topic,
            partition=one.partition,
            committed=None if committed is None else committed.offset,
            committed_at=None if committed is None else committed.committed_at,
            metadata="" if committed is None else committed.metadata,
            log_start=one.log_start,
            log_end=one.log_end,
            member_id=group.owner(one.topic_id, one.partition),
            lag_records=one.lag_records,
            lag_ms=one.lag_ms,
            rate_milli=max(0, round(one.rate * 1000)),
            verdict=one.verdict,
            margin_ms=None if one.margin_s is None else round(one.margin_s * 1000),
        )

    # ── metrics ──────────────────────────────────────────────────────────────────────────────

    async def refresh(self, groups: Iterable["Group"]) -> None:
        """Work out what ``gauges`` returns, if that was not done within the last second."""
        now = self._clock.now()
        if now - self._gauged_at < FRESH_S:
            return
        self._gauged_at = now
        found: list[GroupGauges] = []
        for count, group in enumerate(list(groups), 1):
            found.append(_gauges(group, await self._watcher.progress(group)))
            if count % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        self._gauges = found

    def gauges(self) -> list[GroupGauges]:
        """As of the last ``refresh``."""
        return self._gauges


def not_found(name: str, groups: Iterable["Group"]) -> GroupNotFound:
    """T043 for a group, with the names somebody may have meant."""
    names = sorted(group.name for group in groups)
    at = max(0, bisect_left(names, name) - SIMILAR_AMONG_MAX // 2)
    near = names[at : at + SIMILAR_AMONG_MAX]
    return texts_group.group_not_found(
        name, similar=difflib.get_close_matches(name, near, n=SIMILAR_MAX)
    )


def readers(groups: Iterable["Group"], catalog: Catalog) -> dict[bytes, tuple[str, ...]]:
    """By topic id the names of the groups that read it, sorted."""
    found: dict[bytes, list[str]] = {}
    for group in sorted(groups, key=lambda one: one.name):
        for topic in topics_of(group, catalog):
            found.setdefault(topic.topic_id, []).append(group.name)
    return {topic_id: tuple(names) for topic_id, names in found.items()}


def _gauges(group: "Group", progress: Sequence[Progress]) -> GroupGauges:
    return GroupGauges(
        group.name,
        VERDICTS.index(worst(one.verdict for one in progress)),
        len(group.members),
        tuple(
            LagGauges(
                topic=one.topic,
                partition=one.partition,
                lag_records=one.lag_records,
                lag_s=None if one.lag_ms is None else one.lag_ms / 1000,
                margin_s=math.inf if one.margin_s is None else one.margin_s,
            )
            for one in progress
        ),
    )


def _slowest_ms(drains: Sequence[float | None]) -> int | None:
    """Until all have caught up; None: some never do."""
    known = [one for one in drains if one is not None]
    if len(known) < len(drains):
        return None
    return round(max(known, default=0.0) * 1000)
