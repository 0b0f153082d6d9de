"""A disk that is full at any one call of a log's life, or from one on: nothing breaks, nothing
acknowledged is lost, and everything works again when there is room (R28)."""

import errno
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import OsFile
from tailrace.storage.log import Log, LogConfig
from tests.storage.logs import FullDisk, QuickDisk, append, batch, entries, files, fill, open_log
from tests.storage.rewriting import make, put, records, settled, swap

SMALLEST = LogConfig(segment_bytes=500, index_interval_bytes=100)
TURNS = 10


class CountingFile(OsFile):
    disk: "CountingDisk"

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        self.disk.take("write", self.path)
        super().write(buffers, position)

    def resize(self, length: int) -> None:
        if length > self.size():
            self.disk.take("grow", self.path)
        super().resize(length)


class CountingDisk(QuickDisk):
    """Calls that may need room are counted, and fail while the count is in ``full``."""

    def __init__(self, full: range = range(0)) -> None:
        super().__init__()
        self.full = full
        self.calls: list[str] = []  # what for, and the file

    def take(self, what: str, path: str) -> None:
        self.calls.append(f"{what} {path.rpartition('/')[2]}")
        if len(self.calls) in self.full:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if create and not self.exists(path):
            self.take("make", path)
        opened = super().open(path, create=create)
        opened.__class__ = CountingFile
        assert isinstance(opened, CountingFile)
        opened.disk = self
        return opened

    def make_directory(self, path: str) -> None:
        if not self.exists(path):
            self.take("make", path)
        super().make_directory(path)

    def rename(self, source: str, target: str) -> None:
        self.take("rename", target)
        super().rename(source, target)


class Life:
    """Appends, syncs and trims of one log, each tried again later if the disk was full."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.kept: dict[int, bytes] = {}  # acknowledged values, by offset
        self.refused = 0

    def turn(self, number: int) -> None:
        value = f"record {number}".encode().ljust(90, b".")
        try:
            (written,) = append(self.log, batch(value), now_ms=number)
        except OSError:
            self.refused += 1
        else:
            with suppress(OSError):  # the mark on the disk may lag
                self.log.sync()
            assert self.log.flushed == self.log.end
            self.kept[written.base_offset] = value
        if number % 4 == 3:
            with suppress(OSError):
                self.trim()

    def trim(self) -> None:
        job = self.log.trim(self.log.end - 3)
        if job is not None:
            job.publish()
            self.log.trimmed(job)
            job.finish()

    def check(self) -> None:
        found = entries(self.log)
        assert list(found) == [at for at in sorted(self.kept) if at >= self.log.start]
        assert all(self.kept[offset] in entry for offset, entry in found.items())


def live(path: Path, disk: CountingDisk) -> Life:
    """From the making of the log, which may take several attempts, to its end."""
    path.mkdir()
    while True:
        with suppress(OSError):
            life = Life(open_log(path, disk=disk, config=SMALLEST))
            break
    for number in range(TURNS):
        life.turn(number)
    return life


def judge(path: Path, life: Life) -> None:
    """There is room again: what was put off is done, and all is where it was acknowledged."""
    life.log.sync()
    life.trim()
    life.check()
    assert life.log.start > 0, "nothing was trimmed"
    life.log.close(clean=False)
    life.log = open_log(path, config=SMALLEST)
    life.check()
    life.log.close(clean=False)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What may need room in one life, in order."""
    disk = CountingDisk()
    live(tmp_path_factory.mktemp("whole") / "0", disk).log.close(clean=False)
    return disk.calls


def test_every_kind_of_file_is_written_in_one_life(sites: list[str]) -> None:
    kinds = {re.sub(r"\d{20}", "N", site) for site in sites}
    assert kinds >= {
        *("make log", "make N.log", "grow N.log", "write N.log", "write flushed"),
        *("make N.index.tmp", "write N.index.tmp", "rename N.index"),
        *("make producers-N.tmp", "write producers-N.tmp", "rename producers-N"),
        *("make start.tmp", "write start.tmp", "rename start"),
        *("make epochs.tmp", "write epochs.tmp", "rename epochs"),
    }


def test_any_one_call_may_find_no_room(tmp_path: Path, sites: list[str]) -> None:
    for call in range(1, len(sites) + 1):
        path = tmp_path / str(call)
        disk = CountingDisk(range(call, call + 1))
        life = live(path, disk)
        disk.full = range(0)
        assert life.refused <= 1, sites[call - 1]
        judge(path, life)


def test_the_disk_may_stay_full_for_a_while_from_any_call_on(
    tmp_path: Path, sites: list[str]
) -> None:
    for call in range(1, len(sites) * 2 // 3, 5):
        path = tmp_path / str(call)
        disk = CountingDisk(range(call, call + 12))
        life = live(path, disk)
        disk.full = range(0)
        for number in range(TURNS, 2 * TURNS):
            life.turn(number)
        judge(path, life)


def test_a_rewrite_that_finds_no_room_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    disk = CountingDisk()
    log = open_log(tmp_path, disk=disk)
    for _ in range(3):
        put(log, 4)
        settled(log)
    before, gone = files(tmp_path), {1, 6}
    calls = len(disk.calls)
    job = log.swap(make(disk, log, gone))
    needed = len(disk.calls) - calls + 1  # and the rename that publishes it
    job.discard()
    assert files(tmp_path) == before
    for call in range(1, needed + 1):
        calls = len(disk.calls)
        disk.full = range(calls + call, calls + call + 1)
        with pytest.raises(OSError, match="No space"):
            swap(disk, log, gone)
        assert files(tmp_path) == before
    swap(disk, log, gone)
    assert set(records(log)) == set(range(12)) - gone
    log.close(clean=False)


def test_a_start_that_could_not_be_synced_is_not_tried_again(tmp_path: Path) -> None:
    """What is durable by then is unknown (R21); a start that could not be written, is known."""
    disk = FullDisk()
    log = open_log(tmp_path, disk=disk)
    fill(log, 60)
    log.sync()
    job = log.trim(20)
    assert job is not None
    disk.bytes_left = 0
    with pytest.raises(OSError, match="No space"):
        job.publish()
    disk.bytes_left = None
    disk.failing_syncs = 1
    with pytest.raises(BrokerError, match="T093"):
        job.publish()
    with pytest.raises(BrokerError, match="T093"):
        append(log)
    assert log.start == 0
    log.close(clean=False)
