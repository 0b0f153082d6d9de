"""Compacting a log in a test: every step of a cleaning, one after another, without a broker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tailrace.broker.cleaning import groups
from tailrace.protocol.batch import decode_columns, encode_batch, parse_header
from tailrace.storage import cleaned as cleaned_file
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.disk import Disk
from tailrace.storage.log import Appended, Log
from tailrace.storage.rewrite import SegmentSource, offsets_of
from tailrace.storage.survey import (
    CompactJob,
    Survey,
    SurveyJob,
    run_compaction,
    run_survey,
)
from tests.storage.logs import EPOCH, SEED

TOMBSTONES_MS = 1_000
Entry = tuple[bytes | None, bytes | None]


def no_pace(size_bytes: int) -> None:
    """As fast as it goes."""


def put(log: Log, *records: Entry, now_ms: int = 0) -> Appended:
    """Append one batch of keys and values."""
    data = encode_batch(
        SEED,
        values=[value for _, value in records],
        keys=[key for key, _ in records],
        timestamps=1,
    )
    (result,) = log.append([memoryview(bytearray(data))], leader_epoch=EPOCH, now_ms=now_ms)
    assert isinstance(result, Appended), result
    return result


def seal(log: Log) -> None:
    """Close the open segment, and make everything rewritable."""
    log.roll()
    log.sync()
    log.sync()


@dataclass
class Cleaner:
    """What the broker's cleaner does to one log, in the caller's thread."""

    disk: Disk
    log: Log
    keys_max: int = 100
    segment_bytes: int = 2_000
    cleaned: Cleaned = field(default_factory=Cleaned)
    step: Callable[[str], None] = lambda name: None  # told before each step

    def survey(self, sources: Sequence[SegmentSource], now_ms: int, seed: int = 1) -> Survey:
        job = SurveyJob(
            self.log.path,
            tuple(sources),
            SEED,
            clean_below=self.cleaned.whole_below,
            whole_below=sources[-1].next_offset,
            now_ms=now_ms,
            hash_seed=seed,
            keys_max=self.keys_max,
        )
        return run_survey(self.disk, job, no_pace)

    def clean(self, now_ms: int = 0) -> int:
        """Clean all that is closed; how many segments were replaced by others."""
        sources = self.log.rewritable(self.log.flushed)
        if not sources:
            return 0
        end = sources[-1].next_offset
        self.step("survey")
        survey = self.survey(sources, now_ms)
        replaced = 0
        for group in groups(survey.segments, segment_bytes=self.segment_bytes):
            self.step("rewrite")
            job = CompactJob(
                self.log.path,
                group,
                survey.marks_path,
                SEED,
                now_ms=now_ms,
                tombstone_retention_ms=TOMBSTONES_MS,
                whole_below=end,
                index_interval=250,
            )
            rewritten = run_compaction(self.disk, job, no_pace).rewritten
            if rewritten.changed:
                self.step("swap")
                swap = self.log.swap(rewritten)
                swap.publish()
                self.log.replace(swap)
                swap.finish()
                self.log.replaced(swap)
                replaced += len(group)
        self.log.sync()
        self.cleaned = Cleaned(end, end, epoch=self.log.epochs[-1].epoch)
        cleaned_file.write(self.disk, self.log.path, self.cleaned)
        self.disk.remove(survey.marks_path)
        return replaced


def records(log: Log, bytes_max: int = 300) -> dict[int, Entry]:
    """Every record that can be read, by offset."""
    found: dict[int, Entry] = {}
    at = log.start
    while at < log.end:
        part = log.read(at, bytes_max, log.end)
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        position = 0
        while position < len(data):
            header = parse_header(data, position)
            columns = decode_columns(memoryview(data)[position:], header)
            keys = columns.keys or [None] * len(columns.values)
            offsets = offsets_of(header, columns)
            entries = zip(keys, columns.values, strict=True)
            found |= {o: e for o, e in zip(offsets, entries, strict=True) if o >= log.start}
            position += header.size_bytes
        at = part.next_offset
    return found
