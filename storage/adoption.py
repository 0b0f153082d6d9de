"""Taking on trust what lies below the flushed mark, from what was saved of it.

A sealed segment's index file tells all that must be known of it. The segment that the mark points
into is taken up to the mark: what a hint or its index file covers as it is, the rest by a walk
along the headers, which must lead to the very place and sums that the mark tells. Whatever does
not fit is left to a scan. All of it is verified before it is first served (R24).
"""

from tailrace.storage.disk import Disk, File
from tailrace.storage.index import HEAD_BYTES, Index, Summary, decode_index, decode_summary
from tailrace.storage.marks import Mark
from tailrace.storage.replay import Replay, Walk
from tailrace.storage.report import Progress, RecoveryReport
from tailrace.storage.resume import Resume
from tailrace.storage.salvage import Salvage
from tailrace.storage.segment import Segment


class Adoption:
    """Goes through the segments of one log, in order, beside ``Salvage``."""

    def __init__(
        self,
        disk: Disk,
        seed: int,
        interval: int,
        mark: Mark,
        replay: Replay,
        resumes: list[Resume],
        salvage: Salvage,
        report: RecoveryReport,
        progress: Progress,
    ) -> None:
        self.saved: Summary | None = None  # up to where the mark's segment needed no walk
        self.kept = ""  # an index file of a front that may stay as it is
        self.misled = False  # batches were replayed that do not hold what they seemed to
        self._disk = disk
        self._seed = seed
        self._interval = interval
        self._mark = mark
        self._replay = replay
        self._resumes = resumes
        self._salvage = salvage
        self._report = report
        self._progress = progress

    def whole(self, segment: Segment, end: int | None) -> bool:
        """Whether the index file tells all that must be known of a sealed segment."""
        if end is None or end > self._mark.offset:
            return False
        file = self._disk.open(segment.path)
        saved = self._read_summary(segment)
        if saved is None or saved.next_offset != end or saved.size_bytes > file.size():
            file.close()
            return False
        segment.adopt(saved)
        segment.sealed = True
        if end > self._replay.offset and not self._walk(segment, file, saved):
            # Verified now, as it is not what it should be. What is damaged is fenced in.
            self.misled = True
            self._salvage.last_epoch = self._salvage.last_time = -1
            self._salvage.scan(segment, end, saved.size_bytes)
        else:
            self._report.adopted_bytes += saved.size_bytes
            self._follow(segment)
        file.close()
        return True

    def front(self, segment: Segment, end: int | None) -> bool:
        """Whether the segment could be taken from what was saved of it, as far as the mark is."""
        mark = self._mark.summary()
        if mark is None or mark.base_offset != segment.base_offset:
            return False
        file = self._disk.open(segment.path)
        if file.size() < mark.size_bytes or (end is not None and end < mark.next_offset):
            file.close()
            return False
        saved, index = self._read_index(segment, mark)
        segment.resume(file, saved, index)
        sound = self._replay.offset >= saved.next_offset or self._walk(segment, file, saved)
        epoch = self._replay.epochs.before(saved.next_offset)
        walk = self._start_walk(
            file, saved.size_bytes, saved.next_offset, epoch, saved.last_append_time
        )
        sound = sound and walk.run(mark.size_bytes, self._replay, segment, self._interval)
        self._report.walked_bytes += walk.position - saved.size_bytes
        if not sound or segment.summary() != mark:
            self.saved, self.kept, self.misled = None, "", True
            return False
        segment.trust()
        self._report.adopted_bytes += mark.size_bytes
        self._follow(segment)
        return True

    def _walk(self, segment: Segment, file: File, saved: Summary) -> bool:
        """Replay what was adopted, from where it is wanted on; False: it is not as it should be."""
        near = segment.index.at_offset(self._replay.offset)
        position, offset = (near.position, near.offset) if near else (0, segment.base_offset)
        walk = self._start_walk(file, position, offset, -1, -1)
        sound = walk.run(saved.size_bytes, self._replay, None, self._interval)
        return sound and walk.offset == saved.next_offset

    def _start_walk(self, file: File, position: int, offset: int, epoch: int, time: int) -> Walk:
        return Walk(
            *(file, self._seed, self._progress),
            position=position,
            offset=offset,
            epoch=epoch,
            time=time,
        )

    def _follow(self, segment: Segment) -> None:
        """What is scanned next has to continue this."""
        self._salvage.last_epoch = self._replay.epochs.before(segment.next_offset)
        self._salvage.last_time = max(self._salvage.last_time, segment.last_append_time)

    def _read_summary(self, segment: Segment) -> Summary | None:
        """From its index file, without the entries."""
        try:
            file = self._disk.open(segment.index_path)
        except FileNotFoundError:
            found = None
        else:
            found = decode_summary(file.read(HEAD_BYTES, 0), file.size(), segment.base_offset)
            file.close()
        if found is None:
            self._report.rebuilt.append(segment.index_path.rpartition("/")[2])
        return found

    def _read_index(self, segment: Segment, mark: Summary) -> tuple[Summary, Index]:
        """What was saved of the segment that holds the mark, or nothing; never beyond the mark."""
        base = segment.base_offset
        found = [(r.summary, r.index) for r in self._resumes if r.summary.base_offset == base]
        if self._disk.exists(segment.index_path):
            file = self._disk.open(segment.index_path)
            saved = decode_index(file.read(file.size(), 0), base)
            file.close()
            if saved is None:
                self._report.rebuilt.append(segment.index_path.rpartition("/")[2])
            else:
                found.append(saved)
                if saved[0].size_bytes <= mark.size_bytes:
                    self.kept = segment.index_path
        found = found or [(Summary(base, base, 0, -1, -1, 0, 0), Index(base))]
        summary, index = max(found, key=lambda one: one[0].size_bytes)
        if summary.size_bytes > mark.size_bytes:  # a power was cut, and the mark lags
            index.truncate(mark.size_bytes)
            summary = mark
        self.saved = summary
        return summary, index
