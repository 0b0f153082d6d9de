"""The housekeeping of one broker: what retention does not keep goes; and room is kept.

It looks at every partition each min(30 s, retention / 20), at once when a setting was changed, and
when a topic with a ``retention_size`` begins a segment. It closes segments that are old or large
enough and removes what has expired, by the trusted clock (clock.py), so that no step of the wall
clock removes anything (S29).

Only the leader decides what goes: a follower's log begins where its leader's does, as soon as it is
told so.

Whoever holds ``partition.maintenance`` is passed by until the next look, unless something has
expired: then it is waited for, for a while. An ``OSError`` is logged
and the work tried again; a failed sync ends the broker (R21). ``room`` is the other task, which
sees that there is room on the disk.
"""

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.clock import Timekeeper
from tailrace.broker.config import TopicConfig
from tailrace.broker.flusher import Flusher
from tailrace.broker.health import Health
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.removal import Removal, take_turn
from tailrace.broker.roomkeeper import Roomkeeper
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import World
from tailrace.protocol import texts
from tailrace.storage.ballast import Ballast
from tailrace.storage.retention import RetentionPolicy, SegmentFacts, segments_to_drop

log = logging.getLogger("tailrace.broker.janitor")

RETENTION_EVERY_S = 30.0
RETENTION_SHARE = 20  # of the retention, as a divisor: how late a record may go
RETENTION_LEAST_S = 0.25


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
        self._shelf = shelf
        self._flusher = flusher
        self._time = time
        self._removal = Removal(world.offload, flusher)
        self.room = Roomkeeper(
            *(world, path, ballast, shelf, self._removal, health, metrics),
            retain=self._retain,
        )
        self._looked: dict[Partition, float] = {}  # when, at each
        self._around_at = 0.0  # when the next one is due, by the clock
        self._grown: dict[Partition, None] = {}  # since then, beyond their size perhaps
        self._ahead: dict[tuple[str, int, bool], float] = {}  # see _age_ms
        self._at_once = False
        self._waiting: list[trio.Event] = []  # for the end of a look at all partitions
        self._scopes: list[trio.CancelScope] = []  # of what runs
        self._ended = Bell()
        self._bell = Bell()
        shelf.on_roll = self._rolled
        shelf.on_start_told = self._start_told
        flusher.short_of_room = lambda: shelf.space.pressed

    def now(self) -> None:
        """Look at everything now: a setting was changed, say."""
        self._at_once = True
        self._bell.ring()
        self.room.now()

    async def clean(self) -> None:
        """The same, and return when retention is through."""
        through = trio.Event()
        self._waiting.append(through)
        self.now()
        await through.wait()

    async def run(self) -> None:
        """Keep to what the topics' settings say, until ``stop``."""
        await self._until_stopped(self._keep_retention)

    async def run_room(self) -> None:
        """See that there is room, until ``stop``."""
        await self._until_stopped(self.room.run)

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

    def _rolled(self, partition: Partition) -> None:
        """It has one more closed segment: too many, maybe."""
        if partition.config.retention_size_bytes is not None:
            self._grown[partition] = None
            self._bell.ring()

    def _start_told(self, partition: Partition) -> None:
        """Its leader's log begins further up."""
        self._grown[partition] = None
        self._bell.ring()

    async def _keep_retention(self) -> None:
        clock = self._world.clock
        while True:
            with trio.move_on_after(max(0.0, self._around_at - clock.now())):
                await self._bell.wait()
            waiting, self._waiting = self._waiting, []
            at_once, self._at_once = self._at_once, False
            grown, self._grown = self._grown, {}
            for partition in grown:
                await self._retain(partition)
            if at_once or clock.now() >= self._around_at:
                self._around_at = clock.now() + await self._look_around(at_once=at_once)
                await self._time.keep_beat(self._world.offload)
            for one in waiting:
                one.set()

    async def _look_around(self, *, at_once: bool) -> float:
        """Retention of every partition whose time has come, or of all; seconds until the next."""
        now, before, pause_s = self._world.clock.now(), self._looked, RETENTION_EVERY_S
        self._looked = {}
        if self._ahead:
            paths = {partition.log.path for partition in self._shelf}
            self._ahead = {name: since for name, since in self._ahead.items() if name[0] in paths}
        for partition in self._shelf:
            every_s = _every_s(partition.config)
            looked = before.get(partition, -math.inf)
            if at_once or now - looked >= every_s:
                await self._retain(partition)
                await trio.lowlevel.checkpoint()
                looked = now
            self._looked[partition] = looked
            pause_s = min(pause_s, looked + every_s - now)
        return pause_s

    async def _retain(self, partition: Partition) -> None:
        """Seal what is old enough, remove what has expired."""
        try:
            partition.maintenance.acquire_nowait()
        except trio.WouldBlock:  # a compaction starts anew when it has given way: not for nothing
            if not (partition.serving and self._has_to_go(partition)):
                return
            if not await take_turn(partition):
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
            log.error(
                "retention of %s[%d] failed, trying again in %.0f s: %s",
                *(partition.topic, partition.number, _every_s(partition.config), error),
                extra={"event": "retention.failed", "code": None},
            )

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

    def _has_to_go(self, partition: Partition) -> bool:
        """Whether there is something to be removed."""
        if partition.role == "follower":
            return _leader_start(partition) > partition.log.start
        return self._expired(partition)[1] > 0

    async def _expire(self, partition: Partition) -> None:
        """Remove what retention does not keep; on a follower what its leader does not have."""
        if partition.role == "follower":
            if await self._removal.follow(partition, _leader_start(partition)):
                self.room.freed()
            return
        segments, count = self._expired(partition)
        if count and await self._removal.drop(partition, segments[:count], "expired"):
            self.room.freed()

    def _expired(self, partition: Partition) -> tuple[list[SegmentFacts], int]:
        """All segments, and how many of them retention does not keep."""
        config, segments = partition.config, partition.log.segments()
        if not config.deletes or partition.role != "leader":
            return segments, 0
        return segments, segments_to_drop(
            segments,
            RetentionPolicy(config.retention_ms, config.retention_size_bytes),
            age_ms=lambda one: self._age_ms(partition, one, one.last_append_time or 0),
            high_watermark=partition.high_watermark,
        )

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


def _leader_start(partition: Partition) -> int:
    """Where a follower's log should begin, as far as it has come."""
    told = partition.following.log_start
    return min(told, partition.high_watermark, partition.log.flushed)


def _every_s(config: TopicConfig) -> float:
    """How often retention looks at a partition."""
    if config.retention_ms is None:
        return RETENTION_EVERY_S
    every_s = config.retention_ms / 1000 / RETENTION_SHARE
    return min(RETENTION_EVERY_S, max(RETENTION_LEAST_S, every_s))
