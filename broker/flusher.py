"""Group commit: one sync round per disk for all who wait (R27, R32).

While a round is under way the appends of its partitions wait, and go together, with one write, at
its end: a write into a file that is being synced stands in line behind the file system's journal,
on the event loop (0.5 ms for 256 KiB instead of 0.07), and only the next round could cover it
anyway. Acks leave from the end of the round that covers them, never before it (S1).

A sync that failed is never tried again (R21): nothing is known about what the kernel still holds.
Everybody who waits gets T093, the data directory is marked suspect, and the broker ends.

Topics with durability ``fsync`` join the next round. Nobody waits for a sync of the others: those
with ``os`` are synced some seconds after a write in a thread of its own, so that a start has little
to scan; those with ``replicated`` after ``storage.sync_interval``, which bounds what a crash costs.

While the disk is idle zeros are written ahead of the logs that are in use by little and little, as
overwriting them is synced in half the time.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.world import Offload
from tailrace.protocol import texts_storage
from tailrace.protocol.errors import BrokerError
from tailrace.protocol.limits import pieces
from tailrace.protocol.seams import Clock
from tailrace.storage.disk import Disk
from tailrace.storage.os_sync import NotBegun
from tailrace.storage.rounds import SyncPoint, sync_round

log = logging.getLogger("tailrace.broker.flusher")

ROUND_PARTITIONS_MAX = 100  # in one round, so that its first partition does not wait for 1,000
LAZY_EVERY_S = 5.0
AHEAD_CHUNK_BYTES = 262_144  # written and synced at once: what somebody may have to wait behind
AGAIN_S = 0.1  # after a sync that could not be begun
GIVE_WAY_S = 0.005  # a sync of most disks takes less
AHEAD_IDLE_S = 0.01  # without a write, before the disk counts as idle
AHEAD_LOOK_S_MAX = 0.08  # between looks whether it is; each wakes up the broker

_WAITING = {"event": "storage.waits", "code": None}


class Flusher:
    """``failed`` is told of a failed sync before the error ends the flusher and the broker."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        thread: Offload,
        clock: Clock,
        metrics: Metrics,
        *,
        answered: Callable[[], None],
        failed: Callable[[BrokerError], None],
        sync_interval_s: float = 1.0,
    ) -> None:
        self._disk = disk
        self._path = path
        self._thread = thread
        self._clock = clock
        self._metrics = metrics
        self._answered = answered
        self._failed = failed
        self._dirty: dict[Partition, None] = {}
        self._bell = Bell()
        self._ahead: dict[Partition, None] = {}  # in use, and short of zeros
        self._ahead_bell = Bell()
        self._written_at = 0.0
        self._syncing: frozenset[Partition] = frozenset()
        self._began_at = 0.0  # the round that is under way, or the last one
        self._sync_interval_s = sync_interval_s
        self._lazy: dict[Partition, float] = {}  # written to, but nobody waits: when it is due
        self._lazily_syncing: frozenset[Partition] = frozenset()
        self._lazy_lock = trio.Lock()
        self._lazy_thread = thread.dedicated("lazy sync")
        self.after_round: Callable[[], None] = lambda: None  # what waited is appended
        self.short_of_room: Callable[[], bool] = lambda: False  # then no zeros are written ahead
        self._round_over = trio.Event()
        self._broken: BrokerError | None = None  # a sync of somebody else's failed

    def written(self, partition: Partition) -> None:
        """The partition's log may have grown."""
        if not _is_there(partition) or not partition.log.needs_sync:
            return
        if partition.config.durability == "fsync":
            self._dirty[partition] = None
            self._bell.ring()
            self._written_at = trio.current_time()
            if partition.ahead.wanted():
                self._ahead[partition] = None
                self._ahead_bell.ring()
        elif partition not in self._lazy:
            replicated = partition.config.durability == "replicated"
            after_s = self._sync_interval_s if replicated else LAZY_EVERY_S
            self._lazy[partition] = trio.current_time() + after_s

    def broke(self, error: BrokerError) -> None:
        """A sync failed in a task whose end is not the broker's: it ends all the same (R21)."""
        self._failed(error)
        self._broken = error
        self._bell.ring()

    @property
    def broken(self) -> BrokerError | None:
        """A sync failed in somebody else's task, and the broker is about to end."""
        return self._broken

    @property
    def busy(self) -> bool:
        """Whether a round is under way: what is appended now waits for the next one."""
        return bool(self._syncing)

    @property
    def in_hurry(self) -> bool:
        """Whether a round is under way or due."""
        return bool(self._syncing or self._dirty)

    def syncing(self, partition: Partition) -> bool:
        """Whether a round for this partition is under way."""
        return partition in self._syncing

    def syncing_s(self) -> float | None:
        """How long the present round has taken so far; None: none is under way."""
        return self._clock.now() - self._began_at if self._syncing else None

    async def run(self) -> None:
        """Sync what becomes dirty, for ever. T093 if a sync fails, here or elsewhere."""
        while True:
            await self._bell.wait()
            if self._broken is not None:
                raise self._broken
            while self._dirty:
                await self.flush(list(self._dirty)[:ROUND_PARTITIONS_MAX])

    async def run_ahead(self) -> None:
        """Write zeros ahead where they are short, as long as nobody wants the disk."""
        while True:
            await self._ahead_bell.wait()
            again_s = AHEAD_IDLE_S
            while self._ahead:
                idle_at = self._written_at + AHEAD_IDLE_S
                if self._dirty or self._syncing or trio.current_time() < idle_at:
                    await trio.sleep(again_s)
                    again_s = min(2 * again_s, AHEAD_LOOK_S_MAX)
                    continue
                again_s = AHEAD_IDLE_S
                partition = next(iter(self._ahead))
                if (
                    not _is_there(partition)
                    or self.short_of_room()
                    or not self._write_ahead(partition)
                ):
                    del self._ahead[partition]
                    partition.ahead.written(partition.log.zeros_ahead)
                else:
                    await self.flush([partition])

    async def run_lazy(self) -> None:
        """Sync what nobody waits for, beside the rounds and without holding up any append."""
        while True:
            await trio.sleep(min(LAZY_EVERY_S, self._sync_interval_s))
            now = trio.current_time()
            waiting = [one for one, due in self._lazy.items() if due <= now]
            for one in waiting:
                del self._lazy[one]
            for some in pieces(waiting, ROUND_PARTITIONS_MAX):
                await self._flush_lazily(some)

    def _is_idle(self, partition: Partition) -> bool:
        """Whether there is something to sync, and nobody at it."""
        idle = _is_there(partition) and partition not in self._syncing
        return idle and partition.log.needs_sync

    async def _flush_lazily(self, partitions: Sequence[Partition]) -> None:
        """Sync those that nobody else syncs, one call after the other."""
        async with self._lazy_lock:
            points = [(one, one.log.sync_point()) for one in partitions if self._is_idle(one)]
            self._lazily_syncing = frozenset(one for one, _ in points)
            for partition, _ in points:
                partition.unsynced_batches = 0
            try:
                await self._sync(self._lazy_thread, [point for _, point in points])
            finally:
                self._lazily_syncing = frozenset()
                self.look_again()
            for partition, point in points:
                if partition.serving:
                    _mark(partition, point)

    def _write_ahead(self, partition: Partition) -> bool:
        """Write some zeros; whether any were missing."""
        try:
            return partition.log.write_ahead(AHEAD_CHUNK_BYTES) > 0
        except OSError as error:
            log.debug("no zeros ahead of %s: %s", partition, error)
            return False

    async def flush(self, partitions: Sequence[Partition]) -> None:
        """One round for these partitions; whoever waited for it is answered at its end.

        Those that went offline before it could begin are left out: of a topic that was deleted
        meanwhile (``forget``) not even the files are there.
        """
        while self._syncing or self._lazily_syncing.intersection(partitions):
            await self._round_over.wait()
        for partition in partitions:
            self._dirty.pop(partition, None)
        partitions = [one for one in partitions if _is_there(one)]
        if not partitions:
            self.look_again()  # whoever waited for them looks again
            return
        points = [(one, one.log.sync_point()) for one in partitions]
        batches = sum(one.unsynced_batches for one in partitions)
        for partition in partitions:
            partition.unsynced_batches = 0
            partition.ahead.synced()
        self._syncing = frozenset(partitions)
        self._began_at = began = self._clock.now()
        try:
            await self._sync(self._thread, [point for _, point in points])
        finally:
            self._syncing = frozenset()
            self.look_again()
        self._metrics.fsync_duration.observe(self._clock.now() - began)
        self._metrics.fsync_batches.observe(batches)
        for partition, point in points:
            if partition.serving:
                _mark(partition, point)
                partition.advance()
        self._answered()
        self.after_round()

    async def flushed(self, ends: Mapping[Partition, int]) -> None:
        """Return once these logs are durable up to so far, with the rounds that come anyway; where
        the durability asks for no sync, at once."""
        for partition in ends:
            self.written(partition)
        while any(_lacks(partition, end) for partition, end in ends.items()):
            await self._round_over.wait()

    async def flushed_apart(self, ends: Mapping[Partition, int]) -> None:
        """The same beside the rounds, so that these wait for nothing of it."""
        for partition in ends:
            if partition.config.durability != "fsync":
                self.written(partition)
        while lacking := [one for one, end in ends.items() if _lacks(one, end)]:
            if idle := [one for one in lacking if self._is_idle(one)]:
                await self._flush_lazily(idle)
            else:
                await self._round_over.wait()

    async def idle(self, partitions: Iterable[Partition]) -> None:
        """Return when no round touches any of these partitions, for now."""
        while not (self._syncing | self._lazily_syncing).isdisjoint(partitions):
            await self._round_over.wait()

    async def give_way(self) -> None:
        """For work that can wait a little: the event loop turns once, and if a round is under way
        or due then, that is over on return, or ``GIVE_WAY_S`` have passed. Its acks have left."""
        await trio.lowlevel.checkpoint()
        if self.in_hurry:
            with trio.move_on_after(GIVE_WAY_S):
                await self._round_over.wait()

    async def _sync(self, thread: Offload, points: list[SyncPoint]) -> None:
        """T093 if it fails, and then everybody was told."""
        while True:
            try:
                await thread.run(sync_round, self._disk, points)
                return
            except NotBegun as error:  # nothing failed: whoever waits for the round waits on
                if self._broken is not None:
                    raise self._broken from error
                log.warning("%s; raise LimitNOFILE", error, extra=_WAITING)
                with trio.CancelScope(shield=True):  # a round that is left leaves others waiting
                    await trio.sleep(AGAIN_S)
            except OSError as error:
                self._broken = texts_storage.sync_failed(self._path, reason=str(error))
                self._failed(self._broken)
                raise self._broken from error

    def look_again(self) -> None:
        """Let whoever waits for a round look: one is over, or a log ends elsewhere."""
        self._round_over.set()
        self._round_over = trio.Event()

    async def forget(self, partitions: Iterable[Partition]) -> None:
        """Return once no round touches these partitions, nor will."""
        gone = set(partitions)
        for partition in gone:
            self._dirty.pop(partition, None)
            self._lazy.pop(partition, None)
        while (self._syncing | self._lazily_syncing) & gone:
            await self._round_over.wait()


def _is_there(partition: Partition) -> bool:
    """Whether its log may be written to and synced."""
    return partition.serving and not partition.cutting


def _lacks(partition: Partition, end: int) -> bool:
    """Whether it will be durable up to there after another round."""
    if not partition.serving or partition.config.durability != "fsync":
        return False
    return partition.log.flushed < min(end, partition.log.end)


def _mark(partition: Partition, point: SyncPoint) -> None:
    try:
        partition.log.mark_synced(point)
    except OSError as error:  # a full disk: the mark on the disk may lag, recovery allows for it
        log.warning(
            "the flushed mark of %s could not be written: %s",
            *(partition, error),
            extra={"event": "disk.low", "code": None},
        )
