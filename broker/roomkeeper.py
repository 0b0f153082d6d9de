"""Sees that there is room on the disk (space.py), and refuses writes where there is none (R28).

It looks each second, and whenever so much was appended that it may matter. Where room is short it
makes some: what retention lets go, then the oldest segments of topics with ``on_full =
drop_oldest``, over all of them (storage/retention.py). When the disk is really full the ballast
goes, so that metadata, log starts and indexes can still be written; it is back before producers
are let in again.
"""

import logging
import math
from collections.abc import Awaitable, Callable

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.health import Health
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.removal import Removal, take_turn
from tailrace.broker.shelf import Shelf
from tailrace.broker.space import Room
from tailrace.broker.world import World
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.units import format_size
from tailrace.storage.ballast import Ballast
from tailrace.storage.retention import oldest_to_drop

log = logging.getLogger("tailrace.broker.roomkeeper")

LOOK_EVERY_S = 1.0
RETAIN_EVERY_S = 1.0  # retention under pressure: nothing more expires any faster


class Roomkeeper:
    def __init__(
        self,
        world: World,
        path: str,
        ballast: Ballast,
        shelf: Shelf,
        removal: Removal,
        health: Health,
        metrics: Metrics,
        *,
        retain: Callable[[Partition], Awaitable[None]],
    ) -> None:
        self._world = world
        self._path = path
        self._space = shelf.space
        self._ballast = ballast
        self._shelf = shelf
        self._removal = removal
        self._health = health
        self._metrics = metrics
        self._retain = retain  # the janitor's: remove what has expired
        self.open_wanting: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # the topics'
        self._retained_at = -math.inf
        self._low = False  # and it was told
        self._bell = Bell()
        self._space.wanted = self._bell.ring

    def now(self) -> None:
        """Look, and say what is to be said; what there is to do follows."""
        self.look()
        self.tell()
        self._bell.ring()

    def freed(self) -> None:
        """There is more room than there was."""
        if self._space.read_only:
            self._bell.ring()

    async def run(self) -> None:
        while True:
            self.look()
            if self._space.pressed:
                await self._make_room()
            self._tell_low()
            await self._keep_ballast()
            self.tell()
            if self._shelf.wanting and not self._space.read_only:
                await self._open_wanting()
            with trio.move_on_after(LOOK_EVERY_S):
                await self._bell.wait()

    def look(self) -> None:
        """See how much room there is."""
        used_bytes = self._shelf.size_bytes if self._space.limits_records else 0
        room = Room(*self._world.disk.usage(self._path), used_bytes)
        self._space.look(room, missing_ballast=self._ballast.missing_bytes)
        self._metrics.disk_free_bytes.set(room.free_bytes)

    async def _make_room(self) -> None:
        """As much as is wanted, or as can be."""
        now = self._world.clock.now()
        if now - self._retained_at >= RETAIN_EVERY_S:
            self._retained_at = now
            await self._keep_ballast()  # it may be what retention needs to be able to work
            for partition in self._shelf:
                await self._retain(partition)
            self.look()
        while (wanted_bytes := self._space.missing_bytes) > 0:
            dropped_bytes, all_tried = await self._drop_oldest(wanted_bytes)
            if not dropped_bytes:
                self._space.drained = all_tried
                return
            self.look()

    async def _drop_oldest(self, wanted_bytes: int) -> tuple[int, bool]:
        """Drop the oldest segments of those topics that may: how many bytes that were, and
        whether that is all there was, for now. False: somebody is at work on some."""
        partitions = [one for one in self._shelf if _may_drop(one)]
        logs = [(one.log.segments(), one.high_watermark) for one in partitions]
        counts = oldest_to_drop(logs, wanted_bytes, now_ms=self._world.clock.wall_ms())
        dropped_bytes, all_tried = 0, True
        for partition, (segments, _), count in zip(partitions, logs, counts, strict=True):
            if not count:
                continue
            if not await take_turn(partition):
                all_tried = False
                continue
            try:
                if _may_drop(partition):  # settings may have changed meanwhile
                    gone = segments[:count]
                    dropped_bytes += await self._removal.drop(partition, gone, "dropped for room")
            except OSError as error:
                log.error(
                    "no room could be made in %s[%d], trying again: %s",
                    *(partition.topic, partition.number, error),
                    extra={"event": "retention.failed", "code": None},
                )
            finally:
                partition.maintenance.release()
        return dropped_bytes, all_tried

    async def _open_wanting(self) -> None:
        try:
            await self.open_wanting()
        except MetadataUnavailable as error:
            log.warning("%s", error, extra={"event": "disk.low", "code": error.code})

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

    def _tell_low(self) -> None:
        """Warn when room is short although all was made that can be, before it runs out."""
        space = self._space
        if space.room_bytes >= space.high_bytes:
            self._low = False
        elif space.pressed and not self._low:
            self._low = True
            log.warning(
                "low: %s, %s; writes are refused when another %s are taken",
                *(*space.shortage(), format_size(max(0, space.room_bytes))),
                extra={
                    **{"event": "disk.low", "code": None, "free_bytes": space.free_bytes},
                    "room_bytes": space.room_bytes,
                },
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


def _may_drop(partition: Partition) -> bool:
    """Whether its oldest segments may go for want of room."""
    config = partition.config
    led = partition.serving and partition.role == "leader"  # a follower goes by its leader
    return led and config.on_full == "drop_oldest" and config.deletes
