"""Syncs of the real disk: through which descriptor, and when there is none to be had."""

import ctypes
import errno
import functools
import gc
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage import checkpoint, os_sync
from tailrace.storage.disk import File, OsDisk
from tailrace.storage.os_sync import NotBegun, find_syncfs

P = ParamSpec("P")
ALONE = "TAILRACE_TEST_ALONE"


@contextmanager
def full_table(free: int = 0) -> Iterator[None]:
    """Not one descriptor more can be had by this process, or so many.

    What an earlier test left to the collector is let go of before: it would free one meanwhile.
    """
    gc.collect()
    gc.disable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = os.dup(2)
    os.close(highest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, hard))
    taken: list[int] = []
    try:
        while True:
            try:
                taken.append(os.dup(2))
            except OSError:
                break
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
        gc.enable()


def alone(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a process of its own: threads of others here take what becomes free."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if ALONE in os.environ:
            test(*args, **kwargs)
            return
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"{__file__}::{test.__name__}"],
            env={**os.environ, ALONE: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    return run


class Asked:
    """A ``syncfs`` that notes what it is asked, and fails with the errors that are left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: list[str] = []
        self.errors: list[int] = []
        self.during: Callable[[], None] = lambda: None
        monkeypatch.setattr(os_sync, "find_syncfs", lambda: self._ask)

    def _ask(self, descriptor: int) -> None:
        self.of.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        self.during()
        if self.errors:
            code = self.errors.pop()
            raise OSError(code, os.strerror(code))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Files that were synced one by one."""
    found: list[int] = []
    monkeypatch.setattr(os_sync, "fdatasync", found.append)
    return found


def files_in(disk: OsDisk, path: Path) -> list[File]:
    return [disk.open(f"{path}/{number}", create=True) for number in range(4)]


# ── no descriptors ───────────────────────────────────────────────────────────────────────────


@alone
def test_names_are_synced_though_no_descriptor_can_be_had(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, paths = OsDisk(), list[str]()
    monkeypatch.setattr(os, "fsync", lambda fd: paths.append(os.readlink(f"/proc/self/fd/{fd}")))
    with full_table():
        for _ in range(3):
            disk.sync_directory(str(tmp_path))
        disk.sync_together([], [str(tmp_path)])
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(2)  # the spare one was taken again
    assert paths == [str(tmp_path)] * 4
    assert asked.of == []


@alone
def test_where_another_thread_takes_the_spare_descriptor_the_kept_one_serves(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    _robbed(disk, monkeypatch)
    with full_table():
        disk.sync_directory(str(tmp_path))
    assert asked.of == [str(tmp_path)]
    lock.release()


def _robbed(disk: OsDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = disk._syncer._spare
    monkeypatch.setattr(spare, "_give_up", lambda: None)
    monkeypatch.setattr(spare, "_take", lambda: None)


@alone
def test_what_could_not_be_begun_is_no_failed_sync(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = OsDisk()  # nothing is locked, so nothing is kept
    with monkeypatch.context() as robbing:
        _robbed(disk, robbing)
        with full_table():
            with pytest.raises(NotBegun, match="Too many open files"):
                disk.sync_directory(str(tmp_path))
            with pytest.raises(NotBegun), checkpoint.syncing(str(tmp_path)):
                disk.sync_together([], [str(tmp_path)])
            with pytest.raises(NotBegun):
                checkpoint.sync_names(disk, str(tmp_path))
        with full_table(free=1):
            checkpoint.sync_names(disk, str(tmp_path))
    checkpoint.sync_names(disk, str(tmp_path))


@alone
def test_a_failed_sync_by_the_spare_descriptor_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = OsDisk()

    def fail(descriptor: int) -> None:
        raise OSError(errno.EMFILE, "planted")  # whatever it says

    with full_table():
        with monkeypatch.context() as failing:
            failing.setattr(os, "fsync", fail)
            with pytest.raises(BrokerError, match="T093"):
                checkpoint.sync_names(disk, str(tmp_path))
        disk.sync_directory(str(tmp_path))  # the descriptor is there again


def test_a_missing_directory_is_named_also_without_descriptors(tmp_path: Path) -> None:
    disk = OsDisk()
    with pytest.raises(FileNotFoundError):
        disk.sync_directory(f"{tmp_path}/none")
    disk.sync_directory(str(tmp_path))


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    disk.sync_directory(str(tmp_path))
    lock.release()
    del disk, lock
    assert len(os.listdir("/proc/self/fd")) == before


# ── syncfs ───────────────────────────────────────────────────────────────────────────────────


def test_many_files_are_synced_by_a_descriptor_from_before_they_were_opened(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    files = files_in(disk, tmp_path)
    disk.sync(files)
    disk.sync_together([], [str(tmp_path)] * 4)
    assert asked.of == [str(tmp_path)] * 2
    disk.sync(files[:3])
    assert len(synced) == 3
    lock.release()
    disk.sync(files)
    assert (len(asked.of), len(synced)) == (2, 7)


def test_where_no_directory_is_locked_files_are_synced_one_by_one(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    disk = OsDisk()
    disk.sync(files_in(disk, tmp_path))
    assert (asked.of, len(synced)) == ([], 4)


def test_another_file_system_is_not_taken_for_that_of_the_lock(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    [kept] = disk._syncer._kept.pop(os.stat(tmp_path).st_dev)
    disk._syncer._kept[0] = [kept]
    kept.devices = {0}
    disk.sync(files_in(disk, tmp_path))
    assert (asked.of, len(synced)) == ([], 4)
    lock.release()


def test_data_directories_of_one_process_have_each_their_own(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    disks = [OsDisk(), OsDisk()]
    for path in paths:
        path.mkdir()
    locks = [disk.lock(f"{path}/LOCK", "") for disk, path in zip(disks, paths, strict=True)]
    asked.errors = [errno.EIO]
    with pytest.raises(OSError, match="Input/output"):
        disks[0].sync(files_in(disks[0], paths[0]))
    disks[1].sync(files_in(disks[1], paths[1]))
    assert asked.of == [str(path) for path in paths]
    assert synced == []
    for lock in locks:
        lock.release()


def test_after_an_error_each_file_is_asked_for_its_own(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    """The error is told once through the descriptor; what it befell may be another's files."""
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    files = files_in(disk, tmp_path)
    asked.errors = [errno.ENOSPC]
    with pytest.raises(OSError, match="No space left"):
        disk.sync(files)
    disk.sync(files)
    assert (len(asked.of), len(synced)) == (1, 4)
    lock.release()


def test_who_waits_while_another_is_told_of_an_error_is_not_told_that_all_is_well(
    tmp_path: Path, asked: Asked, synced: list[int]
) -> None:
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    files = files_in(disk, tmp_path)
    waiting = threading.Thread(target=disk.sync, args=(files,))
    asked.errors = [errno.EIO]
    asked.during = waiting.start
    with pytest.raises(OSError, match="Input/output"):
        disk.sync(files)
    waiting.join()
    assert (len(asked.of), len(synced)) == (1, 4)
    lock.release()


@pytest.mark.parametrize(
    ("release", "reports"),
    [
        ("4.18.0-553.el8.x86_64", False),
        ("5.4.0-200-generic", False),
        ("5.7", False),
        ("5.8.0", True),
        ("6.1.0-18-amd64", True),
        ("10.0-rc1", True),
        ("unknown", False),
    ],
)
def test_syncfs_is_called_only_where_it_reports_what_could_not_be_written(
    monkeypatch: pytest.MonkeyPatch, release: str, reports: bool
) -> None:
    found = os.uname()
    monkeypatch.setattr(
        os, "uname", lambda: os.uname_result((found[0], found[1], release, *found[3:]))
    )
    find_syncfs.cache_clear()
    try:
        assert (find_syncfs() is not None) == reports
    finally:
        find_syncfs.cache_clear()


def test_a_signal_is_no_failed_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EINTR, errno.EINTR, 0, errno.EIO]

    class Library:
        @staticmethod
        def syncfs(descriptor: int) -> int:
            ctypes.set_errno(answers.pop(0))
            return -1 if ctypes.get_errno() else 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Library)
    find_syncfs.cache_clear()
    try:
        syncfs = find_syncfs()
        assert syncfs is not None
        syncfs(0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            syncfs(0)
    finally:
        find_syncfs.cache_clear()


@pytest.mark.parametrize(
    ("kind", "silent"),
    [("ext4", False), ("overlay", True), ("fuse.sshfs", True), ("fuseblk", True), ("xfs", False)],
)
def test_a_file_system_that_passes_no_errors_on_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, silent: bool
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - btrfs /dev/sda1 rw\n"
        f"36 22 0:51 / /data rw master:1 - {kind} none rw\n"
    )
    monkeypatch.setattr(os_sync, "MOUNTS", str(mounts))
    assert os_sync.is_silent(os.makedev(0, 51)) is silent
    assert os_sync.is_silent(os.makedev(8, 1)) is False


def test_on_a_file_system_that_passes_no_errors_on_files_are_synced_one_by_one(
    tmp_path: Path, asked: Asked, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os_sync, "is_silent", lambda device: True)
    disk = OsDisk()
    lock = disk.lock(f"{tmp_path}/LOCK", "")
    disk.sync(files_in(disk, tmp_path))
    assert (asked.of, len(synced)) == ([], 4)
    lock.release()
