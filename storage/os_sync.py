"""How the real disk makes things durable (R21, R22, R27).

``fdatasync`` for a few files, ``syncfs`` for many; names by ``fsync`` of their directory. Linux
keeps, for each opened file, how much it was told of the errors of its file system: ``syncfs``
reports every error since that file was opened, once; or, of the errors before, only those that
nobody was told of yet. So ``syncfs`` is asked through a descriptor that is kept from before
anything is written: through a file that is opened later, what went wrong meanwhile would be news
to nobody if another program's ``syncfs`` had it first.

As each error is told once, one thread asks at a time, and after an error none asks that way again:
those who waited, and whoever comes later, ask file by file, which tells of each file's own.

A directory must be opened to be synced, so a descriptor is kept for a full table.
"""

import ctypes
import errno
import fcntl
import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

MOUNTS = "/proc/self/mountinfo"
# File systems whose ``syncfs`` does not pass on what the one below could not write.
SILENT = re.compile(r"overlay|fuse(\..*)?|fuseblk")
SYNCFS_FROM_FILES = 4  # 100 dirty files: 18 ms one by one, 2.1 ms by syncfs (performance.md)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class NotBegun(OSError):
    """A directory could not even be opened for its sync: nothing was synced, and nothing failed to
    be. The same sync may be tried again."""


class Syncer:
    """One disk's. Its methods may be called by several threads at a time."""

    def __init__(self) -> None:
        self._kept: dict[int, list[Kept]] = {}  # by device
        self._asking = threading.Lock()
        self._spare = _Spare()

    def keep(self, directory: str, descriptor: int) -> "Kept":
        """Until ``forget``, syncs of the file system that holds the directory, and the file of the
        descriptor in it, may go through a descriptor of their own. Raises ``OSError``."""
        kept = Kept(_open(directory))
        kept.devices = {os.fstat(one).st_dev for one in (kept.descriptor, descriptor)}
        kept.tells_all = not any(map(is_silent, kept.devices))
        for device in kept.devices:
            self._kept.setdefault(device, []).append(kept)
        return kept

    def forget(self, kept: "Kept") -> None:
        """Nothing in that directory will be synced any more."""
        for device in kept.devices:
            self._kept[device].remove(kept)
        kept.devices = set()

    def files(self, descriptors: Sequence[int]) -> None:
        """The contents and lengths of these files."""
        self.together(descriptors, [])

    def together(self, descriptors: Sequence[int], directories: Sequence[str]) -> None:
        """Contents of files and names in directories."""
        if len(descriptors) + len(directories) >= SYNCFS_FROM_FILES:
            devices = {os.fstat(one).st_dev for one in descriptors}
            devices |= {os.stat(path).st_dev for path in directories}
            if self._whole(devices):
                return
        for descriptor in descriptors:
            fdatasync(descriptor)
        for path in directories:
            self.directory(path)

    def directory(self, path: str) -> None:
        """The names in a directory. ``NotBegun`` if it could not be opened for want of something;
        other ``OSError``s."""
        try:
            descriptor = _open(path)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            if self._spare.sync(path) or self._whole({os.stat(path).st_dev}):
                return
            raise NotBegun(error.errno, error.strerror, path) from error
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _whole(self, devices: Iterable[int]) -> bool:
        """Sync the file system, if it is one, and there is a way to; whether that was done."""
        kept = self._kept_for(devices)
        syncfs = find_syncfs()
        if syncfs is None or kept is None:
            return False
        # Not two at a time: the other would not be told of the error that one was told of. The
        # kernel would let them wait for each other, too.
        with self._asking:
            if not kept.tells_all:
                return False
            try:
                syncfs(kept.descriptor)
            except OSError:
                kept.tells_all = False
                raise
        return True

    def _kept_for(self, devices: Iterable[int]) -> "Kept | None":
        """The oldest there is for all of them."""
        found = {next(iter(self._kept.get(device, ())), None) for device in devices}
        return found.pop() if len(found) == 1 else None


class Kept:
    """A descriptor of a file system, open as long as anybody uses it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.devices: set[int] = set()
        self.tells_all = True  # errors there are: none is kept back, or told to another

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Spare:
    """A descriptor that can be given up to open a directory; both are of the null device."""

    _null = _spare = -1

    def __init__(self) -> None:
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._take()

    def sync(self, path: str) -> bool:
        """Sync a directory by means of it; False: it could not be opened even so."""
        with self._lock:
            self._give_up()
            try:
                descriptor = _open(path)
            except OSError as error:  # another thread, or program, was quicker
                self._take()
                if error.errno in _PASSING:
                    return False
                raise
            try:
                os.fsync(descriptor)
            finally:
                # In one step: nobody else can get hold of it.
                self._spare = os.dup2(self._null, descriptor, inheritable=False)
        return True

    def _take(self) -> None:
        try:
            self._spare = os.dup(self._null)
        except OSError:
            self._spare = -1  # the next sync of a directory tries again

    def _give_up(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def __del__(self) -> None:
        self._give_up()
        if self._null >= 0:
            os.close(self._null)


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fdatasync(descriptor: int) -> None:
    """Data and the length of one file on the medium; releases the GIL meanwhile."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone stops at the drive's cache there
    else:
        os.fdatasync(descriptor)


def is_silent(device: int) -> bool:
    """Whether ``syncfs`` on the file system of a device may say nothing of what was lost."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(MOUNTS, encoding="utf-8", errors="replace") as mounts:
            lines = [line.split() for line in mounts]
    except OSError:
        return True  # not known: files one by one are right everywhere
    kinds = {fields[fields.index("-") + 1] for fields in lines if fields[2] == number}
    return any(map(SILENT.fullmatch, kinds))


@functools.cache
def find_syncfs() -> Callable[[int], None] | None:
    """Linux's ``syncfs``, called with the GIL released; None where there is none, or where it says
    nothing of what could not be written (before Linux 5.8, syncfs(2))."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if found is None or (int(found[1]), int(found[2])) < (5, 8):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return None

    def syncfs(descriptor: int) -> None:
        while function(descriptor) != 0:
            code = ctypes.get_errno()
            if code != errno.EINTR:  # a signal is no failed sync; ``os.fsync`` goes on by itself
                raise OSError(code, os.strerror(code))

    return syncfs
