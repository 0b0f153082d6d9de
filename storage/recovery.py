"""What survives a crash: a torn tail is cut, corruption fenced in, nothing else touched (R25).

The flushed mark says up to where the log was durable, and what its segment adds up to there. So

- what lies below it is adopted: not read now, but verified before it is first served (R24). Only
  the headers behind the last saved index are walked, for the index and for the producers;
- what lies behind it is scanned, batch by batch (``salvage``): that is little, as the mark follows
  every sync round. So a start takes the time of its tail, not of its data.

- The mark may lag (it is not synced itself). So if sound batches lie behind a cut, the report
  says ``data_loss_possible``; and a clean close spares the scan only where nothing stands behind
  the mark: a power cut right after it may have kept the ``clean`` file and taken the mark back.
- A lost mark is taken to stand at the last segment: then older segments are never cut.
- What a scan yields is a prefix of what was written and holds all that was synced (S32); doing it
  again changes nothing. Indexes, snapshots and checkpoints that are missing or damaged are
  rebuilt; none of them can keep a log from opening.
- Afterwards everything that was kept is durable: the mark equals the log end. ``storage.settling``
  sees to that, for many logs at once.
"""

from dataclasses import dataclass
from typing import Literal

from tailrace.protocol.batch import HEADER_BYTES
from tailrace.storage import checkpoint, marks, reset
from tailrace.storage.adoption import Adoption
from tailrace.storage.disk import Disk, File
from tailrace.storage.epochs import EpochHistory, decode_epochs, encode_epochs
from tailrace.storage.index import encode_index
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerTable, decode_producers, encode_producers
from tailrace.storage.replay import Replay
from tailrace.storage.report import Cut, Progress, RecoveryReport
from tailrace.storage.resume import Resume, read_resumes, remove_resumes
from tailrace.storage.salvage import ANY, Salvage
from tailrace.storage.scan import data_bytes
from tailrace.storage.segment import Quarantine, Segment
from tailrace.storage.settling import Unsettled, settle
from tailrace.storage.swap import complete

__all__ = [
    "Cut",
    "Recovered",
    "Recovery",
    "RecoveryReport",
    "numbered",
    "recover",
    "zero",
]

ZERO_BYTES = 1024 * 1024


@dataclass(slots=True)
class Recovered:
    """The state of a log that was opened."""

    segments: list[Segment]  # the last one is active
    producers: ProducerTable
    epochs: EpochHistory
    start: int
    quarantined: list[Quarantine]
    report: RecoveryReport
    snapshot: int  # offset of the newest snapshot that is sound
    hinted_bytes: int  # of the active segment, that need no walk
    hinted_batches: int
    slot: int  # of the newest hint (``storage.resume``)


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
    """Open what is in the directory, or make a new log; durable on return. ``OSError``, T093.

    ``name``: topic and partition, for messages; for the rest see ``Log.open``.
    """
    work = Recovery(
        disk,
        path,
        name=name,
        seed=seed,
        segment_bytes=segment_bytes,
        interval=interval,
        clean=clean,
        suspect=suspect,
        verify=verify,
    )
    work.survey()
    work.run()
    settle(disk, work.unsettled)
    return work.recovered()


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
        kept = data_bytes(data)
        if kept:
            file.write([bytes(kept)], position)
        position += len(data)


def _nothing_behind(segment: Segment) -> bool:
    """Whether no batch begins where what is known of the segment ends."""
    return not data_bytes(segment.file.read(HEADER_BYTES, segment.size_bytes))


