"""One cleaning of one partition, from the survey to the last segment in its place.

Whoever runs it holds ``partition.maintenance``. How far it came is stored after every group of
segments. Given up in between (cancelled, or ``here`` says no), it leaves a log that is sound, and a
little cleaner than before; ``sweep`` removes what was half-made.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from tailrace.broker.cleaning import Dirt, estimate_bytes, groups
from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import World
from tailrace.protocol.batch import header_seed
from tailrace.protocol.units import format_size
from tailrace.storage import cleaned as cleaned_file
from tailrace.storage.checkpoint import TEMPORARY
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.disk import Disk
from tailrace.storage.jobs import Job, Result
from tailrace.storage.rewrite import Rewritten
from tailrace.storage.survey import Compacted, CompactJob, Survey, Surveyed, SurveyJob, marks_path

SWEEP_S = 5.0  # for removing what is half-made, also when cancelled (R41)
SPARE_BYTES = 8 * 1024 * 1024  # that must be left on the disk beside the new segment


class GivenUp(Exception):
    """The partition is not to be cleaned any more, or somebody else waits for it."""


@dataclass(slots=True)
class Tally:
    """What one cleaning did."""

    before_bytes: int = 0
    after_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    superseded: int = 0
    tombstones: int = 0
    keyless: int = 0  # records without a key: they stay
    closed: int = 0  # batches that cannot be decoded: they stay
    progress: float = 0.0


class Compaction:
    """See the module. ``run`` it once, then ``sweep``, however ``run`` ended."""

    def __init__(
        self,
        world: World,
        flusher: Flusher,
        shelf: Shelf,
        partition: Partition,
        dirt: Dirt,
        cleaned: Cleaned,
        *,
        now_ms: Callable[[], int],
        rate_bytes: int | None,
        here: Callable[[], bool],
        gives_way: bool,
        cleaned_min: int,
    ) -> None:
        """``cleaned_min``: how far all other replicas are (S27). ``here``: whether the partition is
        still to be cleaned; asked from any thread. ``gives_way``: whether the survey is given up
        as soon as somebody waits for the partition.
        """
        self.tally = Tally()
        self.surveyed = False
        self.cleaned = cleaned  # as it is stored
        self._world = world
        self._flusher = flusher
        self._space = shelf.space
        self._config = shelf.log_config(partition.config)
        self._partition = partition
        self._dirt = dirt
        self._now_ms = now_ms
        self._rate_bytes = rate_bytes
        self._here = here
        self._gives_way = gives_way
        self._cleaned_min = cleaned_min
        self._horizons: dict[int, int | None] = {}  # by base offset of segments as they were
        self._waits: dict[int, bool] = {}  # likewise
        self._done_bytes = 0
        self._expected_bytes = max(1, 3 * (dirt.clean_bytes + dirt.dirty_bytes))

    async def run(self) -> None:
        """Clean it. Raises ``GivenUp``, ``RewriteRefused``, ``OSError``, ``WorkerLost``, T093."""
        now_ms, dirt, log = self._now_ms(), self._dirt, self._partition.log
        seed = header_seed(self._partition.topic_id, self._partition.number)
        survey = await self._work(
            SurveyJob(
                directory=log.path,
                sources=dirt.sources,
                seed=seed,
                clean_below=self.cleaned.whole_below,
                whole_below=dirt.whole_below,
                now_ms=now_ms,
                hash_seed=self._world.rng("compaction").getrandbits(64),
                cleaned_min=self._cleaned_min,
            )
        )
        assert isinstance(survey, Survey)
        self.surveyed = True
        self._count(survey)
        pieces = groups(survey.segments, segment_bytes=self._config.segment_bytes)
        sizes = [sum(one.source.size_bytes for one in piece) for piece in pieces]
        self._expected_bytes = max(1, self._done_bytes + 2 * sum(sizes))
        for piece in pieces:
            self._check_room(piece)
            compacted = await self._work(
                CompactJob(
                    directory=log.path,
                    segments=piece,
                    marks_path=survey.marks_path,
                    seed=seed,
                    now_ms=now_ms,
                    tombstone_retention_ms=self._partition.config.tombstone_retention_ms,
                    whole_below=dirt.whole_below,
                    index_interval=self._config.index_interval_bytes,
                    cleaned_min=self._cleaned_min,
                )
            )
            assert isinstance(compacted, Compacted)
            await self._take(piece, compacted)
            if piece is not pieces[-1]:
                await self._store(piece[-1].source.next_offset, self.cleaned.ended_at)
                if self._is_wanted():
                    raise GivenUp
        await self._store(dirt.end, self._world.clock.wall_ms())

    async def sweep(self) -> None:
        """Remove what is half-made or not needed any more."""
        with trio.move_on_after(SWEEP_S, shield=True):
            await self._world.offload.run(_sweep, self._world.disk, self._partition.log.path)

    async def _work(self, job: Job) -> Result:
        return await self._world.heavy.run(
            job, rate_bytes=self._rate_bytes, progress=self._progress
        )

    def _progress(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        self.tally.progress = min(0.99, self._done_bytes / self._expected_bytes)
        if not self._here() or (self._gives_way and not self.surveyed and self._is_wanted()):
            raise GivenUp

    def _is_wanted(self) -> bool:
        """Whether somebody waits for the partition. From any thread."""
        return self._partition.maintenance.statistics().tasks_waiting > 0

    def _count(self, survey: Survey) -> None:
        tally = self.tally
        for one in survey.segments:
            tally.before_bytes += one.source.size_bytes
            tally.superseded += one.superseded
            tally.keyless += one.keyless
            tally.closed += one.closed
            self._horizons[one.source.base_offset] = one.next_horizon_ms
            self._waits[one.source.base_offset] = one.waits
        tally.after_bytes = tally.before_bytes
        tally.read_bytes = survey.read_bytes

    def _check_room(self, piece: Sequence[Surveyed]) -> None:
        """A new segment stands beside the old ones for a moment: not on the last bytes."""
        needed_bytes = sum(map(estimate_bytes, piece)) + SPARE_BYTES
        free_bytes = self._space.free_bytes
        if free_bytes < needed_bytes:
            reason = f"{format_size(needed_bytes)} are needed, {format_size(free_bytes)} are free"
            raise OSError(errno.ENOSPC, reason)

    async def _take(self, piece: Sequence[Surveyed], compacted: Compacted) -> None:
        """Put the new segment in its place."""
        rewritten, tally = compacted.rewritten, self.tally
        tally.read_bytes += rewritten.read_bytes
        if rewritten.changed:
            await self._swap(rewritten)
            tally.written_bytes += rewritten.written_bytes
            tally.tombstones += compacted.tombstones_removed
            tally.after_bytes += rewritten.summary.size_bytes
            tally.after_bytes -= sum(one.source.size_bytes for one in piece)
        for one in piece:
            self._horizons[one.source.base_offset] = None
            self._waits[one.source.base_offset] = False
        self._horizons[piece[0].source.base_offset] = compacted.next_horizon_ms
        self._waits[piece[0].source.base_offset] = compacted.waits

    async def _swap(self, rewritten: Rewritten) -> None:
        if not self._here():
            raise GivenUp
        partition, offload = self._partition, self._world.offload
        job = partition.log.swap(rewritten)
        await offload.run(job.publish)
        partition.log.replace(job)  # with no await between: both or none
        await offload.run(job.finish)
        partition.log.replaced(job)
        self._flusher.written(partition)

    async def _store(self, end: int, ended_at: int | None) -> None:
        """Remember, durably, that all below ``end`` is clean."""
        was = self.cleaned
        horizons = [at for at in self._horizons.values() if at is not None]
        now = Cleaned(
            below=max(was.below, end),
            whole_below=max(was.whole_below, min(self._dirt.whole_below, end)),
            next_horizon_ms=min(horizons, default=None),
            ended_at=ended_at,
            epoch=self._partition.log.epochs[-1].epoch,
            waits=any(self._waits.values()),
        )
        path = self._partition.log.path
        await self._world.offload.run(cleaned_file.write, self._world.disk, path, now)
        self.cleaned = now


def _sweep(disk: Disk, directory: str) -> None:
    """What is left behind if this fails is removed by the next cleaning, or at the next start."""
    with suppress(OSError):
        disk.remove(marks_path(directory))
        for name in disk.list(directory):
            if name.endswith(f".swap{TEMPORARY}"):
                disk.remove(f"{directory}/{name}")
