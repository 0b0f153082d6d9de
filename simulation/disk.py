"""A disk that forgets what was not synced, in memory.

``Platter`` is the disk itself: it outlives processes and power cuts. ``SimDisk`` is the view that
one process has of it (``storage.disk.Disk``). Names have their own durability: a created, renamed
or removed name is on the disk after ``sync_directory`` of its folder, whatever was synced of the
file (R22).

What a power cut leaves is asked of a ``Pick``: each write not yet synced is dropped, kept, kept
in some pages only, up to some sector, or as zeros; each change of a name is kept or not,
independent of the data. Live faults: a sync that fails once, a full disk, a flipped bit.

Not modelled: a slow disk (time belongs to the offload), errors on reading.
"""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tailrace.simulation.chance import Pick
from tailrace.simulation.content import PAGE, Content
from tailrace.simulation.life import Life
from tailrace.storage.disk import File

TOTAL_BYTES = 1 << 40


@dataclass(eq=False)
class Inode:
    """A file's content, which lives on while a name or an open file refers to it."""

    content: Content


Change = dict[str, "Inode | Folder | None"]  # names and what they stand for now; None: gone


@dataclass(eq=False)
class Folder:
    """A directory: the names now, those on the disk, and the changes between, in order."""

    entries: dict[str, "Inode | Folder"] = field(default_factory=dict[str, "Inode | Folder"])
    durable: dict[str, "Inode | Folder"] = field(default_factory=dict[str, "Inode | Folder"])
    pending: list[Change] = field(default_factory=list[Change])
    stuck: bool = False  # a sync failed: taken for clean until the next change

    def change(self, change: Change) -> None:
        _apply(self.entries, change)
        self.pending.append(change)

    def pending_count(self) -> int:
        """Changes of names and of contents, here and below, whose fate a power cut decides."""
        below = 0
        for node in self.entries.values():
            if isinstance(node, Folder):
                below += node.pending_count()
            else:
                below += len(node.content.pending)
        return len(self.pending) + below

    def sync(self) -> None:
        if self.pending or not self.stuck:
            self.durable = dict(self.entries)
            self.pending.clear()
            self.stuck = False

    def sync_failed(self) -> None:
        """As for the pages of a file: called clean, yet not on the disk."""
        self.pending.clear()
        self.stuck = True

    def after_crash(self, pick: Pick) -> "Folder":
        names = dict(self.durable)
        for change in self.pending:
            if pick(2):
                _apply(names, change)
        left = Folder()
        for name, node in sorted(names.items()):
            if isinstance(node, Folder):
                left.entries[name] = node.after_crash(pick)
            else:
                left.entries[name] = Inode(node.content.after_crash(pick))
        left.durable = dict(left.entries)
        return left


class Witness:
    """Is told what becomes of files that have a name, after it was done. Here it takes no note."""

    def written(self, path: str, content: Content, position: int, end: int) -> None:
        """Bytes of a file were written; where they end, after an error perhaps too early."""

    def resized(self, path: str, content: Content, size: int) -> None:
        """A file has another size, or the same again."""

    def removed(self, path: str, content: Content) -> None:
        """A file lost its name."""

    def renamed(self, source: str, target: str) -> None:
        """A file or folder has another name."""

    def other_disk(self) -> None:
        """Power failed, or the disk was exchanged: anything may have changed."""


