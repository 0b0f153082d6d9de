"""Logs that are opened: which syncs that takes, and what follows from one that fails (R21)."""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import File
from tailrace.storage.opening import begin_epochs
from tailrace.storage.os_sync import NotBegun
from tailrace.storage.swap import complete
from tests.storage.logs import QuickDisk, fill, open_log

SYNCS_MAX = 20


class FailingDisk(QuickDisk):
    """The sync with number ``fails_at`` fails, counted from 1: of files or of a directory."""

    def __init__(self, fails_at: int = 0, error: OSError | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.error = error or OSError(errno.EIO, "planted")

    def sync(self, files: Sequence[File]) -> None:
        self._count()

    def sync_directory(self, path: str) -> None:
        self._count()

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        self._count()

    def _count(self) -> None:
        self.syncs += 1
        if self.syncs == self.fails_at:
            raise self.error


def nothing(path: Path) -> None:
    """A log that is new."""
    path.mkdir()


def some_records(path: Path) -> None:
    """Records behind the mark."""
    path.mkdir()
    log = open_log(path)
    log.begin_epoch(1)
    fill(log, 10)
    log.close(clean=False)


def torn_segments(path: Path) -> None:
    """A cut with segments behind it, which are removed."""
    path.mkdir()
    log = open_log(path)
    fill(log, 60)
    assert log.segment_count > 1
    log.close(clean=False)
    with (path / "log" / f"{0:020}.log").open("r+b") as file:
        file.seek(400)
        file.write(b"\x55")


def half_a_swap(path: Path) -> None:
    """A rewritten segment that has not got its name yet."""
    path.mkdir()
    log = open_log(path)
    fill(log, 10)
    log.sync()
    log.close(clean=False)
    segment = path / "log" / f"{0:020}.log"
    segment.with_name(f"{0:020}-{10:020}.swap").write_bytes(segment.read_bytes())


KINDS = (nothing, some_records, torn_segments, half_a_swap)


@pytest.mark.parametrize("prepare", KINDS, ids=lambda prepare: prepare.__name__)
def test_whichever_sync_of_an_opening_fails_it_is_final(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    prepare(tmp_path / "sound")
    disk = FailingDisk()
    open_log(tmp_path / "sound", disk=disk, suspect=True).close(clean=False)
    assert 2 <= disk.syncs < SYNCS_MAX
    for number in range(1, disk.syncs + 1):
        path = tmp_path / str(number)
        prepare(path)
        failing = FailingDisk(number)
        with pytest.raises(BrokerError, match="T093"):
            open_log(path, disk=failing, suspect=True)
        assert failing.syncs == number  # nothing is synced behind it
        open_log(path, suspect=True).close(clean=False)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "planted"),
        OSError(errno.EDQUOT, "planted"),
        NotBegun(errno.EMFILE, "planted"),
    ],
)
def test_want_of_room_or_of_descriptors_may_pass(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(OSError, match="planted"):
        open_log(tmp_path, disk=FailingDisk(1, error))
    open_log(tmp_path, suspect=True).close(clean=False)


def test_an_epoch_whose_sync_fails_has_not_begun(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = open_log(tmp_path, disk=disk)
    for later in (1, 2):
        disk.fails_at = disk.syncs + later
        with pytest.raises(BrokerError, match="T093"):
            begin_epochs(disk, {log: 1})
        assert log.epochs == []
    log.close(clean=False)


def test_a_swap_is_not_completed_over_a_failed_sync(tmp_path: Path) -> None:
    half_a_swap(tmp_path / "t")
    directory = tmp_path / "t" / "log"
    with pytest.raises(BrokerError, match="T093"):
        complete(FailingDisk(1), f"{directory}")
    assert (directory / f"{0:020}-{10:020}.swap").exists()
