"""The real disk does what the log relies on."""

import errno
import os
from pathlib import Path

import pytest

from tailrace.storage import disk as disks
from tailrace.storage.disk import OsDisk


@pytest.fixture
def disk() -> OsDisk:
    return OsDisk()


def test_gathered_write_goes_on_after_a_short_one(
    tmp_path: Path, disk: OsDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda fd, buffers, at: whole(fd, [bytes(buffers[0])[:3]], at)
    )
    file = disk.open(f"{tmp_path}/file", create=True)
    file.write([b"abcde", b"", memoryview(b"fg"), bytearray(b"h")], 2)
    assert file.read(100, 0) == b"\0\0abcdefgh"


def test_more_buffers_than_one_call_takes(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    parts = [bytes([at % 256]) for at in range(disks.IOV_MAX + 10)]
    file.write(parts, 0)
    assert file.read(1 << 20, 0) == b"".join(parts)


def test_missing_file_and_symbolic_link_are_not_opened(tmp_path: Path, disk: OsDisk) -> None:
    with pytest.raises(FileNotFoundError):
        disk.open(f"{tmp_path}/none")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        disk.open(f"{tmp_path}/link", create=True)


def test_view_sees_later_writes_and_survives_the_close(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    file.resize(100)
    view = file.view(10, 5)
    file.write([b"hello"], 10)
    file.close()
    assert bytes(view) == b"hello"
    with pytest.raises(TypeError):
        view[0] = 1


def test_view_reaches_what_was_grown_later(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    file.resize(10)
    first = file.view(0, 10)
    file.resize(10_000)
    file.write([b"end"], 9_997)
    assert bytes(file.view(9_997, 3)) == b"end"
    assert len(first) == 10


def test_holes_are_skipped_if_the_system_can_tell(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    file.resize(1 << 20)
    assert file.next_data(0) in (0, 1 << 20)
    file.write([b"x"], 700_000)
    assert file.next_data(0) <= 700_000
    assert 700_001 <= file.next_data(700_001) <= 1 << 20
    assert file.next_data(1 << 21) == 1 << 20


def test_what_was_just_written_is_cached(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    file.write([b"x" * 300_000], 0)
    assert file.cached(0, 300_000)


@pytest.mark.parametrize("count", [0, 1, 10])
def test_sync_of_few_and_of_many_files(tmp_path: Path, disk: OsDisk, count: int) -> None:
    files = [disk.open(f"{tmp_path}/{number}", create=True) for number in range(count)]
    for file in files:
        file.write([b"x"], 0)
    disk.sync(files)
    disk.sync_directory(str(tmp_path))


def test_sync_of_many_files_reports_its_error(tmp_path: Path, disk: OsDisk) -> None:
    files = [disk.open(f"{tmp_path}/{number}", create=True) for number in range(10)]
    for file in files:
        file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync(files)


def test_dropped_file_closes_itself(tmp_path: Path, disk: OsDisk) -> None:
    file = disk.open(f"{tmp_path}/file", create=True)
    descriptor = file.fileno()
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_names(tmp_path: Path, disk: OsDisk) -> None:
    inner = f"{tmp_path}/inner"
    assert disk.list(inner) == []
    disk.make_directory(inner)
    disk.make_directory(inner)
    disk.open(f"{inner}/b", create=True)
    disk.open(f"{inner}/a", create=True)
    assert disk.list(inner) == ["a", "b"]
    disk.rename(f"{inner}/a", f"{inner}/b")
    disk.remove(f"{inner}/a")
    assert disk.list(inner) == ["b"]
    disk.remove_directory(inner)
    disk.remove_directory(inner)
    assert not disk.exists(inner)


def test_lock_is_held_until_released(tmp_path: Path, disk: OsDisk) -> None:
    lock = disk.lock(f"{tmp_path}/LOCK", "first\n")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{tmp_path}/LOCK", "second\n")
    assert (tmp_path / "LOCK").read_text() == "first\n"
    lock.release()
    disk.lock(f"{tmp_path}/LOCK", "third\n").release()


def test_usage_is_plausible(tmp_path: Path, disk: OsDisk) -> None:
    free, total = disk.usage(str(tmp_path))
    assert 0 < free <= total


def test_a_lock_is_taken_on_a_full_disk(
    tmp_path: Path, disk: OsDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "LOCK"
    path.write_text("812 broker a-longer-name\n")
    write = os.pwrite

    def overwrite(descriptor: int, data: bytes, position: int) -> int:
        if position + len(data) > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", overwrite)
    disk.lock(str(path), "7 broker n1\n").release()
    assert path.read_text() == "7 broker n1\n"
