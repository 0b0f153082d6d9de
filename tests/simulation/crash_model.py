"""One process that uses one log, and what a crash of it may leave (S32, S28, S10, S15).

``Process`` does to a log what a broker does, and writes down in ``Model`` what may be found after
a crash at that very moment: every batch that was tried, the offset below which all is durable, the
two places the log start may be at, the sets of offsets that a rewrite may have removed. What dies
in the midst of an operation may or may not have happened, so a model is widened before the
operation is tried and narrowed once it has returned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from unittest.mock import patch

from tailrace.protocol.batch import (
    BatchHeader,
    Columns,
    decode_columns,
    encode_batch,
    header_seed,
    parse_header,
)
from tailrace.simulation.chance import Pick
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.storage.log import Appended, Log, LogConfig
from tailrace.storage.opening import Unopened, begin_epochs, recover, settle, survey
from tailrace.storage.rewrite import FromOffset, Kept, SegmentSource, Verdict, rewrite

TOPIC_ID = bytes(range(16))
TOPICS = "/data/topics"
DIRECTORY = f"{TOPICS}/{TOPIC_ID.hex()}-0"
SEED = header_seed(TOPIC_ID, 0)
CONFIG = LogConfig(segment_bytes=1024, index_interval_bytes=300)
READ_BYTES = 700

Record = tuple[bytes | None, bytes | None]  # key, value


def drop_all(options: int) -> int:
    """A power cut that keeps nothing unsynced."""
    return 0


def keep_all(options: int) -> int:
    """One that keeps everything."""
    return min(1, options - 1)


@dataclass(frozen=True)
class Sent:
    """One batch that may be in the log, at its offset."""

    base: int
    records: tuple[Record, ...]
    producer: int = -1
    sequence: int = -1
    time: int = 0  # of the append

    @property
    def next(self) -> int:
        return self.base + len(self.records)

    def encoded(self) -> memoryview:
        keyed = any(key is not None for key, _ in self.records)
        data = encode_batch(
            SEED,
            values=[value for _, value in self.records],
            keys=[key for key, _ in self.records] if keyed else None,
            timestamps=1000,
            producer_id=self.producer,
            producer_epoch=0 if self.producer >= 0 else -1,
            base_sequence=self.sequence,
        )
        return memoryview(bytearray(data))


@dataclass
class Model:
    """What may be on the disk. ``sent`` is in order and without gaps."""

    sent: list[Sent] = field(default_factory=list[Sent])
    floor: int = 0  # all below is durable
    starts: tuple[int, ...] = (0,)  # where the log start may be
    gone: tuple[frozenset[int], ...] = (frozenset(),)  # offsets removed by rewriting: either set
    epochs: dict[int, int] = field(default_factory=dict[int, int])  # begun durably -> its start
    clean: tuple[bool, ...] = (False,)  # may the next start be told that all was closed?
    removing: bool = False  # the topic was deleted: the next start goes on removing

    def of(self, producer: int, end: int) -> list[Sent]:
        """The batches of a producer below an offset."""
        return [one for one in self.sent if one.producer == producer and one.next <= end]

    @property
    def producers(self) -> set[int]:
        return {one.producer for one in self.sent if one.producer >= 0}

    @property
    def end(self) -> int:
        return self.sent[-1].next if self.sent else self.starts[-1]

    def expected(self, start: int, end: int, gone: frozenset[int]) -> dict[int, Record]:
        """What a reader of such a log finds."""
        return {
            offset: record
            for one in self.sent
            if one.next <= end
            for offset, record in enumerate(one.records, one.base)
            if offset >= start and offset not in gone
        }


class Process:
    """A process from its start to its death, which is at ``dies_at_step`` or never."""

    def __init__(self, platter: Platter, *, dies_at_step: int | None = None) -> None:
        self.platter = platter
        self.model = Model()
        self.epoch = 0
        self.time = 1000  # append times never fall (R20)
        self._log: Log | None = None
        self._number = 0
        self._live(0, dies_at_step)

    def _live(self, steps: int, dies_at_step: int | None) -> None:
        self.life = Life("n1")
        self.life.steps, self.life.dies_at_step = steps, dies_at_step
        self.disk = SimDisk(self.platter, self.life)

    @property
    def log(self) -> Log:
        assert self._log is not None, "not open"
        return self._log

    # ── opening and ending ───────────────────────────────────────────────────────────────────

    def open(self, *, clean: bool = False, full: bool = False, suspect: bool = False) -> None:
        self.model.clean = (False,)  # the broker removes its mark of a graceful stop first
        self._log = open_log(self.disk, clean=clean, full=full, suspect=suspect)
        self.model.floor = self.log.end
        self.settle()

    def settle(self) -> None:
        """What was found is the truth: forget what is gone."""
        model, log = self.model, self.log
        model.sent = [one for one in model.sent if one.next <= log.end]
        model.epochs = {epoch: at for epoch, at in model.epochs.items() if at <= log.end}
        model.starts = (log.start,)
        found = records_of(log)
        model.gone = tuple(
            gone for gone in model.gone if found == model.expected(log.start, log.end, gone)
        )[:1]
        assert model.gone, "neither what was before a rewrite nor what is after it"
        self.epoch = max([self.epoch, *(entry.epoch for entry in log.epochs)])
        self.time = max(1000, log.last_append_time or 0)

    def close(self) -> None:
        """A graceful stop; the broker marks its directory clean only behind it."""
        self.log.close(clean=True)
        self.model.floor = self.model.end
        self.model.clean = (False, True)
        self.disk.sync_directory("/")  # the mark lasts: power may fail from here on

    def die(self, pick: Pick | None = None) -> None:
        """SIGKILL, with ``pick`` a power cut; the next process goes on counting steps."""
        steps, dies_at_step = self.life.steps, self.life.dies_at_step
        self.life.dead = True
        self._log = None
        if pick is not None:
            self.platter.power_cut(pick)
        self._live(steps, dies_at_step)

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    def append(
        self,
        *sizes: int,
        producer: int = -1,
        keys: Sequence[bytes | None] | None = None,
        batches: int = 1,
        later: int = 1,
    ) -> None:
        """So many batches in one call; each has one record for every size.

        ``later``: ms since the last append by the wall clock, which may go back. Raises ``OSError``
        if nothing happened.
        """
        model, planned = self.model, list[Sent]()
        base, last = self.log.end, self.log.last_append_time
        time = self.time + later if last is None else max(last, self.time + later)
        sequence = next_sequence(model.of(producer, base))
        for _ in range(batches):
            self._number += 1
            values = [b"%d." % self._number + b"v" * max(0, size - 4) for size in sizes or (150,)]
            records = tuple(zip(keys or [None] * len(values), values, strict=True))
            at = sequence if producer >= 0 else -1
            planned.append(Sent(base, records, producer, at, time))
            base, sequence = planned[-1].next, sequence + len(records)
        before = list(model.sent)
        model.sent += planned
        try:
            results = self.log.append(
                [one.encoded() for one in planned],
                leader_epoch=self.epoch,
                now_ms=self.time + later,
            )
        except OSError:
            model.sent = before
            raise
        self.time = time
        for one, result in zip(planned, results, strict=True):
            assert isinstance(result, Appended), result
            assert (result.base_offset, result.next_offset) == (one.base, one.next), "S10"
            assert result.append_time == one.time, "R20"
            assert not result.duplicate

    def tombstone(self, *keys: bytes) -> None:
        """One batch of tombstones."""
        records: tuple[Record, ...] = tuple((key, None) for key in keys)
        self.time += 1
        one = Sent(self.log.end, records, time=self.time)
        self.model.sent.append(one)
        self.log.append([one.encoded()], leader_epoch=self.epoch, now_ms=self.time)

    def sync(self) -> None:
        end = self.log.end
        self.log.sync()
        self.model.floor = end

    def roll(self) -> None:
        """Seal the active segment, as one that is old enough is."""
        self.log.roll_if_old(1 << 50)

    def write_ahead(self, bytes_max: int = 4096) -> None:
        self.log.write_ahead(bytes_max)

    def begin_epoch(self, *, in_group: bool = False) -> None:
        """``in_group``: as a broker does it for all its logs at a start."""
        self.epoch += 1
        start = self.log.end
        if in_group:
            assert not begin_epochs(self.disk, {self.log: self.epoch})
        else:
            self.log.begin_epoch(self.epoch)
        self.model.epochs[self.epoch] = start

    # ── trimming ─────────────────────────────────────────────────────────────────────────────

    def drop_before(self, offset: int) -> None:
        """Retention."""
        ends = [each.next_offset for each in self.log.segments() if each.next_offset <= offset]
        start = self.log.start
        self._may_start_at({start, *(end for end in ends if end > start)})
        self.log.drop_before(offset)
        self._starts_at(self.log.start)

    def set_start(self, offset: int) -> None:
        self._may_start_at({self.log.start, max(offset, self.log.start)})
        self.log.set_start(offset)
        self._starts_at(self.log.start)

    def truncate_to(self, offset: int) -> None:
        if offset >= self.log.end:
            self.log.truncate_to(offset)  # nothing is removed, and nothing synced
            return
        self.model.floor = min(self.model.floor, offset)
        self.log.truncate_to(offset)
        self.model.sent = [one for one in self.model.sent if one.next <= self.log.end]
        self.model.floor = self.log.end
        self.model.epochs = {e: at for e, at in self.model.epochs.items() if at <= self.log.end}

    def rewrite(self, gone: set[int], sources: Sequence[SegmentSource]) -> None:
        """Compaction or erasure: neighbouring segments become one, without some offsets."""
        self._swap(gone, sources, Without(gone))

    def rewrite_from_start(self) -> None:
        """Bytes below the log start leave the segment that holds it."""
        [source, *_] = self.log.rewritable(self.log.end)
        start = self.log.start
        self._swap(set(range(source.base_offset, start)), [source], FromOffset(start))

    def _swap(self, gone: set[int], sources: Sequence[SegmentSource], verdict: Verdict) -> None:
        made = rewrite(
            self.disk,
            DIRECTORY,
            sources,
            SEED,
            verdict,
            index_interval=CONFIG.index_interval_bytes,
            pace=lambda bytes_done: None,
        )
        if not made.changed:
            return
        job = self.log.swap(made)
        [before] = self.model.gone
        self.model.gone = (before, before | gone)
        job.publish()
        self.model.gone = (before | gone,)
        self.log.replace(job)
        job.finish()
        self.log.replaced(job)

    def _may_start_at(self, starts: set[int]) -> None:
        self.model.starts = tuple(sorted(starts))

    def _starts_at(self, start: int) -> None:
        self.model.starts = (start,)

    def remove(self) -> None:
        """Delete the topic. A start that finds some of it left goes on removing; nothing of the old
        log may be found in the new one."""
        self.model = Model(removing=True)
        self._log = None
        remove_log(self.disk)
        self.model.removing = False


class Without:
    """The verdict that some offsets go."""

    def __init__(self, gone: set[int]) -> None:
        self._gone = gone

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int]
    ) -> Kept | None:
        return Kept([at for at, offset in enumerate(offsets) if offset not in self._gone])


# ── what is on a disk ────────────────────────────────────────────────────────────────────────


def open_log(
    disk: SimDisk, *, clean: bool = False, full: bool = False, suspect: bool = False
) -> Log:
    for path in ("/data", TOPICS):
        if not disk.exists(path):
            disk.make_directory(path)
            disk.sync_directory(path.rpartition("/")[0] or "/")
    return Log.open(
        disk,
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=0,
        config=CONFIG,
        now_ms=2000,
        clean=clean,
        verify="full" if full else "tail",
        suspect=suspect,
    )


def open_in_group(disk: SimDisk) -> Log:
    """As a broker opens its logs at a start."""
    one = Unopened(
        disk,
        DIRECTORY,
        topic_id=TOPIC_ID,
        partition=0,
        config=CONFIG,
        clean=False,
        verify="tail",
        suspect=False,
        topic="t",
        broker="n1",
    )
    survey([one])
    recover([one])
    settle([one])
    if one.error is not None:
        raise one.error
    return one.log(2000)


def small_scale() -> AbstractContextManager[object]:
    """Hints for the next start are written every few batches, not every 4 MiB."""
    return patch.multiple("tailrace.storage.sidecars", SAVE_BYTES=400, SAVE_BATCHES=4)


def remove_log(disk: SimDisk) -> None:
    disk.remove_directory(DIRECTORY)
    disk.sync_directory(TOPICS)


def next_sequence(sent: Sequence[Sent]) -> int:
    return sent[-1].sequence + len(sent[-1].records) if sent else 0


def batches_of(log: Log, bytes_max: int = READ_BYTES) -> Iterator[tuple[int, int, bytes]]:
    """Base offset, next offset and bytes of every batch that a reader gets, which are dense."""
    at = log.start
    while at < log.end:
        work = log.verify_pending(at)
        if work is not None:
            work()
        part = log.read(at, bytes_max, log.end)
        data = b"".join(bytes(each.view()) for each in part.ranges)
        assert len(data) == part.length, "a slice is as long as it says"
        while data:
            header = parse_header(data)
            assert header.base_offset <= at < header.next_offset, "S10"
            yield header.base_offset, header.next_offset, data[: header.size_bytes]
            data, at = data[header.size_bytes :], header.next_offset
        assert at == part.next_offset, "a slice ends where it says"


def records_of(log: Log) -> dict[int, Record]:
    """Every record from the log start on, by offset."""
    found: dict[int, Record] = {}
    for base, _, entry in batches_of(log):
        header = parse_header(entry)
        columns = decode_columns(entry, header)
        deltas = columns.offsets if columns.offsets is not None else range(len(columns.values))
        keys = columns.keys if columns.keys is not None else [None] * len(columns.values)
        for delta, key, value in zip(deltas, keys, columns.values, strict=True):
            if base + delta >= log.start:
                found[base + delta] = key, value
    return found


Script = Callable[[Process], None]
