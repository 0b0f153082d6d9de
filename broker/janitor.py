"""The housekeeping of one broker: retention, and the reserve of the disk.

- Retention goes by append time and by a clock that moves with monotonic time, so that a step of
  the wall clock removes nothing (S29, R20). It removes whole sealed segments below the high
  watermark, from the front.
- Below ``min_free`` writes are refused (T031) until 1% of the disk more is free (R28).
- When the disk is really full the ballast goes, so that topics can be altered and deleted and
  retention can do its work; it is back before writes are allowed again.
"""

import logging

import trio

from tailrace.broker.flusher import Flusher
from tailrace.broker.health import Health
from tailrace.broker.kinds import Free
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import World
from tailrace.protocol import texts
from tailrace.protocol.units import format_size
from tailrace.storage.ballast import Ballast
from tailrace.storage.retention import RetentionPolicy, SegmentFacts, segments_to_drop

log = logging.getLogger("tailrace.broker.janitor")

RETENTION_EVERY_S = 10.0
DISK_EVERY_S = 1.0
HYSTERESIS = 0.01  # of the disk: so much more than min_free must be free to write again


class Janitor:
    def __init__(
        self,
        world: World,
        path: str,
        min_free: Free,
        ballast: Ballast,
        shelf: Shelf,
        flusher: Flusher,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._world = world
        self._path = path
        self._min_free = min_free
        self._ballast = ballast
        self._shelf = shelf
        self._flusher = flusher
        self._health = health
        self._metrics = metrics
        self._began_now = world.clock.now()
        self._began_wall_ms = world.clock.wall_ms()
        self._ahead_since: dict[str, float] = {}  # segments stamped ahead of now, by name
        self._at_once = trio.Event()

    def now(self) -> None:
        """Look at retention now: a test has moved the clock."""
        self._at_once.set()

    async def run_retention(self) -> None:
        while True:
            with trio.move_on_after(RETENTION_EVERY_S):
                await self._at_once.wait()
            self._at_once = trio.Event()
            for partition in self._shelf:
                if partition.serving:
                    self._retain(partition)
                    await trio.lowlevel.checkpoint()

    async def run_disk(self) -> None:
        while True:
            self.check_disk()
            await self._keep_ballast()
            await trio.sleep(DISK_EVERY_S)

    # ── retention ────────────────────────────────────────────────────────────────────────────

    def _retain(self, partition: Partition) -> None:
        """Seal what is old enough, drop what has expired."""
        now_ms = self._now_ms()
        partition.log.expire_producers(now_ms)
        try:
            if partition.log.roll_if_old(now_ms):
                partition.tell_rolled()
                self._flusher.written(partition)
            segments = partition.log.segments()
            config = partition.config
            count = segments_to_drop(
                segments,
                RetentionPolicy(config.retention_ms, config.retention_size_bytes)
                if config.deletes
                else RetentionPolicy(None, None),
                now_ms=now_ms,
                high_watermark=partition.high_watermark,
                ahead_ms=self._ahead_ms(partition, segments, now_ms),
            )
            if count:  # the log may keep some for now: until a snapshot behind them is durable
                count = partition.log.drop_before(segments[count - 1].next_offset)
        except OSError as error:
            log.error(
                "retention of %s[%d] failed, trying again in %.0f s: %s",
                *(partition.topic, partition.number, RETENTION_EVERY_S, error),
                extra={"event": "retention.failed", "code": None},
            )
            return
        if count:
            size_bytes = sum(one.size_bytes for one in segments[:count])
            partition.metrics.retention_deleted_bytes.inc(size_bytes)
            log.info(
                "%s[%d]: %d segments of %s expired; it starts at offset %d",
                *(partition.topic, partition.number, count, format_size(size_bytes)),
                partition.log.start,
                extra={"event": "retention.deleted", "code": None, "bytes": size_bytes},
            )

    def _now_ms(self) -> int:
        """Wall time as of the start, moved on by the monotonic clock."""
        return self._began_wall_ms + int((self._world.clock.now() - self._began_now) * 1000)

    def _ahead_ms(
        self, partition: Partition, segments: list[SegmentFacts], now_ms: int
    ) -> dict[int, int]:
        """For how long each segment stamped ahead of now was seen so (R20)."""
        found: dict[int, int] = {}
        for segment in segments:
            stamp = segment.last_append_time
            if not segment.sealed or stamp is None or stamp <= now_ms:
                continue
            name = f"{partition.log.path}/{segment.base_offset}"
            if name not in self._ahead_since:
                skew_s = (now_ms - stamp) / 1000
                notice = texts.clock_skew(skew_s=skew_s, other=name)
                log.warning("%s", notice, extra={"event": "clock.skew", "code": notice.code})
            since = self._ahead_since.setdefault(name, self._world.clock.now())
            found[segment.base_offset] = int((self._world.clock.now() - since) * 1000)
        return found

    # ── the disk's reserve ───────────────────────────────────────────────────────────────────

    def check_disk(self) -> None:
        """Refuse writes below the reserve, allow them above it."""
        free_bytes, total_bytes = self._world.disk.usage(self._path)
        limit_bytes = self._min_free.bytes_of(total_bytes)
        read_only = self._shelf.read_only_free_bytes is not None
        if read_only:
            reserve_bytes = int(total_bytes * HYSTERESIS) + self._ballast.missing_bytes
            read_only = free_bytes < limit_bytes + reserve_bytes
        else:
            read_only = free_bytes < limit_bytes
        if read_only != (self._shelf.read_only_free_bytes is not None):
            self._tell(read_only, free_bytes, limit_bytes)
        self._shelf.read_only_free_bytes = free_bytes if read_only else None
        self._metrics.disk_free_bytes.set(free_bytes)
        self._metrics.disk_read_only.set(read_only)

    async def _keep_ballast(self) -> None:
        ballast, free_bytes = self._ballast, self._shelf.read_only_free_bytes
        try:
            if free_bytes is None and not ballast.held:
                await self._world.offload.run(ballast.fill)
            elif free_bytes is not None and ballast.held and free_bytes < ballast.size_bytes:
                await self._world.offload.run(ballast.drop)
        except OSError as error:
            log.warning(
                "the ballast could not be changed, trying again: %s",
                error,
                extra={"event": "disk.low", "code": None},
            )

    def _tell(self, read_only: bool, free_bytes: int, limit_bytes: int) -> None:
        free, limit = format_size(free_bytes), format_size(limit_bytes)
        if read_only:
            self._health.disk_low = f"{free} free, min_free {limit}"
            log.error(
                "read-only: %s free, min_free %s; free space or shorten retention",
                *(free, limit),
                extra={"event": "disk.read_only", "code": "T031", "free_bytes": free_bytes},
            )
        else:
            self._health.disk_low = ""
            log.warning(
                "writes are taken again: %s free, min_free %s",
                *(free, limit),
                extra={"event": "disk.writable", "code": None, "free_bytes": free_bytes},
            )
