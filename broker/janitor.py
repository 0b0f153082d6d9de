"""The housekeeping of one broker: retention, and room on the disk.

``run_retention`` looks at every partition each min(30 s, retention / 20), and at once when a
setting was changed: it closes segments that are old or large enough and removes what has expired,
by the trusted clock (clock.py), so that no step of the wall clock removes anything (S29).

``run_space`` looks at the disk each second, and whenever so much was appended that it may matter
(space.py). Where room is short it makes some: what retention lets go, then the oldest segments of
topics with ``on_full = drop_oldest``, over all of them (storage/retention.py). When the disk is
really full the ballast goes, so that metadata, log starts and indexes can still be written; it is
back before producers are let in again (R28).

Both take ``partition.maintenance``, and pass by whoever else holds it. Files are removed in
threads. An ``OSError`` is logged and the work tried again later; a failed sync ends the broker
(R21).
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.clock import Timekeeper
from tailrace.broker.config import TopicConfig
from tailrace.broker.flusher import Flusher
from tailrace.broker.health import Health
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.space import Room
from tailrace.broker.world import World
from tailrace.protocol import texts
from tailrace.protocol.units import format_size
from tailrace.storage.ballast import Ballast
from tailrace.storage.retention import (
    RetentionPolicy,
    SegmentFacts,
    oldest_to_drop,
    segments_to_drop,
)

log = logging.getLogger("tailrace.broker.janitor")

RETENTION_EVERY_S = 30.0
RETENTION_SHARE = 20  # of the retention, as a divisor: how late a record may go
RETENTION_LEAST_S = 0.25
DISK_EVERY_S = 1.0
PRESSED_EVERY_S = 1.0  # retention under pressure: nothing more expires any faster


class Janitor:
    def __init__(
        self,
        world: World,
        path: str,
        ballast: Ballast,
        shelf: Shelf,
        flusher: Flusher,
        time: Timekeeper,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._world = world
        self._path = path
        self._space = shelf.space
        self._ballast = ballast
        self._shelf = shelf
        self._flusher = flusher
        self._time = time
        self._health = health
        self._metrics = metrics
        self._looked: dict[Partition, float] = {}  # when retention did
        self._ahead: dict[tuple[str, int, bool], float] = {}  # see _age_ms
        self._every_s = RETENTION_EVERY_S
        self._pressed_at = -math.inf  # when retention was last looked at for want of room
        self._at_once = False
        self._waiting: list[trio.Event] = []  # for the end of a look at all partitions
        self._scopes: list[trio.CancelScope] = []  # of what runs
        self._ended = Bell()
        self._retention_bell = Bell()
        self._space_bell = Bell()
        self._space.wanted = self._space_bell.ring
        self._flusher.short_of_room = lambda: self._space.pressed

    def now(self) -> None:
        """Look at everything now: a setting was changed, say."""
        self._at_once = True
        self._retention_bell.ring()
        self._space_bell.ring()

    async def clean(self) -> None:
        """Look at everything now, and return when retention is through."""
        through = trio.Event()
        self._waiting.append(through)
        self.now()
        await through.wait()

    async def stop(self) -> None:
        """End both; on return no file is touched any more."""
        for scope in self._scopes:
            scope.cancel()
        while self._scopes:
            await self._ended.wait()

    async def _until_stopped(self, work: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                await work()
            finally:
                self._scopes.remove(scope)
                self._ended.ring()

    # ── retention ────────────────────────────────────────────────────────────────────────────

    async def run_retention(self) -> None:
        """Keep to what the topics' settings say, until ``stop``."""
        await self._until_stopped(self._keep_retention)

    async def _keep_retention(self) -> None:
        while True:
            with trio.move_on_after(self._every_s):
                await self._retention_bell.wait()
            waiting, self._waiting = self._waiting, []
            at_once, self._at_once = self._at_once, False
            await self._look_around(at_once=at_once)
            for one in waiting:
                one.set()
            await self._time.keep_beat(self._world.offload)

    async def _look_around(self, *, at_once: bool) -> None:
        """Retention of every partition whose time has come, or of all."""
        now, before = self._world.clock.now(), self._looked
        self._looked, self._every_s = {}, RETENTION_EVERY_S
        if self._ahead:
            paths = {partition.log.path for partition in self._shelf}
            self._ahead = {name: since for name, since in self._ahead.items() if name[0] in paths}
        for partition in self._shelf:
            every_s = _every_s(partition.config)
            looked = before.get(partition, -math.inf)
            if at_once or now - looked >= every_s:
                await self._retain(partition)
                looked = now
            self._looked[partition] = looked
            self._every_s = min(self._every_s, every_s)
            await trio.lowlevel.checkpoint()

    async def _retain(self, partition: Partition) -> None:
        """Seal what is old enough, remove what has expired; not if somebody else is at work."""
        try:
            partition.maintenance.acquire_nowait()
        except trio.WouldBlock:
            return
        try:
            partition.log.expire_producers(self._time.now_ms())
            await self._try(partition, self._seal)
            await self._try(partition, self._expire)
        finally:
            partition.maintenance.release()

    async def _try(
        self, partition: Partition, work: Callable[[Partition], Awaitable[None]]
    ) -> None:
        """One thing that fails, on a full disk say, must not keep the others from being done."""
        if not partition.serving:
            return
        try:
            await work(partition)
        except OSError as error:
            self._tell_failed(partition, error)

    async def _seal(self, partition: Partition) -> None:
        """Begin a new segment where the active one is past its age, or its size by now."""
        config, active = partition.config, partition.log.segments()[-1]
        if active.first_append_time is None:
            return
        old = self._age_ms(partition, active, active.first_append_time) >= config.segment_age_ms
        large = active.size_bytes > self._shelf.log_config(config).segment_bytes
        if (old or large) and partition.log.roll():
            partition.tell_rolled()
            self._flusher.written(partition)

    async def _expire(self, partition: Partition) -> None:
        """Remove what retention does not keep."""
        config = partition.config
        if not config.deletes:
            return
        segments = partition.log.segments()
        count = segments_to_drop(
            segments,
            RetentionPolicy(config.retention_ms, config.retention_size_bytes),
            age_ms=lambda one: self._age_ms(partition, one, one.last_append_time or 0),
            high_watermark=partition.high_watermark,
        )
        if count:
            await self._drop(partition, segments[:count], "expired")

    def _age_ms(self, partition: Partition, segment: SegmentFacts, stamp_ms: int) -> int:
        """The least age of an append time. One that is ahead of the clock (which was ahead once,
        and was set back) ages from when that was first seen, or it would stay for ever (R20)."""
        age_ms = self._time.age_ms(stamp_ms)
        if age_ms >= 0:
            return age_ms
        now = self._world.clock.now()
        name = (partition.log.path, segment.base_offset, segment.sealed)
        if name not in self._ahead:
            self._ahead[name] = now
            notice = texts.clock_skew(
                skew_s=age_ms / 1000, other=f"{partition.topic}[{partition.number}]"
            )
            log.warning("%s", notice, extra={"event": "clock.skew", "code": notice.code})
        return int((now - self._ahead[name]) * 1000)

    async def _drop(self, partition: Partition, gone: Sequence[SegmentFacts], why: str) -> int:
        """Remove these segments from the front of a log; how many bytes went.

        A segment may go once what it says of producers is saved elsewhere (R35): that is done by
        a sync round, and on a full disk only after the ballast is gone.
        """
        offset = gone[-1].next_offset
        size_bytes = await self._trim(partition, offset)
        if size_bytes < sum(one.size_bytes for one in gone) and partition.log.needs_sync:
            await self._flusher.flush([partition])
            if partition.serving:
                size_bytes += await self._trim(partition, offset)
        if size_bytes:
            partition.metrics.retention_deleted_bytes.inc(size_bytes)
            log.info(
                "%s[%d]: %s %s; it starts at offset %d",
                *(partition.topic, partition.number, format_size(size_bytes), why),
                partition.log.start,
                extra={"event": "retention.deleted", "code": None, "bytes": size_bytes},
            )
        return size_bytes

    async def _trim(self, partition: Partition, offset: int) -> int:
        job = partition.log.trim(offset)
        if job is None:
            return 0
        size_bytes = job.size_bytes
        await self._world.offload.run(job.publish)
        partition.log.trimmed(job)
        for segment in job.gone:
            self._ahead.pop((partition.log.path, segment.base_offset, True), None)
        await self._world.offload.run(job.finish)
        return size_bytes

    def _tell_failed(self, partition: Partition, error: OSError) -> None:
        log.error(
            "retention of %s[%d] failed, trying again in %.0f s: %s",
            *(partition.topic, partition.number, _every_s(partition.config), error),
            extra={"event": "retention.failed", "code": None},
        )

    # ── room on the disk ─────────────────────────────────────────────────────────────────────

    async def run_space(self) -> None:
        """See that there is room, until ``stop``."""
        await self._until_stopped(self._keep_space)

    async def _keep_space(self) -> None:
        while True:
            self.look()
            if self._space.pressed:
                await self._make_room()
            await self._keep_ballast()
            self.tell()
            with trio.move_on_after(DISK_EVERY_S):
                await self._space_bell.wait()

    def look(self) -> None:
        """See how much room there is."""
        used_bytes = self._shelf.size_bytes if self._space.limits_records else 0
        room = Room(*self._world.disk.usage(self._path), used_bytes)
        self._space.look(room, missing_ballast=self._ballast.missing_bytes)
        self._metrics.disk_free_bytes.set(room.free_bytes)

    async def _make_room(self) -> None:
        """As much as is wanted, or as can be."""
        now = self._world.clock.now()
        if now - self._pressed_at >= PRESSED_EVERY_S:
            self._pressed_at = now
            await self._keep_ballast()  # it may be what retention needs to be able to work
            for partition in self._shelf:
                await self._retain(partition)
            self.look()
        while (wanted_bytes := self._space.missing_bytes) > 0:
            if not await self._drop_oldest(wanted_bytes):
                self._space.drained = True
                return
            self.look()

    async def _drop_oldest(self, wanted_bytes: int) -> int:
        """Drop the oldest segments of those topics that may; how many bytes that were."""
        partitions = [
            one
            for one in self._shelf
            if one.serving and one.config.on_full == "drop_oldest" and one.config.deletes
        ]
        logs = [(one.log.segments(), one.high_watermark) for one in partitions]
        counts = oldest_to_drop(logs, wanted_bytes, now_ms=self._world.clock.wall_ms())
        dropped_bytes = 0
        for partition, (segments, _), count in zip(partitions, logs, counts, strict=True):
            if not count or not partition.serving:
                continue
            try:
                partition.maintenance.acquire_nowait()
            except trio.WouldBlock:
                continue  # a compaction, say, which may take its time
            try:
                dropped_bytes += await self._drop(partition, segments[:count], "dropped for room")
            except OSError as error:
                self._tell_failed(partition, error)
            finally:
                partition.maintenance.release()
        return dropped_bytes

    async def _keep_ballast(self) -> None:
        ballast, space = self._ballast, self._space
        try:
            if not space.read_only and not ballast.held:
                await self._world.offload.run(ballast.fill)
            elif ballast.held and space.free_bytes < ballast.size_bytes:
                await self._world.offload.run(ballast.drop)
                self.look()
        except OSError as error:
            log.warning(
                "the ballast could not be changed, trying again: %s",
                error,
                extra={"event": "disk.low", "code": None},
            )

    def tell(self) -> None:
        """Log, show and count whether writes are refused, when that has changed."""
        read_only = self._space.read_only
        self._metrics.disk_read_only.set(read_only)
        if read_only == bool(self._health.disk_low):
            return
        shortage = ", ".join(self._space.shortage())
        if read_only:
            self._health.disk_low = shortage
            log.error(
                "read-only: %s; free space or shorten retention",
                shortage,
                extra={"event": "disk.read_only", "code": "T031"},
            )
        else:
            self._health.disk_low = ""
            log.warning(
                "writes are taken again: %s",
                shortage,
                extra={"event": "disk.writable", "code": None},
            )


def _every_s(config: TopicConfig) -> float:
    """How often retention looks at a partition."""
    if config.retention_ms is None:
        return RETENTION_EVERY_S
    every_s = config.retention_ms / 1000 / RETENTION_SHARE
    return min(RETENTION_EVERY_S, max(RETENTION_LEAST_S, every_s))
