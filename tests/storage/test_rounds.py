"""What waits for a sync round, and what is done about it when none comes."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import File, OsDisk, OsFile
from tailrace.storage.marks import Mark
from tailrace.storage.rounds import SIDECARS_MAX, Sidecar, Unsynced


class BadDisk(OsDisk):
    """Files and directories fail when told to, in one step of their writing."""

    bad = ""

    def open(self, path: str, *, create: bool = False) -> OsFile:
        self._fail("open", errno.ENOSPC)
        return super().open(path, create=create)

    def sync(self, files: Sequence[File]) -> None:
        self._fail("sync", errno.EIO)

    def sync_directory(self, path: str) -> None:
        self._fail("names", errno.EIO)

    def _fail(self, step: str, number: int) -> None:
        if step == self.bad:
            raise OSError(number, "planted")


def fill(path: Path, bad: str) -> tuple[list[str], list[str]]:
    """One more than may wait; the files there are, and those that count."""
    disk, done = BadDisk(), list[str]()
    unsynced = Unsynced(disk, str(path), Mark(0, 0, 0))
    for number in range(SIDECARS_MAX + 1):
        name = f"{number:02}"
        disk.bad = bad if number == SIDECARS_MAX else ""

        def mark(name: str = name) -> None:
            done.append(name)

        unsynced.add(Sidecar(f"{path}/{name}", lambda: b"content", mark))
    return [one.name for one in path.iterdir()], done


def test_the_oldest_of_too_many_is_written_at_once(tmp_path: Path) -> None:
    assert fill(tmp_path, "") == (["00"], ["00"])


def test_one_that_finds_no_room_goes_on_waiting(tmp_path: Path) -> None:
    assert fill(tmp_path, "open") == ([], [])


@pytest.mark.parametrize("bad", ["sync", "names"])
def test_one_whose_sync_fails_ends_the_broker(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BrokerError, match="T093"):
        fill(tmp_path, bad)
