"""Carries out erasures in this broker's copies, and what log starts inside of a segment leave.

Partition by partition, segment by segment, oldest first: a segment that holds something that is to
go is rewritten without it and replaced; one that holds nothing is only read. All erasures of a
topic that wait go through its partitions together. A record in the active segment is reached by
sealing that first. It says "done" for a partition when

- every segment below the log end of the request was looked through, from end to end;
- the new segments are durable, and the old files and every half-made one are removed.

What of it concerns this broker's copies at present, ``erasure_copies.py`` says.

A restart finds in the store what was not done and begins that partition again: a segment that was
rewritten holds nothing any more. What was counted is stored before the files change, so nothing is
counted twice.

What cannot be done now (a full disk, the store away) is tried again, later and later. A damaged
segment that may hold what was asked for keeps the erasure pending, visibly: nobody can say whether
the bytes are in it. Another try looks only through what was not looked through for the same
erasures before: it may wait for ever, and must not read the whole partition every minute.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import trio

from tailrace.broker.erasure import Erasure, Replicas
from tailrace.broker.erasure_copies import Copies
from tailrace.broker.erasures import PROGRESS_EVERY_S, Erasures
from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import WorkerLost, World
from tailrace.protocol.batch import header_seed
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.storage.checkpoint import TEMPORARY, sync_names
from tailrace.storage.disk import Disk
from tailrace.storage.erasing import Erased, EraseJob
from tailrace.storage.erasure import Target
from tailrace.storage.log import LogConfig
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rewrite import RewriteRefused, Rewritten, SegmentSource

log = logging.getLogger("tailrace.broker.eraser")

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 60.0
PROBLEM_S = 4.0  # tried again only after so long, it is told as a problem of the cluster
BEHIND_FIRST_S, BEHIND_MAX_S = (
    0.05,
    2.0,
)  # before a follower that lacks something is looked at again
EXPIRE_EVERY_S = 3_600.0
PartitionId = tuple[bytes, int]
Ranges = list[tuple[int, int]]  # of offsets, rising


@dataclass(slots=True)
class _Retry:
    """A partition that could not be done."""

    at: float  # not before, in trio's time, unless something changes
    pause_s: float
    start: int  # the log start, when that failed
    erasures: frozenset[bytes]  # those it was for
    left: Ranges  # of which nothing is known for them
    reason: str


@dataclass(slots=True)
class _Pass:
    """One way through what is ``left`` of a partition, for these erasures."""

    partition: Partition
    broker_id: str
    wanted: list[Erasure]
    left: Ranges
    again: Ranges = field(default_factory=Ranges)  # of the segments that block some
    blocked: dict[bytes, str] = field(default_factory=dict[bytes, str])  # by erasure id: why
    trim_blocked: str = ""
    log: object = None  # as it was opened: another one after a cut

    def __post_init__(self) -> None:
        self.log = self.partition.log.recovery

    @property
    def targets(self) -> tuple[Target, ...]:
        found = (one.target(self.partition.number, self.broker_id) for one in self.wanted)
        return tuple(target for target in found if target is not None)

    def passed(self, offset: int) -> None:
        """Everything below was looked through."""
        self.left = [(max(a, offset), b) for a, b in self.left if b > offset]

    def block(self, segment: SegmentFacts, reason: str) -> None:
        """Nobody can say what a segment holds: who may have something in it waits."""
        self.again.append((segment.base_offset, segment.next_offset))
        for erasure, target in zip(self.wanted, self.targets, strict=True):
            keys = target.keys and segment.base_offset < target.end
            if keys or any(
                segment.base_offset <= offset < segment.next_offset for offset in target.offsets
            ):
                self.blocked[erasure.erasure_id] = reason
        if segment.base_offset < self.partition.log.start:
            self.trim_blocked = reason


class Eraser:
    """One per broker. ``run`` is its task."""

    def __init__(
        self,
        world: World,
        shelf: Shelf,
        flusher: Flusher,
        erasures: Erasures,
        *,
        rate_bytes: int | None,
        replicas: Replicas,
    ) -> None:
        """``replicas``: who holds a copy of a partition now."""
        self._copies = Copies(shelf, erasures, replicas)
        self._behind_s = BEHIND_FIRST_S  # before it is looked at again
        self._world = world
        self._rate_bytes = rate_bytes  # read and written per second; None: unlimited
        self._shelf = shelf
        self._flusher = flusher
        self._erasures = erasures
        self._retries: dict[PartitionId, _Retry] = {}
        self._trimmed: dict[PartitionId, int] = {}  # the log start below which nothing is left
        self._expire_at = 0.0
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Until cancelled or stopped. BrokerError T093 if a sync fails."""
        try:
            with self._scope:
                while True:
                    pause_s = await self._round()
                    with trio.move_on_after(pause_s):
                        await self._erasures.asked.wait()
        finally:
            self._ended.set()

    def now(self) -> None:
        """Try at once what waits to be tried again: a test has moved the clock."""
        for retry in self._retries.values():
            retry.at = 0.0
        self._expire_at = 0.0
        self._erasures.asked.ring()

    async def stop(self) -> None:
        """End ``run``; on return no file is touched any more."""
        self._scope.cancel()
        await self._ended.wait()

    async def _round(self) -> float:
        """Do what can be done; how long to wait for the next time, in seconds."""
        self._copies.begin_round()
        await self._try(self._copies.take_back)
        for partition in self._shelf:
            await self._attend(partition)
            await trio.lowlevel.checkpoint()
        self._retries = {
            where: retry for where, retry in self._retries.items() if self._shelf.get(*where)
        }
        self._erasures.problems = [
            f"erasing in {one.topic}[{one.number}] waits: {retry.reason}"
            for where, retry in self._retries.items()
            if retry.pause_s >= PROBLEM_S and (one := self._shelf.get(*where)) is not None
        ]
        await self._try(self._finish)
        now = trio.current_time()
        # One that is due and was not tried is of a partition that does not serve now.
        waits = [one.at - now if one.at > now else one.pause_s for one in self._retries.values()]
        behind = self._copies.behind
        self._behind_s = min(2 * self._behind_s, BEHIND_MAX_S) if behind else BEHIND_FIRST_S
        if behind:
            waits.append(self._behind_s)
        if not self._erasures.all_stored:
            waits.append(PROGRESS_EVERY_S)
        return max(0.0, min([RETRY_MAX_S, *waits]))

    async def _try(self, work: Callable[[], Awaitable[None]]) -> None:
        """What needs the store; while that is away it is tried again with the next round."""
        try:
            await work()
        except MetadataUnavailable as error:
            log.warning(
                "erasures cannot be stored, trying again: %s",
                error,
                extra={"event": "erasure.failed", "code": error.code},
            )

    async def _attend(self, partition: Partition) -> None:
        """What one partition needs, if anything; a failure is remembered."""
        if not partition.serving or partition.cutting:
            return
        where = (partition.topic_id, partition.number)
        wanted = self._copies.wanted(partition)
        start = partition.log.start
        trim = partition.log.segments()[0].base_offset < start and self._trimmed.get(where) != start
        trim = trim and self._copies.stays(partition)
        if not wanted and not trim:
            self._retries.pop(where, None)
            return
        erasures = frozenset(one.erasure_id for one in wanted)
        retry = self._retries.get(where)
        same = retry is not None and (retry.start, retry.erasures) == (start, erasures)
        if retry is not None and same and trio.current_time() < retry.at:
            return
        work = _Pass(partition, self._copies.me, wanted, _left(partition, wanted, retry))
        try:
            while work.left and self._here(partition):
                async with partition.maintenance:
                    if self._here(partition):
                        await self._step(work)
            async with partition.maintenance:
                if self._here(partition):
                    await self._close(work)
        except (OSError, MetadataUnavailable, WorkerLost, RewriteRefused) as error:
            self._fail(work, start, erasures, str(error))
        else:
            if work.blocked or work.trim_blocked:
                reason = work.trim_blocked or next(iter(work.blocked.values()))
                self._fail(work, start, erasures, reason)
            else:
                self._retries.pop(where, None)
                self._trimmed[where] = start

    def _here(self, partition: Partition) -> bool:
        """Whether the partition is still this broker's to change."""
        where = (partition.topic_id, partition.number)
        here = partition.serving and not partition.cutting
        return here and self._shelf.get(*where) is partition

    # ── one segment ──────────────────────────────────────────────────────────────────────────

    async def _step(self, work: _Pass) -> None:
        """Look through the first segment that is left, change it if need be, go on behind it."""
        at, end = work.left[0]
        segments = work.partition.log.segments()
        segment = next((one for one in segments if one.next_offset > at), segments[-1])
        if segment.base_offset >= end or not segment.size_bytes:
            work.passed(end)
        elif not segment.sealed:
            await self._look(work, segment)
        elif (source := await self._source(work.partition, segment)) is not None:
            await self._rewrite(work, segment, source)
        else:
            name = f"{segment.base_offset:020}.log"
            work.block(segment, f"{name} is damaged, or not all of it is on the disk yet")
            work.passed(segment.next_offset)

    async def _look(self, work: _Pass, active: SegmentFacts) -> None:
        """Seal the active segment if there is something to go in it."""
        partition = work.partition
        source = SegmentSource(
            f"{partition.log.path}/{active.base_offset:020}.log",
            *(active.base_offset, active.next_offset, active.size_bytes),
        )
        try:
            found = await self._erase(work, source, sealed=False)
        except RewriteRefused as error:
            work.block(active, str(error))
            await partition.doubt(active.base_offset, self._world.offload)
            found = Erased(found=False)
        if not found.found:
            work.passed(work.left[-1][1])
        elif self._here(partition):
            # Appends may have sealed it meanwhile; what holds it sealed is found next.
            last = partition.log.segments()[-1]
            if last.base_offset == active.base_offset and partition.log.roll():
                partition.tell_rolled()
            await self._flusher.flush([partition])

    async def _source(self, partition: Partition, segment: SegmentFacts) -> SegmentSource | None:
        """The sealed segment as a file to be rewritten, or None if it cannot be."""
        for attempt in range(2):
            for source in partition.log.rewritable(partition.high_watermark):
                if source.base_offset == segment.base_offset:
                    return source
            if not attempt:  # what a crash took (its index, a snapshot behind it) is saved again
                partition.log.cover()
                await self._flusher.flush([partition])
        return None

    async def _rewrite(self, work: _Pass, segment: SegmentFacts, source: SegmentSource) -> None:
        try:
            found = await self._erase(work, source, sealed=True)
        except RewriteRefused as error:
            if error.file != source.path:  # the new file: it is made again
                raise
            work.block(segment, str(error))
            await work.partition.doubt(segment.base_offset, self._world.offload)
            work.passed(segment.next_offset)
            return
        if found.rewritten is not None:
            await self._count(work, found, source)
            await self._replace(work.partition, found.rewritten)
        work.passed(source.next_offset)

    async def _erase(self, work: _Pass, source: SegmentSource, *, sealed: bool) -> Erased:
        partition = work.partition
        job = EraseJob(
            directory=partition.log.path,
            source=source,
            sealed=sealed,
            seed=header_seed(partition.topic_id, partition.number),
            start=partition.log.start,
            targets=work.targets,
            index_interval=LogConfig().index_interval_bytes,
        )
        found = await self._world.heavy.run(job, rate_bytes=self._rate_bytes)
        assert isinstance(found, Erased)
        return found

    async def _count(self, work: _Pass, found: Erased, source: SegmentSource) -> None:
        """Store what was found, before it is gone."""
        assert found.rewritten is not None
        number = work.partition.number
        try:
            for erasure, count in zip(work.wanted, found.counts, strict=True):
                if count:
                    known = erasure.shares[number].of(self._copies.me)
                    counted = known.counted(count, source.next_offset)
                    await self._erasures.store(erasure, {number: counted})
        except MetadataUnavailable:
            job = work.partition.log.swap(found.rewritten)
            await self._world.offload.run(job.discard)
            raise
        self._refresh(work)

    async def _replace(self, partition: Partition, rewritten: Rewritten) -> None:
        """Put the new segment in the old one's place."""
        job = partition.log.swap(rewritten)
        await self._world.offload.run(job.publish)
        partition.log.replace(job)
        try:
            await self._world.offload.run(job.finish)
        finally:
            partition.log.replaced(job)
        self._flusher.written(partition)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    async def _close(self, work: _Pass) -> None:
        """Nothing half-made is left either: store who is done with the partition."""
        partition = work.partition
        leftover = partition.log.trim(partition.log.start, exact=True)
        if leftover is not None:  # files that could not be removed before
            await self._world.offload.run(leftover.publish)
            partition.log.trimmed(leftover)
            await self._world.offload.run(leftover.finish)
        await self._world.offload.run(_sweep, self._world.disk, partition.log.path)
        self._refresh(work)
        number = partition.number
        if partition.log.recovery is not work.log:
            self._copies.behind = True  # it was cut, or filled anew: all of it once more, soon
            return
        for one in work.wanted:
            if one.erasure_id in work.blocked:
                continue
            self._copies.done(partition, one)
            share = one.shares[number]
            made = replace(share.of(self._copies.me), done=True)
            self._erasures.progress(one, {number: made})
            if partition.role == "leader" and partition.log.end < share.end:
                await self._erasures.shorten(one, number, partition.log.end)
        await self._erasures.flush()

    def _refresh(self, work: _Pass) -> None:
        """The erasures as they are stored now; the targets of a pass stay those it began with."""
        found = (self._erasures.get(one.topic_id, one.erasure_id) for one in work.wanted)
        work.wanted = [one for one in found if one is not None]

    async def _finish(self) -> None:
        """Complete what is done everywhere; forget old receipts. T100."""
        now_ms = self._world.clock.wall_ms()
        for topic_id in self._erasures.topic_ids():
            for erasure in self._erasures.pending(topic_id):
                if not self._copies.waits_for_me(erasure):
                    await self._erasures.store(erasure, {})  # others may wait for this alone
                if await self._erasures.complete(erasure, now_ms, self._copies.replicas):
                    self._tell_complete(erasure)
        await self._erasures.flush()
        if trio.current_time() >= self._expire_at:
            await self._erasures.expire()
            self._expire_at = trio.current_time() + EXPIRE_EVERY_S

    def _tell_complete(self, erasure: Erasure) -> None:
        log.info(
            "erased %d records of %s",
            *(erasure.records, erasure.topic),
            extra={
                "event": "erasure.completed",
                "code": None,
                "topic": erasure.topic,
                "erasure": str(uuid.UUID(bytes=erasure.erasure_id)),  # as in the receipt
                "records": erasure.records,
            },
        )

    def _fail(self, work: _Pass, start: int, erasures: frozenset[bytes], reason: str) -> None:
        """Try again: later each time, or as soon as something else is to be done there."""
        partition = work.partition
        where = (partition.topic_id, partition.number)
        known = self._retries.get(where)
        again = known is not None and (known.start, known.erasures) == (start, erasures)
        pause_s = min(known.pause_s * 2, RETRY_MAX_S) if known and again else RETRY_FIRST_S
        left = sorted([*work.again, *work.left])
        at = trio.current_time() + pause_s
        self._retries[where] = _Retry(at, pause_s, start, erasures, left, reason)
        log.warning(
            "erasing in %s[%d] waits for %.2g s: %s",
            *(partition.topic, partition.number, pause_s, reason),
            extra={"event": "erasure.failed", "code": None, "topic": partition.topic},
        )


def _left(partition: Partition, wanted: list[Erasure], retry: _Retry | None) -> Ranges:
    """What has to be looked through: all there was when the last of the erasures was asked for, or
    what an earlier try for them left, and what lies below a log start that has moved since."""
    start = partition.log.start
    if retry is None or not retry.erasures.issuperset(one.erasure_id for one in wanted):
        return [(0, max([start, *(one.shares[partition.number].end for one in wanted)]))]
    if retry.start == start:
        return list(retry.left)
    return [(0, start), *((max(a, start), b) for a, b in retry.left if b > start)]


def _sweep(disk: Disk, path: str) -> None:
    """Remove half-made segments that a job left which did not come to its end. T093."""
    found = [name for name in disk.list(path) if name.endswith(f".swap{TEMPORARY}")]
    for name in found:
        disk.remove(f"{path}/{name}")
    sync_names(disk, path)  # also where an earlier try removed them, and could not begin its sync
