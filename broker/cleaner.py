"""Cleans compacted topics: sees which partition is due, and has it rewritten, one at a time.

What to do is decided in ``cleaning.py``, and done by jobs of another process (``World.heavy``): one
surveys what can be cleaned, then each group of segments is rewritten by a job of its own and put in
place before the next, oldest first. How far it came is stored after each, so that an end in the
middle loses little. ``partition.maintenance`` is held throughout, and given up between two groups
if somebody waits for it. A survey is given up for that at any time, and begun anew later and later;
so that it comes to its end at all, it is finished once it was given up often enough. A partition at
which somebody else is at work is passed by.

A failure concerns its partition alone: it is logged, shown in the partition's status, and tried
again later and later. A damaged segment is left out from then on, and so are the tombstones that
stand behind it. A failed sync ends the broker (R21).

Each replica cleans by itself, below its high watermark. A tombstone goes only when every assigned
replica has cleaned past it (S27): each tells its leader how far it is (``clean_offset``), which
tells the least of them to all (``cleaned_min``, ``told``), and forgets with its epoch (R39).
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial as bind
from typing import Literal

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.cleaning import Dirt, look
from tailrace.broker.clock import Timekeeper
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.compaction import Compaction, GivenUp, Tally
from tailrace.broker.config import StorageConfig
from tailrace.broker.flusher import Flusher
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import WorkerLost, World
from tailrace.protocol.units import format_size
from tailrace.storage import cleaned as cleaned_file
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.compaction import EVERYWHERE
from tailrace.storage.rewrite import RewriteRefused, SegmentSource

log = logging.getLogger("tailrace.broker.cleaner")

LOOK_EVERY_S = 10.0
LOOK_LEAST_S = 0.25
LOOK_SHARE = 20  # of the lag allowed, as a divisor
GIVE_WAY_S = 5.0  # before the partition that somebody waited for is begun again; then doubled
GIVE_WAY_MAX = 4  # surveys in a row that are given up for somebody
RETRY_FIRST_S = 10.0
RETRY_MAX_S = 900.0
RESULTS = ("ok", "failed")  # of a run, as metrics have it
UNKNOWN = -1  # how far somebody has cleaned
NOBODY = -1  # an epoch

State = Literal["idle", "due", "running", "failed"]


@dataclass(frozen=True, slots=True)
class CompactionStatus:
    """What is shown of one partition."""

    state: State
    clean_offset: int  # no key stands twice below it
    dirty_bytes: int
    dirty_ratio: float
    progress: float  # of the run, 0 to 1
    reason: str
    last_run_at: int | None  # when the last one ended well, ms since the epoch
    last_error: str | None  # since then


@dataclass(slots=True)
class _Known:
    """What is remembered of one partition."""

    cleaned: Cleaned
    dirt: Dirt | None = None
    run: Compaction | None = None  # while one is under way
    error: str | None = None
    retry_at: float = 0.0  # not before, in trio's time
    pause_s: float = 0.0  # before the last try
    keyless: int = 0  # records, as of the last survey
    closed: int = 0  # batches that cannot be decoded, likewise
    given_up: int = 0  # surveys in a row
    damaged: dict[SegmentSource, str] = field(default_factory=dict[SegmentSource, str])  # and why
    found: object = None  # the log as it was opened: another one after a truncation
    told: tuple[int, int] = (NOBODY, UNKNOWN)  # by a leader, in its epoch: how far all replicas are
    tried: int = UNKNOWN  # tombstones went up to there at the last run, by the other replicas


class Cleaner:
    """One per broker. ``run`` is its task."""

    def __init__(
        self,
        world: World,
        shelf: Shelf,
        flusher: Flusher,
        time: Timekeeper,
        metrics: Metrics,
        storage: StorageConfig,
    ) -> None:
        self._world = world
        self._shelf = shelf
        self._flusher = flusher
        self._time = time
        self._metrics = metrics
        self._rate_bytes = storage.cleaner_rate_bytes
        self._known: dict[PartitionId, _Known] = {}
        self._bell = Bell()
        self._stopping = False  # for jobs that run in a thread, and cannot be cancelled
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._waiting: list[trio.Event] = []  # each for the end of the next round
        metrics.compaction_dirty_ratio.read = self._ratios

    async def run(self) -> None:
        """Until cancelled or stopped. BrokerError T093 if a sync fails."""
        try:
            with self._scope:
                while True:
                    waiting = list(self._waiting)
                    await self._round()
                    for through in waiting:
                        self._waiting.remove(through)
                        through.set()
                    await self._world.heavy.rest()
                    with trio.move_on_after(self._pause_s()):
                        await self._bell.wait()
        finally:
            self._ended.set()
            for through in self._waiting:
                through.set()

    async def stop(self) -> None:
        """End ``run``; on return no file is touched any more."""
        self._stopping = True
        self._scope.cancel()
        await self._ended.wait()

    def now(self) -> None:
        """Look now: a test has moved the clock, or settings were changed."""
        self._bell.ring()

    async def clean(self) -> None:
        """Look now, and return when all that was due is done or has failed."""
        if not self._ended.is_set():
            through = trio.Event()
            self._waiting.append(through)
            self.now()
            await through.wait()

    def status(self, partition: Partition) -> CompactionStatus | None:
        """None: the topic is not compacted."""
        known = self._known.get(_where(partition))
        if not partition.config.compacts:
            return None
        if known is None or known.dirt is None:
            reason = "not looked at yet"
            return CompactionStatus("idle", partition.log.start, 0, 0.0, 0.0, reason, None, None)
        # As it is now, not as the last look found it. During a run: what the run began with.
        here = partition.serving and known.run is None
        dirt = self._see(partition, known) if here else known.dirt
        state: State = "due" if dirt.due else "idle"
        if known.error is not None:
            state = "failed"
        if known.run is not None:
            state = "running"
        return CompactionStatus(
            state=state,
            clean_offset=max(known.cleaned.below, partition.log.start),
            dirty_bytes=dirt.dirty_bytes,
            dirty_ratio=round(dirt.ratio, 4),
            progress=0.0 if known.run is None else round(known.run.tally.progress, 3),
            reason=_reason(known, dirt),
            last_run_at=known.cleaned.ended_at,
            last_error=known.error,
        )

    # ── replicas ─────────────────────────────────────────────────────────────────────────────

    def clean_offset(self, partition: Partition) -> int:
        """How far this replica has cleaned, durably; -1: not known, or the topic is not compacted.

        What a follower tells its leader with each fetch.
        """
        known = self._known.get(_where(partition))
        if known is None or not partition.config.compacts or self._is_another(partition, known):
            return UNKNOWN
        return known.cleaned.whole_below

    def cleaned_min(self, partition: Partition) -> int:
        """How far all replicas of a partition that is led here have cleaned; -1: not known.

        What a leader answers to each fetch of a follower.
        """
        if not partition.config.compacts:
            return UNKNOWN
        return partition.replica.cleaned_min(self.clean_offset(partition))

    def told(self, partition: Partition, leader_epoch: int, cleaned_min: int) -> None:
        """What the leader of that epoch has answered. On the path of every fetch of a follower."""
        if partition.config.compacts:
            known = self._known.get(_where(partition))
            if known is not None:
                known.told = (leader_epoch, cleaned_min)

    def _others(self, partition: Partition, known: _Known) -> int:
        """Up to where every other replica has cleaned; -1: not known."""
        if partition.role == "leader":
            return partition.replica.cleaned_min(EVERYWHERE)
        epoch, offset = known.told
        follows = partition.role == "follower" and epoch == partition.leadership.leader_epoch
        return offset if follows else UNKNOWN

    def _is_another(self, partition: Partition, known: _Known) -> bool:
        """Whether the log was cut or begun anew since it was looked at."""
        return known.found is not partition.log.recovery

    # ── whose turn it is ─────────────────────────────────────────────────────────────────────

    async def _round(self) -> None:
        """Look at all, clean what is due, the dirtiest first, until nothing is."""
        done: set[PartitionId] = set()
        while True:
            partitions = [one for one in self._shelf if one.serving and one.config.compacts]
            here = {_where(one) for one in partitions}
            self._known = {where: one for where, one in self._known.items() if where in here}
            for partition in partitions:
                await self._look(partition)
            ready = [one for one in partitions if self._is_ready(one, done)]
            if not ready:
                return
            dirtiest = max(ready, key=self._ratio)
            done.add(_where(dirtiest))
            await self._attend(dirtiest)

    def _is_ready(self, partition: Partition, done: set[PartitionId]) -> bool:
        where = _where(partition)
        known = self._known.get(where)
        return (
            known is not None
            and known.dirt is not None
            and known.dirt.due
            and where not in done
            and known.retry_at <= trio.current_time()
        )

    def _ratio(self, partition: Partition) -> float:
        dirt = self._known[_where(partition)].dirt
        return 0.0 if dirt is None else dirt.ratio

    async def _look(self, partition: Partition) -> None:
        """Close the open segment if it is old enough, and see what there is to clean."""
        known, log_ = self._known.get(_where(partition)), partition.log
        try:
            if known is None or self._is_another(partition, known):
                found = log_.recovery
                read = bind(cleaned_file.read, self._world.disk, log_.path, log_.found_end)
                cleaned = await self._world.offload.run(read, tuple(log_.epochs))
                known = _Known(cleaned, found=found)
                self._known[_where(partition)] = known
                for result in RESULTS:
                    partition.metrics.compaction_runs(result)  # at 0: its first may be a failure
            if partition.serving and partition.log.roll_if_old(self._time.now_ms()):
                partition.tell_rolled()
                self._flusher.written(partition)
        except OSError as error:
            log.warning(
                "%s[%d] cannot be looked at for compaction, trying again: %s",
                *(partition.topic, partition.number, error),
                extra={"event": "compaction.failed", "code": None, "topic": partition.topic},
            )
            return
        if not partition.serving:
            return
        if self._see(partition, known).left_out and partition.log.needs_sync:
            await self._flusher.flush([partition])  # what was just closed becomes rewritable by it
            if partition.serving:
                self._see(partition, known)

    def _see(self, partition: Partition, known: _Known) -> Dirt:
        """What there is to clean now."""
        segments = partition.log.segments()
        there = {(one.base_offset, one.next_offset, one.size_bytes) for one in segments}
        known.damaged = {  # not of files that are gone, or were replaced by an erasure
            one: why
            for one, why in known.damaged.items()
            if (one.base_offset, one.next_offset, one.size_bytes) in there
        }
        sources = partition.log.rewritable(partition.high_watermark)
        known.dirt = look(
            segments,
            [source for source in sources if source not in known.damaged],
            known.cleaned,
            partition.config,
            now_ms=self._time.now_ms(),
            age_ms=self._time.age_ms,
            others_moved=self._others(partition, known) > known.tried,
        )
        return known.dirt

    def _pause_s(self) -> float:
        """How long until the next look."""
        lags = [one.config.compaction_lag_max_ms for one in self._shelf if one.config.compacts]
        shortest_s = min(lags, default=0) / 1000 / LOOK_SHARE
        pauses = [known.retry_at - trio.current_time() for known in self._known.values()]
        waits = [pause for pause in pauses if pause > 0]
        if shortest_s:
            waits.append(max(shortest_s, LOOK_LEAST_S))
        return min([LOOK_EVERY_S, *waits])

    # ── one partition ────────────────────────────────────────────────────────────────────────

    async def _attend(self, partition: Partition) -> None:
        """Clean one partition; whatever goes wrong is remembered."""
        if partition.maintenance.locked():
            return  # an erasure goes from segment to segment: a survey between two would be in vain
        known, began = self._known[_where(partition)], trio.current_time()
        async with partition.maintenance:
            if not self._here(partition):
                return
            if self._is_another(partition, known):
                return  # the next look knows how far that one is
            dirt, others = self._see(partition, known), self._others(partition, known)
            run = known.run = Compaction(
                self._world,
                self._flusher,
                self._shelf,
                partition,
                dirt,
                known.cleaned,
                now_ms=self._time.now_ms,
                rate_bytes=self._rate_bytes,
                here=bind(self._here, partition),
                gives_way=known.given_up < GIVE_WAY_MAX,
                cleaned_min=others,
            )
            try:
                await run.run()
            except GivenUp:
                known.retry_at = trio.current_time() + GIVE_WAY_S * 2**known.given_up
                known.given_up = 0 if run.surveyed else known.given_up + 1
            except RewriteRefused as error:
                self._failed(partition, known, str(error))
                for source in dirt.sources:
                    if source.path == error.file:  # not the new file, which is made again
                        known.damaged[source] = str(error)
                        await self._fence(partition, source)
            except (OSError, WorkerLost) as error:
                self._failed(partition, known, str(error))
            else:
                known.error, known.pause_s, known.given_up = None, 0.0, 0
                known.tried = others
                known.keyless, known.closed = run.tally.keyless, run.tally.closed
                self._done(partition, run.tally, trio.current_time() - began)
            finally:
                known.run, known.cleaned = None, run.cleaned
                await run.sweep()
            if partition.serving:
                self._see(partition, known)

    async def _fence(self, partition: Partition, source: SegmentSource) -> None:
        """Let no reader have what was found damaged in a segment file."""
        with suppress(OSError):  # not to be read at all: readers are told when they come
            await partition.doubt(source.base_offset, self._world.offload)

    def _here(self, partition: Partition) -> bool:
        """Whether the partition is still this broker's to clean."""
        return (
            not self._stopping
            and partition.serving
            and partition.config.compacts
            and self._shelf.get(*_where(partition)) is partition
        )

    def _failed(self, partition: Partition, known: _Known, reason: str) -> None:
        known.error = reason
        known.pause_s = pause_s = min(max(known.pause_s * 2, RETRY_FIRST_S), RETRY_MAX_S)
        known.retry_at = trio.current_time() + pause_s
        partition.metrics.compaction_runs("failed").inc()
        log.error(
            "compaction of %s[%d] failed, trying again in %.0f s: %s",
            *(partition.topic, partition.number, pause_s, reason),
            extra={"event": "compaction.failed", "code": None, "topic": partition.topic},
        )

    def _done(self, partition: Partition, tally: Tally, seconds: float) -> None:
        partition.metrics.compaction_runs("ok").inc()
        log.info(
            "compacted %s[%d] in %.1f s: %s became %s, %d records and %d tombstones went",
            *(partition.topic, partition.number, seconds),
            *(format_size(tally.before_bytes), format_size(tally.after_bytes)),
            *(tally.superseded, tally.tombstones),
            extra={
                "event": "compaction.done",
                "code": None,
                "topic": partition.topic,
                "partition": partition.number,
                "read_bytes": tally.read_bytes,
                "written_bytes": tally.written_bytes,
                "seconds": round(seconds, 3),
            },
        )

    def _ratios(self) -> dict[tuple[str, ...], float]:
        """For a scrape: the dirtiest partition of each topic."""
        found: dict[tuple[str, ...], float] = {}
        for partition in self._shelf:
            known = self._known.get(_where(partition))
            if partition.config.compacts and known is not None and known.dirt is not None:
                label = (partition.metrics.name,)
                found[label] = max(known.dirt.ratio, found.get(label, 0.0))
        return found


def _reason(known: _Known, dirt: Dirt) -> str:
    """Why the partition is or is not being cleaned, and what stays whatever is done."""
    parts = [dirt.reason]
    if known.keyless:
        parts.append(f"records without a key stay: {known.keyless:,}")
    if known.closed:
        parts.append(f"batches that cannot be decoded stay: {known.closed:,}")
    parts += [f"left out: {why}" for why in known.damaged.values()]
    return "; ".join(parts)


def _where(partition: Partition) -> PartitionId:
    return (partition.topic_id, partition.number)
