"""Jobs that take segments out of a log or replace them: what is seen at each of their steps."""

import errno
import os
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError, OffsetOutOfRange
from tailrace.storage.disk import OsDisk
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.os_sync import NotBegun
from tailrace.storage.rewrite import RewriteRefused
from tests.storage.logs import ALL, SMALL, QuickDisk, holes, open_log
from tests.storage.rewriting import make, put, records, settled, swap


class BadDisk(QuickDisk):
    """Fails to remove, to rename, or to sync names, as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: str | None = None
        self.error = OSError(errno.EIO, "Input/output error")

    def _fail(self, what: str) -> None:
        if self.failing == what:
            raise self.error

    def remove(self, path: str) -> None:
        self._fail("remove")
        super().remove(path)

    def rename(self, source: str, target: str) -> None:
        self._fail("rename")
        super().rename(source, target)

    def sync_directory(self, path: str) -> None:
        self._fail("sync")
        super().sync_directory(path)


def filled(path: Path, disk: OsDisk | None = None, segments: int = 3) -> Log:
    """A log of sealed segments of 20 batches with 2 records each, and an empty active one."""
    log = open_log(path, disk=disk, config=LogConfig(segment_bytes=1 << 20))
    for _ in range(segments):
        for _ in range(20):
            put(log, 2)
        settled(log)
    return log


def names(path: Path, suffix: str) -> list[str]:
    return sorted(file.name for file in (path / "log").iterdir() if file.name.endswith(suffix))


# ── trimming ─────────────────────────────────────────────────────────────────────────────────


def test_a_trim_shows_with_its_third_step_and_takes_the_files_with_its_fourth(
    tmp_path: Path,
) -> None:
    log = filled(tmp_path)
    job = log.trim(85)
    assert job is not None
    assert (job.start, len(job.gone)) == (80, 2)
    assert job.size_bytes == sum(one.size_bytes for one in log.segments()[:2])
    job.publish()
    assert log.start == 0
    assert records(log)[0] == b"0"
    log.trimmed(job)
    assert log.start == 80
    with pytest.raises(OffsetOutOfRange):
        log.read(79, 100, log.end)
    assert len(names(tmp_path, ".log")) == 4
    job.finish()
    assert [int(name[:20]) for name in names(tmp_path, ".log")] == [80, 120]
    assert [int(name[:20]) for name in names(tmp_path, ".index")] == [80]
    assert log.trim(85) is None


def test_a_published_start_survives_though_nothing_else_was_done(tmp_path: Path) -> None:
    log = filled(tmp_path)
    job = log.trim(40)
    assert job is not None
    job.publish()
    again = open_log(tmp_path)
    assert again.start == 40
    assert len(names(tmp_path, ".log")) == 3
    assert min(records(again)) == 40


def test_an_exact_trim_stands_inside_a_batch(tmp_path: Path) -> None:
    log = filled(tmp_path)
    job = log.trim(45, exact=True)
    assert job is not None
    assert (job.start, len(job.gone)) == (45, 1)
    job.publish()
    log.trimmed(job)
    job.finish()
    assert min(records(log)) == 45


def test_segments_stay_until_a_snapshot_covers_them(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    put(log, 2)
    log.sync()
    log.roll()
    assert log.trim(2) is None
    job = log.trim(2, exact=True)
    assert job is not None
    assert job.gone == []
    log.sync()
    job = log.trim(2, exact=True)
    assert job is not None
    assert len(job.gone) == 1


def test_files_that_could_not_be_removed_go_with_the_next_trim(tmp_path: Path) -> None:
    disk = BadDisk()
    log = filled(tmp_path, disk)
    job = log.trim(40)
    assert job is not None
    job.publish()
    log.trimmed(job)
    disk.failing = "remove"
    with pytest.raises(OSError, match="Input/output"):
        job.finish()
    disk.failing = None
    assert log.start == 40
    again = log.trim(40)
    assert again is not None
    assert again.gone == []
    again.publish()
    log.trimmed(again)
    again.finish()
    assert len(names(tmp_path, ".log")) == 3
    assert log.trim(40) is None


# ── swapping ─────────────────────────────────────────────────────────────────────────────────


def test_a_swap_shows_with_its_third_step(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    before = records(log)
    gone = {*range(10, 50), 61, 119}
    job = log.swap(make(disk, log, gone))
    assert records(log) == before
    job.publish()
    assert records(log) == before
    old = log.read(0, 1 << 20, log.end)
    log.replace(job)
    after = {offset: value for offset, value in before.items() if offset not in gone}
    assert records(log) == after
    job.finish()
    assert records(log) == after
    log.replaced(job)
    assert names(tmp_path, ".swap") == []
    assert [int(name[:20]) for name in names(tmp_path, ".log")] == [0, 120]
    assert names(tmp_path, ".index") == []
    assert bytes(old.ranges[0].view())[45:50], "a slice that is being sent stays what it was"
    log.sync()
    assert [int(name[:20]) for name in names(tmp_path, ".index")] == [0]
    put(log, 3)
    assert records(log) == after | {at: b"%d" % at for at in range(120, 123)}
    log.sync()
    for clean in (False, True):
        log.close(clean=clean)
        log = open_log(tmp_path, clean=clean)
        assert records(log) == after | {at: b"%d" % at for at in range(120, 123)}
        assert holes(log) == []


def test_what_was_swapped_may_be_swapped_again(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    swap(disk, log, range(20, 90))
    log.sync()
    swap(disk, log, {*range(15, 95), 119})
    log.sync()
    assert sorted(records(log)) == [*range(15), *range(95, 119)]
    assert log.segments()[0].next_offset == 120


def test_every_record_may_go(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    swap(disk, log, range(120))
    log.sync()
    assert records(log) == {}
    assert log.offset_for_time(0, log.end) is None
    facts = log.segments()[0]
    assert (facts.base_offset, facts.next_offset) == (0, 120)
    put(log, 1)
    again = open_log(tmp_path)
    assert records(again) == {120: b"120"}
    assert again.offset_for_time(0, again.end) == (120, 1120)
    assert again.drop_before(120) == 1


def test_a_time_is_looked_for_behind_segments_without_records(tmp_path: Path) -> None:
    """Only what has to be looked at is verified first, one segment after the other."""
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    job = log.swap(make(disk, log, range(40), log.rewritable(ALL)[:1]))
    job.publish()
    log.replace(job)
    job.finish()
    log.replaced(job)
    log.close(clean=True)
    log = open_log(tmp_path, disk=disk, clean=True)
    asked: list[int] = []
    while (offset := log.doubtful_for_time(0)) is not None:
        asked.append(offset)
        work = log.verify_pending(offset)
        assert work is not None
        work()
    assert asked == [0, 40]
    assert log.offset_for_time(0, log.end) == (40, 1040)
    assert log.verify_pending(80) is not None


def test_only_settled_segments_may_be_rewritten(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=1 << 20))
    put(log, 2)
    assert log.rewritable(ALL) == []
    assert log.roll()
    assert not log.roll()
    assert log.rewritable(ALL) == []
    log.sync()
    [source] = log.rewritable(ALL)
    assert (source.base_offset, source.next_offset) == (0, 2)
    assert log.rewritable(1) == []


def test_a_segment_that_the_mark_points_into_waits_for_the_next_round(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=LogConfig(segment_bytes=1 << 20))
    put(log, 2)
    log.sync()
    log.roll()
    assert log.rewritable(ALL) == []
    log.sync()
    assert len(log.rewritable(ALL)) == 1


def test_a_damaged_segment_is_left_out(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.close(clean=True)
    file = tmp_path / "log" / f"{40:020}.log"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    log = open_log(tmp_path, clean=True)
    assert [one.base_offset for one in log.rewritable(ALL)] == [0, 40, 80]
    with pytest.raises(RewriteRefused):
        make(QuickDisk(), log, {40})
    work = log.verify_pending(50)
    assert work is not None
    work()
    assert [one.base_offset for one in log.rewritable(ALL)] == [0, 80]


def test_damage_that_is_found_in_a_replaced_file_says_nothing_of_the_new(tmp_path: Path) -> None:
    disk = QuickDisk()
    filled(tmp_path, disk).close(clean=True)
    log = open_log(tmp_path, disk=disk, clean=True)
    work = log.verify_pending(0)
    assert work is not None
    job = log.swap(make(disk, log, {0}))
    job.publish()
    file = tmp_path / "log" / f"{0:020}.log"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    log.replace(job)
    work()
    job.finish()
    work()
    log.replaced(job)
    assert holes(log) == []
    assert len(records(log)) == 119


@pytest.mark.parametrize("failing", ["remove", "rename"])
def test_an_unfinished_swap_serves_and_the_next_job_ends_it(tmp_path: Path, failing: str) -> None:
    disk = BadDisk()
    log = filled(tmp_path, disk)
    sources = log.rewritable(ALL)[:2]
    job = log.swap(make(disk, log, range(5, 75), sources))
    job.publish()
    log.replace(job)
    disk.failing = failing
    with pytest.raises(OSError, match="Input/output"):
        job.finish()
    log.replaced(job)
    disk.failing = None
    after = [*range(5), *range(75, 120)]
    assert sorted(records(log)) == after
    assert [one.base_offset for one in log.rewritable(ALL)] == [80]
    other = log.swap(make(disk, log, {80}, log.rewritable(ALL)))
    other.publish()
    log.replace(other)
    other.finish()
    log.replaced(other)
    assert sorted(records(log)) == [at for at in after if at != 80]
    assert names(tmp_path, ".swap") == []
    log.sync()
    assert [one.base_offset for one in log.rewritable(ALL)] == [0, 80]


def test_a_segment_with_an_unfinished_swap_may_be_trimmed(tmp_path: Path) -> None:
    disk = BadDisk()
    log = filled(tmp_path, disk)
    job = log.swap(make(disk, log, range(5, 75), log.rewritable(ALL)[:2]))
    job.publish()
    log.replace(job)
    disk.failing = "rename"
    with pytest.raises(OSError, match="Input/output"):
        job.finish()
    disk.failing = None
    assert log.drop_before(80) == 1
    assert names(tmp_path, ".swap") == []
    assert [int(name[:20]) for name in names(tmp_path, ".log")] == [80, 120]
    assert log.trim(80) is None


def test_pinned_files_stay_open_however_many_segments_are_read(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk, segments=12)
    job = log.swap(make(disk, log, {0}, log.rewritable(ALL)[:1]))
    job.publish()
    log.replace(job)
    assert len(records(log)) == 12 * 40 - 1
    assert len(records(log)) == 12 * 40 - 1
    job.finish()
    log.replaced(job)
    assert len(records(log)) == 12 * 40 - 1


def test_a_swap_that_is_given_up_leaves_no_trace(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    job = log.swap(make(disk, log, {0}))
    assert names(tmp_path, ".tmp")
    job.discard()
    assert names(tmp_path, ".tmp") == []
    assert len(records(log)) == 120


def test_a_file_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    made = make(disk, log, {0})
    [name] = names(tmp_path, ".tmp")
    with open(tmp_path / "log" / name, "ab") as file:
        file.write(b"x")
    with pytest.raises(RewriteRefused):
        log.swap(made).publish()
    assert names(tmp_path, ".tmp") == []
    assert len(records(log)) == 120


def test_a_failed_sync_of_names_stops_the_log(tmp_path: Path) -> None:
    disk = BadDisk()
    log = filled(tmp_path, disk)
    job = log.swap(make(disk, log, {0}))
    disk.failing = "sync"
    with pytest.raises(BrokerError, match="T093"):
        job.publish()
    disk.failing = None
    with pytest.raises(BrokerError, match="T093"):
        put(log, 1)


def test_a_sync_of_names_that_could_not_be_begun_is_begun_again(tmp_path: Path) -> None:
    disk = BadDisk()
    disk.error = NotBegun(errno.EMFILE, "Too many open files")
    log = filled(tmp_path, disk)
    job = log.swap(make(disk, log, {0}))
    before = sorted(os.listdir(tmp_path / "log"))
    disk.failing = "sync"
    with pytest.raises(NotBegun):
        job.publish()
    assert names(tmp_path, ".swap") == names(tmp_path, ".tmp") == []
    trim = log.trim(40)
    assert trim is not None
    with pytest.raises(NotBegun):
        trim.publish()
    disk.failing = None
    assert [name for name in before if name.endswith(".log")] == names(tmp_path, ".log")
    trim.publish()
    log.trimmed(trim)
    disk.failing = "sync"
    with pytest.raises(NotBegun):
        trim.finish()
    disk.failing = None
    trim.finish()
    put(log, 1)
    assert log.start == 40


def test_only_the_first_segment_of_a_log_may_hold_its_start(tmp_path: Path) -> None:
    disk = QuickDisk()
    log = filled(tmp_path, disk)
    log.set_start(45)
    [first, _] = log.rewritable(ALL)
    assert (first.base_offset, first.next_offset) == (40, 80)
    job = log.swap(make(disk, log, range(45), [first]))
    job.publish()
    log.replace(job)
    job.finish()
    log.replaced(job)
    log.sync()
    assert min(records(log)) == 45
    data = (tmp_path / "log" / f"{40:020}.log").read_bytes()
    assert b"44" not in data
    assert b"45" in data
    assert min(records(open_log(tmp_path))) == 45


def test_neighbours_that_may_be_merged_meet(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=SMALL)
    for _ in range(40):
        put(log, 2)
    settled(log)
    sources = log.rewritable(ALL)
    assert len(sources) > 2
    assert [a.next_offset for a in sources[:-1]] == [b.base_offset for b in sources[1:]]