class Recovery:
    """One run: ``survey``, ``run``, settling, ``recovered``. Fields are its results so far."""

    def __init__(
        self,
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
    ) -> None:
        self.progress = Progress()
        self.unsettled = Unsettled()
        self.disk = disk
        self.path = path
        self.seed = seed
        self.segment_bytes = segment_bytes
        self.interval = interval
        self.mark = Mark(0, 0, 0)
        self.start = 0
        self.segments: list[Segment] = []
        self.report = RecoveryReport()
        self._name = name
        self._clean = clean and not suspect
        self._suspect = suspect
        self._full = verify == "full"
        self._names: list[str] = []
        self._bases: list[int] = []
        self._resumes: list[Resume] = []
        self._snapshot = 0
        self._replay = Replay(ProducerTable(*name), 0, EpochHistory())
        self._prepare()

    # ── survey ───────────────────────────────────────────────────────────────────────────────

    def survey(self) -> None:
        """Read the small files, estimate what else there is to be read. ``OSError``, T093."""
        complete(self.disk, self.path)
        self._names = self._list()
        if reset.complete(self.disk, self.path, self._names):
            self._names = self._list()
        self._bases = numbered(self._names, "", ".log")
        self._read_marks(self._names, self._bases)
        self._resumes = read_resumes(self.disk, self.path, self._names)
        self._replay = self._read_tables(ANY)
        self._prepare()
        if self._clean and not self._full:
            return
        for base, following in zip(self._bases, self._ends(), strict=True):
            if not self._full and following is not None and following <= self.mark.offset:
                continue
            holds_mark = base == self.mark.segment_base and not self._full
            position = self.mark.position if holds_mark else 0
            file = self.disk.open(f"{self.path}/{base:020}.log")
            self.progress.planned_bytes += max(0, file.next_hole(position) - position)
            file.close()

    def _prepare(self) -> None:
        """With mark and tables as they are now."""
        self._salvage = self._make_salvage(self.report)
        self._adoption = Adoption(
            *(self.disk, self.seed, self.interval, self.mark, self._replay),
            *(self._resumes, self._salvage, self.report, self.progress),
        )

    def _make_salvage(self, report: RecoveryReport) -> Salvage:
        return Salvage(
            *(self.disk, self.seed, self.interval, self.mark),
            *(self._replay, report, self.progress),
        )

    def _list(self) -> list[str]:
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

    def _read_tables(self, end: int) -> Replay:
        """Producers from the newest snapshot or hint up to ``end``, epochs from their file."""
        producers, taken_at = ProducerTable(*self._name), 0
        snapshots = numbered(self._names, "producers-", "")
        for at in [found for found in snapshots[::-1] if found <= end]:
            file = f"producers-{at:020}"
            body = checkpoint.read(self.disk, f"{self.path}/{file}", checkpoint.Kind.PRODUCERS)
            table = None if body is None else decode_producers(body, at, *self._name)
            if table is not None:
                producers, taken_at = table, at
                break
            self.report.rebuilt.append(file)
        self._snapshot = taken_at
        for one in self._resumes:
            table = None
            if taken_at < one.summary.next_offset <= end:
                table = one.producers(*self._name)
            if table is not None:
                producers, taken_at = table, one.summary.next_offset
                break
        body = checkpoint.read(self.disk, f"{self.path}/epochs", checkpoint.Kind.EPOCHS)
        epochs = None if body is None else decode_epochs(body)
        replay = Replay(producers, taken_at, epochs or EpochHistory())
        if epochs is None:
            replay.from_the_start()
            if "epochs" in self._names:
                self.report.rebuilt.append("epochs")
        return replay

    # ── run ──────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Find out what the log is. ``OSError``, T093. Not durable before it is settled."""
        if not self._bases:
            self._create()
        else:
            if self._bases[0] > self.start:
                self._quarantine_missing(self._bases[0])
            self._take_segments()
            longer = self._replay.producers_from > self.segments[-1].next_offset
            if longer or self._adoption.misled:
                self._replay_again()
            self._finish()
        self.progress.done = True

    def recovered(self) -> Recovered:
        """The log as it is now that it is settled."""
        active, saved = self.segments[-1], self._adoption.saved
        if saved is not None and saved.base_offset != active.base_offset:
            saved = None
        return Recovered(
            segments=self.segments,
            producers=self._replay.producers,
            epochs=self._replay.epochs,
            start=self.start,
            quarantined=[
                hole for hole in self._salvage.quarantined if hole.next_offset > self.start
            ],
            report=self.report,
            snapshot=self._snapshot,
            hinted_bytes=0 if saved is None else saved.size_bytes,
            hinted_batches=0 if saved is None else saved.batches,
            slot=self._resumes[0].slot if self._resumes else 1,
        )

    def _create(self) -> None:
        """No segment is there. Offsets that were once durable are never used again (S10)."""
        end = self.mark.offset
        if end > self.start:
            self._quarantine_missing(end)
        segment = Segment(self.disk, self.path, end)
        segment.create(self.segment_bytes)
        self.segments = [segment]
        self.unsettled.files.append(segment.file)
        self._stage(marks.flushed_path(self.path), marks.encode_mark(Mark.of(segment.summary())))
        self._stage(marks.start_path(self.path), marks.encode_start(self.start))
        # Also where the directory was found: whoever made it may have died before this.
        self.unsettled.directories |= {self.path, checkpoint.parent(self.path)}

    def _quarantine_missing(self, next_offset: int) -> None:
        file = f"{self.path}/{self.start:020}.log"
        hole = Quarantine(file, 0, 0, self.start, next_offset, "the segment file is missing")
        self._salvage.fence(hole)

    def _take_segments(self) -> None:
        """Each as far as that can be believed without reading it; the rest is scanned."""
        self.segments = [Segment(self.disk, self.path, base) for base in self._bases]
        for at, (segment, end) in enumerate(zip(self.segments, self._ends(), strict=True)):
            if self._full:
                cut = self._salvage.scan(segment, end, None)
            elif self._adoption.whole(segment, end):
                cut = False
            elif not self._adoption.front(segment, end):
                cut = self._salvage.scan(segment, end, None)
            elif end is None and self._clean and _nothing_behind(segment):
                self.report.clean, cut = True, False
            else:
                cut = self._salvage.scan_on(segment, end)
            if cut:
                self._remove_segments(at + 1)
                break

    def _ends(self) -> list[int | None]:
        """Where each segment has to end: the last one nowhere."""
        return [*self._bases[1:], None] if self._bases else []

    def _replay_again(self) -> None:
        """Something was taken in that does not count: all once more, verified this time."""
        end = self.segments[-1].next_offset
        self._replay = self._read_tables(end)
        salvage = self._make_salvage(RecoveryReport())
        for segment in [one for one in self.segments if one.next_offset > self._replay.offset]:
            copy = Segment(self.disk, self.path, segment.base_offset)
            salvage.scan(copy, segment.next_offset, segment.size_bytes)

    # ── the end ──────────────────────────────────────────────────────────────────────────────

    def _remove_segments(self, first: int) -> None:
        """Remove the segments behind a cut; before the zeroing, so that a crash can be redone."""
        offset = self.segments[first - 1].next_offset
        for segment in self.segments[first:]:
            self._salvage.cut_off(segment, offset)
        for segment in reversed(self.segments[first:]):
            segment.forget()
            self.disk.remove(segment.index_path)
            self.disk.remove(segment.path)
        del self.segments[first:]
        with checkpoint.syncing(self.path):
            self.disk.sync_directory(self.path)

    def _finish(self) -> None:
        """Write what makes the result last: zeroed tail, mark, and nothing newer than it."""
        active, epochs = self.segments[-1], self._replay.epochs
        end = active.next_offset
        for cut in self.report.cuts:
            if cut.file == active.path:
                zero(active.file, cut.position, cut.position + cut.bytes)
        for at in numbered(self._names, "producers-", ""):
            if at > end:
                self.disk.remove(f"{self.path}/producers-{at:020}")
        if self._adoption.kept != active.index_path:
            self.disk.remove(active.index_path)  # it tells of more, or of something else
        if any(one.summary.next_offset > end for one in self._resumes):
            remove_resumes(self.disk, self.path)  # the log will be another up to there
            self._resumes = []
        if self._suspect:
            self._rewrite()
        active.sealed = False
        active.extend(max(self.segment_bytes, active.size_bytes))
        if not self.report.clean:
            dirty = [one for one in self.segments if one.next_offset >= self.mark.offset]
            self.unsettled.files += [segment.file for segment in dirty]
            # The parent, too: whoever made this one may have died before its name was durable.
            self.unsettled.directories |= {self.path, checkpoint.parent(self.path)}
        rebuilt = "epochs" not in self._names or "epochs" in self.report.rebuilt
        if epochs.truncate_to(end) or rebuilt:
            self._stage(f"{self.path}/epochs", encode_epochs(epochs))
        if self._salvage.quarantined:
            # The next start shall not have to judge the same bytes again, by less.
            self._adoption.saved, self._snapshot = active.summary(), end
            self._stage(active.index_path, encode_index(active.summary(), active.index))
            data = encode_producers(self._replay.producers, end)
            self._stage(f"{self.path}/producers-{end:020}", data)
        mark, path = Mark.of(active.summary()), marks.flushed_path(self.path)
        # If its own sync failed, syncing it again would do nothing: it is written again (R21).
        if mark != self.mark or self._suspect or "flushed" in self.report.rebuilt:
            self._stage(path, marks.encode_mark(mark))
        elif not self.report.clean:
            # It may stand in the page cache only: a power cut would turn what is damaged below it
            # into a torn tail.
            self.unsettled.files.append(self.disk.open(path))
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

    def _stage(self, path: str, data: bytes) -> None:
        self.unsettled.stage(self.disk, path, data)
