"""What of one segment survives: its sound batches, up to where the log ends in it (R25).

The flushed mark separates two kinds of what is unsound. At or above it stands the torn tail of a
write that nobody was promised: the log is cut there. Below it, it is corruption: exactly that
range is fenced in, and the log goes on with the next sound batch. The bytes are not touched here.
"""

from tailrace.protocol.batch import BadBatch, BatchHeader, EndOfLog
from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk
from tailrace.storage.epochs import EpochHistory
from tailrace.storage.index import HEAD_BYTES, Summary, decode_summary
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerTable
from tailrace.storage.replay import Replay
from tailrace.storage.report import Cut, Progress, RecoveryReport
from tailrace.storage.scan import REASONS, Scanner
from tailrace.storage.segment import Quarantine, Segment

ANY = 1 << 63  # above every offset
MISSING = "the segment file is missing"
NOTHING = (
    "nothing follows up to the next segment: a segment file is missing, or this one lost its end"
)
INTERVAL_BYTES = 1024 * 1024  # of an index that nobody will use


def verify_segment(disk: Disk, segment: Segment, seed: int) -> list[Quarantine]:
    """Verify every batch of a segment that was taken on trust (R24); what is damaged in it.

    Reads through a file of its own and changes nothing: may run in a worker thread.
    """
    trusted = segment.unverified
    if trusted is None:
        return []
    replay = Replay(ProducerTable("", 0), ANY, EpochHistory())
    report = RecoveryReport()
    mark = Mark(trusted.next_offset, -1, 0)
    salvage = Salvage(disk, seed, INTERVAL_BYTES, mark, replay, report, Progress())
    copy = Segment(disk, checkpoint.parent(segment.path), segment.base_offset)
    salvage.scan(copy, trusted.next_offset, trusted.size_bytes)
    return salvage.quarantined


def ends_there(saved: Summary, next_offset: int, end: int) -> bool:
    """Whether an index file tells that its segment ends there: nothing of it is missing."""
    return (saved.next_offset, saved.size_bytes) == (next_offset, end)


class Salvage:
    """Goes through the segments of one log, in order. Fields are its results so far."""

    def __init__(
        self,
        disk: Disk,
        seed: int,
        interval: int,
        mark: Mark,
        replay: Replay,
        report: RecoveryReport,
        progress: Progress,
    ) -> None:
        self.last_epoch = -1  # of the batch before
        self.last_time = -1
        self.quarantined: list[Quarantine] = []
        self._disk = disk
        self._seed = seed
        self._interval = interval
        self._mark = mark
        self._replay = replay
        self._report = report
        self._progress = progress

    def scan(self, segment: Segment, end: int | None, known_bytes: int | None) -> bool:
        """Verify a segment from front to back; True: the log is cut in it.

        ``end``: the base offset of the segment that follows. ``known_bytes``: where the last batch
        ends, if that is known.
        """
        segment.begin(self._disk.open(segment.path))
        return self.scan_on(segment, end, known_bytes)

    def scan_on(self, segment: Segment, end: int | None, known_bytes: int | None = None) -> bool:
        """The same for what lies behind what is known of the segment already."""
        began = segment.size_bytes
        scanner = Scanner(segment.file, self._seed, self._progress)
        durable = self._mark.offset if end is None else min(self._mark.offset, end)
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
        self._report.scanned_bytes += segment.size_bytes - began
        segment.sealed = end is not None
        if segment.size_bytes > segment.length:
            segment.extend(segment.size_bytes)  # the end of the file is missing
        return segment.next_offset != end and self._cut(segment, scanner, last=end is None)

    def fence(self, found: Quarantine) -> None:
        """A damaged range was found."""
        self.quarantined.append(found)
        self._report.quarantined.append(found)

    def cut_off(self, segment: Segment, offset: int) -> None:
        """All of a segment lies behind a cut at ``offset``: say what goes with it."""
        scanner = Scanner(segment.file, self._seed, self._progress)
        data_end = scanner.data_end(0)
        if data_end:
            behind = scanner.find(0, segment.length, offset - 1, ANY)
            self._report.data_loss_possible |= behind is not None
            self._report_cut(segment.path, 0, data_end, offset)

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
            self._interval,
        )
        self._replay.take(
            header.base_offset,
            header.next_offset,
            header.append_time,
            header.leader_epoch,
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        )
        self.last_epoch, self.last_time = header.leader_epoch, header.append_time
        self._report.batches += 1
        self._report.records += header.record_count

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
        mark = self._mark
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
        found = scanner.find(search, search_end, offset, below)
        resume = found or resume
        resume = (max(resume[0], position), resume[1])
        until_next = resume[1] == end or mark.segment_base == offset > segment.base_offset
        if found is None and until_next and scanner.data_end(position) == position:
            self._fence_gap(segment, position, offset, resume[1])
            segment.skip(*resume)
            return
        self.fence(Quarantine(segment.path, position, resume[0], offset, resume[1], reason))
        segment.skip(*resume)

    def _fence_gap(self, segment: Segment, position: int, offset: int, end: int) -> None:
        """A segment has no more data, and the next one begins later."""
        if self._mark.segment_base == offset > segment.base_offset or self._is_whole(
            segment, position, offset
        ):
            file = f"{checkpoint.parent(segment.path)}/{offset:020}.log"
            self.fence(Quarantine(file, 0, 0, offset, end, MISSING))
        else:
            self.fence(Quarantine(segment.path, position, position, offset, end, NOTHING))

    def _is_whole(self, segment: Segment, position: int, offset: int) -> bool:
        try:
            file = self._disk.open(segment.index_path)
        except FileNotFoundError:
            return False
        saved = decode_summary(file.read(HEAD_BYTES, 0), file.size(), segment.base_offset)
        file.close()
        return saved is not None and ends_there(saved, offset, position)

    def _cut(self, segment: Segment, scanner: Scanner, *, last: bool) -> bool:
        """End the log here, if anything lies behind; True if later segments must go."""
        position = segment.size_bytes
        data_end = scanner.data_end(position)
        if data_end > position:
            behind = scanner.find(position, segment.length, segment.next_offset - 1, ANY)
            self._report.data_loss_possible |= behind is not None
            self._report_cut(segment.path, position, data_end, segment.next_offset)
        if not last:
            segment.sealed = False
        return not last

    def _report_cut(self, file: str, position: int, end: int, offset: int) -> None:
        self._report.cuts.append(Cut(file, position, end - position, offset))
        self._report.truncated_bytes += end - position
