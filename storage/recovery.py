"""What survives a crash: a torn tail is cut, corruption fenced in, nothing else touched (R25).

The flushed mark separates the two. A bad batch at or above it is the torn tail of a write that
nobody was promised: the log ends there, and everything behind is zeroed and synced before the
next append. A bad batch below it is corruption: exactly that range is quarantined, the log goes
on with the next sound batch, and the bytes stay for whoever can repair them.

- The mark may lag (it is not synced itself). So if sound batches lie behind a cut, the report
  says ``data_loss_possible``.
- A lost mark is taken to stand at the last segment: then older segments are never cut.
- What a scan yields is a prefix of what was written and holds all that was synced (S32); doing it
  again changes nothing. Indexes, snapshots and checkpoints that are missing or damaged are
  rebuilt; none of them can keep a log from opening.
- Afterwards everything that was kept is durable: the mark equals the log end.
"""

from dataclasses import dataclass, field
from typing import Literal

from tailrace.protocol.batch import BadBatch, BatchHeader, EndOfLog
from tailrace.storage import checkpoint, marks
from tailrace.storage.disk import Disk, File
from tailrace.storage.epochs import EpochHistory, decode_epochs, encode_epochs
from tailrace.storage.index import decode_index
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerTable, decode_producers
from tailrace.storage.replay import replay
from tailrace.storage.scan import REASONS, Scanner
from tailrace.storage.segment import Quarantine, Segment

ZERO_BYTES = 1024 * 1024
ANY = 1 << 63  # above every offset


@dataclass(frozen=True, slots=True)
class Cut:
    """A torn tail that was removed."""

    file: str
    position: int
    bytes: int  # up to the last byte that was not zero
    offset: int  # the log end after the cut


@dataclass(slots=True)
class RecoveryReport:
    """What opening a log checked, cut and rebuilt."""

    clean: bool = False  # the log was closed cleanly; only what is needed was checked
    batches: int = 0  # verified
    records: int = 0
    scanned_bytes: int = 0
    truncated_bytes: int = 0
    cuts: list[Cut] = field(default_factory=list[Cut])
    quarantined: list[Quarantine] = field(default_factory=list[Quarantine])
    rebuilt: list[str] = field(default_factory=list[str])  # files found missing or unsound
    data_loss_possible: bool = False  # sound batches lay behind a cut (S3)


@dataclass(slots=True)
class Recovered:
    """The state of a log that was opened."""

    segments: list[Segment]  # the last one is active
    producers: ProducerTable
    producers_from: int  # offset of the snapshot that they were replayed from
    epochs: EpochHistory
    start: int
    quarantined: list[Quarantine]
    report: RecoveryReport


def recover(
    disk: Disk,
    path: str,
    *,
    name: tuple[str, int],
    seed: int,
    segment_bytes: int,
    interval: int,
    clean: bool,
    suspect: bool,
    verify: Literal["tail", "full"],
) -> Recovered:
    """Open what is in the directory, or make a new log. Raises ``OSError`` only.

    ``name``: topic and partition, for messages; for the rest see ``Log.open``.
    """
    work = _Recovery(disk, path, ProducerTable(*name), seed, segment_bytes, interval)
    work.run(clean=clean, suspect=suspect, full=verify == "full", name=name)
    return Recovered(
        segments=work.segments,
        producers=work.producers,
        producers_from=work.producers_from,
        epochs=work.epochs,
        start=work.start,
        quarantined=[hole for hole in work.quarantined if hole.next_offset > work.start],
        report=work.report,
    )


def numbered(names: list[str], prefix: str, suffix: str) -> list[int]:
    """The 20-digit offsets in file names of one form, rising."""
    cut = len(prefix), len(prefix) + 20
    fits = (n for n in names if n.startswith(prefix) and len(n) == cut[1] + len(suffix))
    return sorted(
        int(n[slice(*cut)]) for n in fits if n.endswith(suffix) and n[slice(*cut)].isdigit()
    )


def zero(file: File, position: int, end: int) -> None:
    """Zero a range, writing only where there is something else: that never needs space."""
    while (position := file.next_data(position)) < end:
        data = file.read(min(ZERO_BYTES, end - position), position)
        if not data:
            return
        kept = len(data.rstrip(b"\0"))
        if kept:
            file.write([bytes(kept)], position)
        position += len(data)