class Platter:
    """The disk itself. ``ordered=False``: a power cut drops all that is not synced, nothing else.

    That plain form keeps no list of writes and is the memory disk of the testing broker. Methods
    are safe to call from several threads.
    """

    def __init__(self, *, ordered: bool = True, total_bytes: int = TOTAL_BYTES) -> None:
        self.root = Folder()
        self.size_bytes = total_bytes
        self.full = False  # as if others had taken all that is free
        self.used_bytes = 0
        self.failing_syncs = 0  # so many of the next syncs fail with EIO
        self.syncs = 0
        self.lock = threading.Lock()
        self.owners: dict[str, Life] = {}  # lock files
        # Told of every file that is about to lose its name, whoever still has it open.
        self.on_removed: Callable[[str, Content], None] = lambda path, content: None
        self.witness: Witness = Witness()
        self._ordered = ordered

    @property
    def free_bytes(self) -> int:
        return 0 if self.full else max(0, self.size_bytes - self.used_bytes)

    def new_inode(self) -> Inode:
        return Inode(Content(ordered=self._ordered))

    def power_cut(self, pick: Pick) -> None:
        """The machine lost power: what was not synced is subject to ``pick``."""
        with self.lock:
            self.root = self.root.after_crash(pick)
            self.used_bytes = sum(_stored(inode) for inode in _files(self.root))
            self.owners.clear()
            self.failing_syncs = 0
        self.witness.other_disk()

    def wipe(self) -> None:
        """Another disk, an empty one, takes its place; whoever used the old one must be dead."""
        with self.lock:
            self.root = Folder()
            self.used_bytes = 0
            self.owners.clear()
            self.failing_syncs = 0
        self.witness.other_disk()

    def crashed(self, pick: Pick) -> "Platter":
        """A copy as a power cut now would leave it; this platter stays as it is."""
        copy = Platter(ordered=self._ordered, total_bytes=self.size_bytes)
        copy.root = self.root
        copy.power_cut(pick)
        return copy

    def digest(self) -> bytes:
        """Equal for disks that hold the same bytes under the same names now."""
        digest = hashlib.blake2b(digest_size=16)
        for path, content in _named(self.root, ""):
            size = -1 if content is None else content.size
            digest.update(f"{path}\0{size}\0".encode())
            if content is not None:
                digest.update(content.read(content.high, 0).rstrip(b"\0"))
        return digest.digest()

    def durable_folder(self, path: str) -> Folder | None:
        """The folder a reader would find after a power cut that keeps nothing unsynced."""
        node: Inode | Folder | None = self.root
        for name in _parts(path):
            node = node.durable.get(name) if isinstance(node, Folder) else None
        return node if isinstance(node, Folder) else None

    def durable_content(self, path: str) -> Content | None:
        """The file such a reader would find: ask it for its ``durable`` bytes."""
        parent, _, name = path.rpartition("/")
        folder = self.durable_folder(parent)
        node = folder.durable.get(name) if folder is not None else None
        return node.content if isinstance(node, Inode) else None

    def content(self, path: str) -> Content:
        """The file as it is now; ``FileNotFoundError`` if there is none."""
        node = self.find(path)
        if not isinstance(node, Inode):
            raise _missing(path)
        return node.content

    def find(self, path: str) -> "Inode | Folder | None":
        node: Inode | Folder | None = self.root
        for name in _parts(path):
            node = node.entries.get(name) if isinstance(node, Folder) else None
        return node

    def parent(self, path: str) -> tuple[Folder, str]:
        """The folder that holds, or would hold, the last name of a path, and that name."""
        parent, _, name = path.rstrip("/").rpartition("/")
        folder = self.find(parent)
        if not isinstance(folder, Folder):
            raise _missing(path)
        return folder, name

    def take_space(self, content: Content, end: int) -> int:
        """Room for writing up to ``end``; returns where the disk is full, ``end`` if it is not.

        A file takes what lies below its highest written byte: the log writes front to back.
        """
        wanted = -(-max(end, content.high) // PAGE) * PAGE
        has = -(-content.high // PAGE) * PAGE
        granted = min(wanted - has, self.free_bytes // PAGE * PAGE)
        self.used_bytes += granted
        return min(end, has + granted)


class SimFile:
    """One open file of one process."""

    def __init__(self, path: str, inode: Inode, platter: Platter, life: Life) -> None:
        self._path = path
        self.inode = inode
        self._platter = platter
        self._life = life

    @property
    def path(self) -> str:
        return self._path

    def fileno(self) -> int:
        return -1

    def size(self) -> int:
        self._life.check()
        return self.inode.content.size

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        self._life.step()
        content = self.inode.content
        end = position + sum(len(buffer) for buffer in buffers)
        with self._platter.lock:
            until = self._platter.take_space(content, end)
            if until < end:
                content.write([b"".join(buffers)[: max(0, until - position)]], position)
                self._platter.witness.written(self._path, content, position, until)
                raise OSError(errno.ENOSPC, "No space left on device", self._path)
            content.write(buffers, position)
        self._platter.witness.written(self._path, content, position, end)

    def read(self, length: int, position: int) -> bytes:
        self._life.check()
        return self.inode.content.read(length, position)

    def view(self, position: int, length: int) -> memoryview:
        self._life.check()
        return self.inode.content.view(position, length)

    def cached(self, position: int, length: int) -> bool:
        return True

    def next_data(self, position: int) -> int:
        content = self.inode.content
        return position if position < content.high else content.size

    def next_hole(self, position: int) -> int:
        content = self.inode.content
        return content.high if position < content.high else content.size

    def resize(self, length: int) -> None:
        self._life.step()
        with self._platter.lock:
            before = _stored(self.inode)
            self.inode.content.resize(length)
            self._platter.used_bytes += _stored(self.inode) - before
        self._platter.witness.resized(self._path, self.inode.content, length)

    def close(self) -> None:
        pass


class SimLock:
    """Who holds a lock file. A dead process holds nothing."""

    def __init__(self, path: str, platter: Platter, life: Life) -> None:
        self._path = path
        self._platter = platter
        self._life = life

    def release(self) -> None:
        if self._platter.owners.get(self._path) is self._life:
            del self._platter.owners[self._path]


class SimDisk:
    """``storage.disk.Disk`` on a platter, for one process."""

    def __init__(self, platter: Platter, life: Life) -> None:
        self.platter = platter
        self._life = life

    def open(self, path: str, *, create: bool = False) -> SimFile:
        self._life.check()
        folder, name = self.platter.parent(path)
        node = folder.entries.get(name)
        if node is None:
            if not create:
                raise _missing(path)
            self._life.step()
            node = self.platter.new_inode()
            folder.change({name: node})
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        return SimFile(path, node, self.platter, self._life)

    def sync(self, files: Sequence[File]) -> None:
        self._life.step()
        platter = self.platter
        with platter.lock:
            platter.syncs += 1
            failing = platter.failing_syncs > 0
            platter.failing_syncs -= failing
            for file in files:
                assert isinstance(file, SimFile)
                content = file.inode.content
                content.sync_failed() if failing else content.sync()
        if failing:
            raise OSError(errno.EIO, "Input/output error", files[0].path if files else None)

    def sync_directory(self, path: str) -> None:
        self._life.step()
        folder = self._folder(path)
        if self.platter.failing_syncs > 0:
            self.platter.failing_syncs -= 1
            folder.sync_failed()
            raise OSError(errno.EIO, "Input/output error", path)
        folder.sync()

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        try:
            self.sync(files)
        except OSError:
            for path in directories:
                self._folder(path).sync_failed()
            raise
        for path in directories:
            self.sync_directory(path)

    def _folder(self, path: str) -> Folder:
        folder = self.platter.find(path)
        if not isinstance(folder, Folder):
            raise _missing(path)
        return folder

    def make_directory(self, path: str) -> None:
        self._life.check()
        folder, name = self.platter.parent(path)
        node = folder.entries.get(name)
        if isinstance(node, Inode):
            raise FileExistsError(errno.EEXIST, "File exists", path)
        if node is None:
            self._life.step()
            folder.change({name: Folder()})

    def rename(self, source: str, target: str) -> None:
        self._life.step()
        old, old_name = self.platter.parent(source)
        new, new_name = self.platter.parent(target)
        node = old.entries.get(old_name)
        if node is None:
            raise _missing(source)
        self._forget(target, new.entries.get(new_name))
        if old is new:
            old.change({old_name: None, new_name: node})
        else:
            new.change({new_name: node})
            old.change({old_name: None})
        self.platter.witness.renamed(source, target)

    def remove(self, path: str) -> None:
        self._life.check()
        parent, _, name = path.rpartition("/")
        folder = self.platter.find(parent)
        if isinstance(folder, Folder) and name in folder.entries:
            self._life.step()
            node = folder.entries[name]
            self._forget(path, node)
            folder.change({name: None})
            if isinstance(node, Inode):
                self.platter.witness.removed(path, node.content)

    def remove_directory(self, path: str) -> None:
        self._life.check()
        folder = self.platter.find(path)
        if not isinstance(folder, Folder):
            return
        for name, node in sorted(folder.entries.items()):
            if isinstance(node, Folder):
                self.remove_directory(f"{path}/{name}")
            else:
                self.remove(f"{path}/{name}")
        self.remove(path)

    def list(self, path: str) -> list[str]:
        self._life.check()
        folder = self.platter.find(path)
        return sorted(folder.entries) if isinstance(folder, Folder) else []

    def exists(self, path: str) -> bool:
        self._life.check()
        return self.platter.find(path) is not None

    def usage(self, path: str) -> tuple[int, int]:
        self._life.check()
        platter = self.platter
        return platter.free_bytes, platter.size_bytes

    def lock(self, path: str, content: str) -> SimLock:
        self._life.check()
        owner = self.platter.owners.get(path)
        if owner is not None and not owner.dead:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", path)
        file = self.open(path, create=True)
        file.resize(0)
        file.write([content.encode()], 0)
        self.platter.owners[path] = self._life
        return SimLock(path, self.platter, self._life)

    def _forget(self, path: str, node: "Inode | Folder | None") -> None:
        """A name goes: its file's space is free again (files still open are not counted)."""
        if isinstance(node, Inode):
            self.platter.on_removed(path, node.content)
            self.platter.used_bytes -= _stored(node)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "No such file or directory", path)


def _apply(names: dict[str, "Inode | Folder"], change: Change) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _stored(inode: Inode) -> int:
    return -(-inode.content.high // PAGE) * PAGE


def _files(folder: Folder) -> Iterator[Inode]:
    for node in folder.entries.values():
        if isinstance(node, Folder):
            yield from _files(node)
        else:
            yield node


def _named(folder: Folder, path: str) -> Iterator[tuple[str, Content | None]]:
    """Everything with a name, a folder with None."""
    for name, node in sorted(folder.entries.items()):
        below = f"{path}/{name}"
        if isinstance(node, Folder):
            yield below, None
            yield from _named(node, below)
        else:
            yield below, node.content
