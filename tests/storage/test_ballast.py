"""The room kept back for a full disk."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage.ballast import Ballast
from tailrace.storage.disk import File, OsDisk

MIB = 1 << 20


class SmallDisk(OsDisk):
    """A file system of 100 MiB; syncs fail when told to, for want of room."""

    full = False

    def usage(self, path: str) -> tuple[int, int]:
        return 50 * MIB, 100 * MIB

    def sync(self, files: Sequence[File]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "planted")
        super().sync(files)


def test_room_is_really_taken_and_given_up(tmp_path: Path) -> None:
    ballast = Ballast(SmallDisk(), str(tmp_path), 64 * MIB)
    assert ballast.missing_bytes == ballast.size_bytes == MIB  # 1% of the file system
    ballast.fill()
    stat = (tmp_path / "ballast").stat()
    assert (stat.st_size, stat.st_blocks * 512 >= MIB) == (MIB, True)
    again = Ballast(SmallDisk(), str(tmp_path), 64 * MIB)
    assert (again.held, again.missing_bytes) == (True, 0)
    again.drop()
    assert (again.held, list(tmp_path.iterdir())) == (False, [])


def test_room_that_is_not_there_is_not_taken_in_part(tmp_path: Path) -> None:
    disk = SmallDisk()
    disk.full = True
    ballast = Ballast(disk, str(tmp_path), 64 * MIB)
    with pytest.raises(OSError, match="planted"):
        ballast.fill()
    assert (ballast.held, list(tmp_path.iterdir())) == (False, [])


def test_no_room_at_all_may_be_kept_back(tmp_path: Path) -> None:
    ballast = Ballast(SmallDisk(), str(tmp_path), 0)
    assert (ballast.held, ballast.missing_bytes) == (True, 0)


def test_a_name_that_may_come_back_is_nothing_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: OsDisk, path: str) -> None:
        raise OSError(errno.EIO, "planted", path)

    ballast = Ballast(SmallDisk(), str(tmp_path), 64 * MIB)
    ballast.fill()
    monkeypatch.setattr(OsDisk, "sync_directory", fail)
    with pytest.raises(BrokerError, match="T093"):
        ballast.drop()