def verify_segment(disk: Disk, segment: Segment, seed: int) -> list[Quarantine]:
    """Verify every batch of a segment that was taken on trust (R24); what is damaged in it.

    Reads through a file of its own and changes nothing: may run in a worker thread.
    """
    trusted = segment.unverified
    if trusted is None:
        return []
    directory = checkpoint.parent(segment.path)
    work = _Recovery(disk, directory, ProducerTable("", 0), seed, 0, ZERO_BYTES)
    work.mark = Mark(trusted.next_offset, -1, 0)
    work.scan(
        Segment(disk, directory, segment.base_offset), trusted.next_offset, trusted.size_bytes
    )
    return work.quarantined


class _Recovery:
    """One run. Fields are its results so far."""

    def __init__(
        self, disk: Disk, path: str, producers: ProducerTable, seed: int, length: int, interval: int
    ) -> None:
        self.disk = disk
        self.path = path
        self.seed = seed
        self.segment_bytes = length
        self.interval = interval
        self.segments: list[Segment] = []
        self.producers = producers
        self.producers_from = 0  # offset of the snapshot it was replayed from
        self.epochs = EpochHistory()
        self.start = 0
        self.mark = Mark(0, 0, 0)
        self.quarantined: list[Quarantine] = []
        self.report = RecoveryReport()
        self.last_epoch = -1
        self.last_time = -1

    def run(self, *, clean: bool, suspect: bool, full: bool, name: tuple[str, int]) -> None:
        names = self._names()
        bases = numbered(names, "", ".log")
        self._read_marks(names, bases)
        if not bases:
            self._create()
            return
        if bases[0] > self.start:
            self._quarantine_missing(bases[0])
        self._scan_all(bases, clean=clean and not suspect, full=full)
        self._restore(names, name)
        self._finish(names, suspect=suspect)

    def _names(self) -> list[str]:
        """The files there are, without those a crash left half made or half removed."""
        if not self.disk.exists(self.path):
            self.disk.make_directory(self.path)
        names = self.disk.list(self.path)
        half_made = {name for name in names if name.endswith(checkpoint.TEMPORARY)}
        bases = set(numbered(names, "", ".log"))
        orphans = {f"{at:020}.index" for at in numbered(names, "", ".index") if at not in bases}
        for name in half_made | orphans:
            self.disk.remove(f"{self.path}/{name}")
        return [name for name in names if name not in half_made | orphans]

    def _read_marks(self, names: list[str], bases: list[int]) -> None:
        start = marks.read_start(self.disk, self.path)
        if start is None and "start" in names:
            self.report.rebuilt.append("start")
        self.start = start if start is not None else bases[0] if bases else 0
        mark = marks.read_mark(self.disk, self.path)
        if mark is None:
            last = bases[-1] if bases else self.start
            mark = Mark(last, last, 0)
            if bases or "flushed" in names:
                self.report.rebuilt.append("flushed")
        # The start was below the mark when it was set, and is durable.
        self.mark = mark if mark.offset >= self.start else Mark(self.start, -1, 0)

    def _create(self) -> None:
        """No segment is there. Offsets that were once durable are never used again (S10)."""
        # Also where the directory was found: whoever made it may have died before this.
        self.disk.sync_directory(checkpoint.parent(self.path))
        end = self.mark.offset
        if end > self.start:
            self._quarantine_missing(end)
        segment = Segment(self.disk, self.path, end)
        segment.create(self.segment_bytes)
        small = {
            marks.flushed_path(self.path): marks.encode_mark(Mark(end, end, 0)),
            marks.start_path(self.path): marks.encode_start(self.start),
        }
        staged = [checkpoint.stage(self.disk, path, data) for path, data in small.items()]
        self.disk.sync([segment.file, *staged])
        for path in small:
            checkpoint.publish(self.disk, path)
        self.disk.sync_directory(self.path)
        self.segments = [segment]

    def _quarantine_missing(self, next_offset: int) -> None:
        file = f"{self.path}/{self.start:020}.log"
        self._fence(Quarantine(file, 0, 0, self.start, next_offset, "the segment file is missing"))

    def _fence(self, found: Quarantine) -> None:
        self.quarantined.append(found)
        self.report.quarantined.append(found)

    # ── which segments to scan ───────────────────────────────────────────────────────────────

    def _scan_all(self, bases: list[int], *, clean: bool, full: bool) -> None:
        self.segments = [Segment(self.disk, self.path, base) for base in bases]
        ends: list[int | None] = [*bases[1:], None]
        for at, (segment, end) in enumerate(zip(self.segments, ends, strict=True)):
            if not full and self._adopt(segment, end, clean=clean):
                self.last_time = max(self.last_time, segment.last_append_time)
                self.report.clean = end is None
            elif self.scan(segment, end, None):
                self._remove_segments(at + 1)
                break

    def _adopt(self, segment: Segment, end: int | None, *, clean: bool) -> bool:
        """Whether the index file tells all that must be known of a segment."""
        if end is None and not clean:
            return False
        end_offset = self.mark.offset if end is None else end
        if end_offset > self.mark.offset:
            return False
        try:
            index_file = self.disk.open(segment.index_path)
        except FileNotFoundError:
            index_file = None
        data = b"" if index_file is None else index_file.read(index_file.size(), 0)
        found = decode_index(data, segment.base_offset)
        file = self.disk.open(segment.path)
        size = file.size()
        file.close()
        if index_file is not None:
            index_file.close()
        if found is None or found[0].next_offset != end_offset or found[0].size_bytes > size:
            self.report.rebuilt.append(segment.index_path.rpartition("/")[2])
            return False
        segment.adopt(found[0])
        segment.sealed = True
        return True

    def _restore(self, names: list[str], name: tuple[str, int]) -> None:
        """Producers from the newest snapshot and epochs from their file, then from the log."""
        end = self.segments[-1].next_offset
        for at in [found for found in numbered(names, "producers-", "")[::-1] if found <= end]:
            file = f"producers-{at:020}"
            body = checkpoint.read(self.disk, f"{self.path}/{file}", checkpoint.Kind.PRODUCERS)
            table = None if body is None else decode_producers(body, at, *name)
            if table is not None:
                self.producers, self.producers_from = table, at
                break
            self.report.rebuilt.append(file)
        body = checkpoint.read(self.disk, f"{self.path}/epochs", checkpoint.Kind.EPOCHS)
        epochs = None if body is None else decode_epochs(body)
        if epochs is None and "epochs" in names:
            self.report.rebuilt.append("epochs")
        self.epochs = epochs or EpochHistory()
        replay_from = self.producers_from if epochs is not None else 0
        for segment in self.segments:
            if segment.next_offset <= replay_from:
                continue
            if segment.unverified is not None:
                self.last_epoch = self.last_time = -1  # those of later segments by now
                self.scan(segment, segment.next_offset, segment.size_bytes)
            replay(
                segment,
                self.quarantined,
                producers=self.producers,
                producers_from=self.producers_from,
                epochs=self.epochs,
                epochs_from=replay_from,
            )

    # ── scanning one segment ─────────────────────────────────────────────────────────────────

    def scan(self, segment: Segment, end: int | None, known_bytes: int | None) -> bool:
        """Verify a segment from front to back; True: the log is cut in it."""
        file = self.disk.open(segment.path)
        segment.begin(file)
        scanner = Scanner(file, self.seed)
        durable = self.mark.offset if end is None else min(self.mark.offset, end)
        while segment.next_offset != end:
            found = scanner.at(segment.size_bytes)
            reason = self._wrong(found, segment.next_offset, end)
            if reason is None:
                assert isinstance(found, BatchHeader)
                self._take(segment, found)
            elif segment.next_offset < durable:
                sound = isinstance(found, BatchHeader)
                self._quarantine(segment, scanner, end, known_bytes, reason, sound=sound)
            else:
                break
        self.report.scanned_bytes += segment.size_bytes
        segment.sealed = end is not None
        if segment.size_bytes > segment.length:
            segment.extend(segment.size_bytes)  # the end of the file is missing
        return segment.next_offset != end and self._cut(segment, scanner, last=end is None)

    def _wrong(
        self, found: BatchHeader | EndOfLog | BadBatch, expected: int, end: int | None
    ) -> str | None:
        """Why what stands here does not continue the log, or None if it does."""
        if isinstance(found, EndOfLog):
            return "zeros where a batch should be"
        if isinstance(found, BadBatch):
            return REASONS[found.reason]
        if found.base_offset != expected:
            return f"offset {found.base_offset} where {expected} should follow"
        if end is not None and found.next_offset > end:
            return f"offsets up to {found.last_offset} in a segment that ends at {end}"
        if found.leader_epoch < self.last_epoch:
            return f"leader epoch falls from {self.last_epoch} to {found.leader_epoch}"
        if found.append_time < self.last_time:
            return f"append time falls from {self.last_time} to {found.append_time}"
        return None

    def _take(self, segment: Segment, header: BatchHeader) -> None:
        segment.add(
            header.size_bytes,
            header.base_offset,
            header.next_offset,
            header.append_time,
            header.record_count,
            self.interval,
        )
        self.last_epoch, self.last_time = header.leader_epoch, header.append_time
        self.report.batches += 1
        self.report.records += header.record_count

    def _quarantine(
        self,
        segment: Segment,
        scanner: Scanner,
        end: int | None,
        known_bytes: int | None,
        reason: str,
        *,
        sound: bool,
    ) -> None:
        """Fence in what is bad and stand at the next sound batch, or where the mark says."""
        position, offset = segment.size_bytes, segment.next_offset
        mark = self.mark
        if end is not None and end <= mark.offset:
            search_end, below = segment.length, end
            resume = (known_bytes or scanner.data_end(position), end)
        elif mark.segment_base == segment.base_offset and mark.position >= position:
            search_end, below = mark.position, mark.offset
            resume = (mark.position, mark.offset)
        else:
            search_end, below = segment.length, ANY
            resume = (scanner.data_end(position), mark.offset)
        search = position if sound else scanner.past(position)
        resume = scanner.find(search, search_end, offset, below) or resume
        resume = (max(resume[0], position), resume[1])
        self._fence(Quarantine(segment.path, position, resume[0], offset, resume[1], reason))
        segment.skip(*resume)

    # ── the tail ─────────────────────────────────────────────────────────────────────────────

    def _cut(self, segment: Segment, scanner: Scanner, *, last: bool) -> bool:
        """End the log here, if anything lies behind; True if later segments must go."""
        position = segment.size_bytes
        data_end = scanner.data_end(position)
        if data_end > position:
            behind = scanner.find(position, segment.length, segment.next_offset - 1, ANY)
            self.report.data_loss_possible |= behind is not None
            self._report_cut(segment.path, position, data_end, segment.next_offset)
        if not last:
            segment.sealed = False
        return not last

    def _report_cut(self, file: str, position: int, end: int, offset: int) -> None:
        self.report.cuts.append(Cut(file, position, end - position, offset))
        self.report.truncated_bytes += end - position

    def _remove_segments(self, first: int) -> None:
        """Remove the segments behind a cut; before the zeroing, so that a crash can be redone."""
        offset = self.segments[first - 1].next_offset
        for segment in self.segments[first:]:
            scanner = Scanner(segment.file, self.seed)
            data_end = scanner.data_end(0)
            if data_end:
                behind = scanner.find(0, segment.length, offset - 1, ANY)
                self.report.data_loss_possible |= behind is not None
                self._report_cut(segment.path, 0, data_end, offset)
        for segment in reversed(self.segments[first:]):
            segment.forget()
            self._remove(segment.base_offset)
        del self.segments[first:]
        self.disk.sync_directory(self.path)

    def _remove(self, base: int) -> None:
        self.disk.remove(f"{self.path}/{base:020}.index")
        self.disk.remove(f"{self.path}/{base:020}.log")

    def _finish(self, names: list[str], *, suspect: bool) -> None:
        """Make the result durable: zeroed tail, mark, and nothing left that is newer than it."""
        active = self.segments[-1]
        end = active.next_offset
        for cut in self.report.cuts:
            if cut.file == active.path:
                zero(active.file, cut.position, cut.position + cut.bytes)
        stale = [at for at in numbered(names, "producers-", "") if at > end]
        for at in stale:
            self.disk.remove(f"{self.path}/producers-{at:020}")
        if not self.report.clean:
            self.disk.remove(active.index_path)  # it will be written anew when it is sealed
        if suspect:
            self._rewrite()
        active.sealed = False
        active.extend(max(self.segment_bytes, active.size_bytes))
        dirty = [segment for segment in self.segments if segment.next_offset >= self.mark.offset]
        if not self.report.clean:
            self.disk.sync([segment.file for segment in dirty])
            # Names before the mark that counts on them: it must not outlive a segment's.
            self.disk.sync_directory(self.path)
        if self.epochs.truncate_to(end) or "epochs" not in names or "epochs" in self.report.rebuilt:
            data = encode_epochs(self.epochs)
            checkpoint.write(self.disk, f"{self.path}/epochs", data)
        mark = Mark(end, active.base_offset, active.size_bytes)
        # A mark that was read may stand in the page cache only: a power cut would turn what is
        # quarantined below it into a torn tail.
        if mark != self.mark or self.quarantined or "flushed" in self.report.rebuilt:
            data = marks.encode_mark(mark)
            checkpoint.write(self.disk, marks.flushed_path(self.path), data)
        self.start = min(self.start, end)
        for segment in self.segments:
            segment.synced_bytes = segment.zeroed_bytes = segment.size_bytes

    def _rewrite(self) -> None:
        """After a failed sync the kernel may call lost pages clean: write them again (R21)."""
        for segment in self.segments:
            at = segment.size_bytes
            if segment.next_offset > self.mark.offset:
                same = segment.base_offset == self.mark.segment_base
                at = self.mark.position if same else 0
            while at < segment.size_bytes:
                data = segment.file.read(min(ZERO_BYTES, segment.size_bytes - at), at)
                segment.file.write([data], at)
                at += len(data)
