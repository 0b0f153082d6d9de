"""The logs on one broker's disk, followed write by write: nothing is asked of the broker.

A ``LogWitness`` hangs on a platter and knows every whole batch of every partition, with its place
in the files. It tells a ``LogListener`` of what is appended, of what is cut off at the end, and of
whatever goes otherwise: at the front (retention), by rewriting (compaction), with the disk.

A batch is known by the checksum of the bytes that are there, whatever its header says. After a
power cut, and where a rewritten file took the place of others, bytes that recovery would not take
are left out.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xxhash import xxh3_64_intdigest

from tailrace.protocol.batch import BatchHeader, header_seed
from tailrace.protocol.batch_header import (
    HEADER_BYTES,
    PAYLOAD_FROM,
    foreign,
    malformed,
    read_header,
)
from tailrace.simulation.content import Content
from tailrace.simulation.disk import Folder, Inode, Platter, Witness
from tailrace.simulation.log_files import PartitionKey, batches
from tailrace.storage.directory import parse_partition_name

Identity = tuple[int, int, int]  # leader epoch, next offset, checksum of the payload


@dataclass(slots=True, eq=False)
class Entry:
    """One batch of one log."""

    base: int
    next: int
    epoch: int
    check: int  # of its payload as it is
    path: str
    content: Content
    position: int
    size: int
    durable: bool = False  # it was seen to be: then it stays so, while it is there

    @property
    def identity(self) -> Identity:
        """Equal for equal batches of one partition, wherever they are."""
        return self.epoch, self.next, self.check


@dataclass
class ReplicaLog:
    """The batches of one partition on one disk, by offset."""

    entries: list[Entry] = field(default_factory=list[Entry])
    bases: list[int] = field(default_factory=list[int])

    @property
    def start(self) -> int:
        return self.bases[0] if self.bases else 0

    @property
    def end(self) -> int:
        return self.entries[-1].next if self.entries else 0

    def find(self, offset: int) -> Entry | None:
        """The batch that holds an offset."""
        at = bisect_right(self.bases, offset) - 1
        found = self.entries[at] if at >= 0 else None
        return found if found is not None and offset < found.next else None

    def between(self, first: int, end: int) -> Sequence[Entry]:
        """The batches that begin in this range."""
        low, high = bisect_right(self.bases, first - 1), bisect_right(self.bases, end - 1)
        return self.entries[low:high]

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bases.append(entry.base)

    def cut(self, count: int) -> list[Entry]:
        """Take all but the first ``count`` off."""
        gone = self.entries[count:]
        del self.entries[count:], self.bases[count:]
        return gone

    def trim(self, path: str) -> list[Entry]:
        """Take off what stands in one file."""
        gone = [entry for entry in self.entries if entry.path == path]
        self.entries = [entry for entry in self.entries if entry.path != path]
        self.bases = [entry.base for entry in self.entries]
        return gone


class LogListener(Protocol):
    """Hears what becomes of the logs of a broker."""

    def appended(self, node: str, key: PartitionKey, entry: Entry, before: Entry | None) -> None:
        """A batch was written behind another one; ``before`` None: it is the only one."""
        ...

    def cut(self, node: str, key: PartitionKey, gone: Sequence[Entry]) -> None:
        """These, the last ones, are no longer there."""
        ...

    def other_disk(self, node: str) -> None:
        """Power failed or the disk was exchanged: the logs were read anew."""
        ...


class LogWitness(Witness):
    """See the module."""

    def __init__(self, node: str, platter: Platter, data_dir: str, listener: LogListener) -> None:
        self.logs: dict[PartitionKey, ReplicaLog] = {}
        self._node = node
        self._platter = platter
        self._topics = f"{data_dir}/topics"
        self._listener = listener
        self._keys: dict[str, PartitionKey | None] = {}  # of paths
        platter.witness = self

    def log(self, key: PartitionKey) -> ReplicaLog:
        """Of a partition; an empty one if there is none."""
        return self.logs.get(key) or ReplicaLog()

    def is_durable(self, entry: Entry) -> bool:
        """Whether it would survive a power cut now that keeps nothing of what is not synced."""
        if not entry.durable:
            content = entry.content
            entry.durable = (
                self._platter.durable_content(entry.path) is content
                and entry.position + entry.size <= content.durable_size()
                and content.durable(entry.position, entry.size)
                == content.read(entry.size, entry.position)
            )
        return entry.durable

    # ── what is done to the disk ─────────────────────────────────────────────────────────────

    def written(self, path: str, content: Content, position: int, end: int) -> None:
        key = self._key(path)
        if key is None:
            return
        log = self.logs.setdefault(key, ReplicaLog())
        keep = len(log.entries)
        while keep and self._overlaps(log.entries[keep - 1], path, position):
            keep -= 1
        gone = log.cut(keep)
        again = {entry.base: entry.identity for entry in gone}
        for entry in self._found(path, content, position, min(end, content.size)):
            before = log.entries[-1] if log.entries else None
            if before is not None and entry.base < before.next:
                break  # no batch of this log: stray bytes
            log.add(entry)
            if again.pop(entry.base, None) != entry.identity:
                self._listener.appended(self._node, key, entry, before)
        really = [entry for entry in gone if entry.base in again]
        if really:
            self._listener.cut(self._node, key, really)

    def resized(self, path: str, content: Content, size: int) -> None:
        key = self._key(path)
        log = self.logs.get(key) if key is not None else None
        if key is None or log is None:
            return
        keep = len(log.entries)
        while keep and log.entries[keep - 1].path == path:
            entry = log.entries[keep - 1]
            if entry.position + entry.size <= size:
                break
            keep -= 1
        gone = log.cut(keep)
        if gone:
            self._listener.cut(self._node, key, gone)

    def removed(self, path: str, content: Content) -> None:
        key = self._key(path)
        log = self.logs.get(key) if key is not None else None
        if key is None or log is None or not log.entries:
            return
        at_end = log.entries[-1].path == path
        gone = log.trim(path)
        if at_end:  # else retention, or a rewrite
            self._listener.cut(self._node, key, gone)

    def renamed(self, source: str, target: str) -> None:
        key = self._key(target)
        if key is not None:
            self._read(key)

    def other_disk(self) -> None:
        self.logs.clear()
        root = self._platter.find(self._topics)
        for name in sorted(root.entries) if isinstance(root, Folder) else ():
            key = parse_partition_name(name)
            if key is not None:
                self._read(key, f"{self._topics}/{name}")
        self._listener.other_disk(self._node)

    # ── how ──────────────────────────────────────────────────────────────────────────────────

    def _key(self, path: str) -> PartitionKey | None:
        """Of a segment file; None for every other file."""
        if path not in self._keys:
            folder, _, name = path.rpartition("/")
            topics, _, partition = folder.rpartition("/")
            ours = topics == self._topics and name.endswith(".log")
            self._keys[path] = parse_partition_name(partition) if ours else None
        return self._keys[path]

    def _read(self, key: PartitionKey, path: str | None = None) -> None:
        """All of a log, from the files."""
        if path is None:
            path = f"{self._topics}/{key[0].hex()}-{key[1]}"
        folder = self._platter.find(path)
        log = self.logs[key] = ReplicaLog()
        seed = header_seed(*key)
        for name, node in sorted(folder.entries.items()) if isinstance(folder, Folder) else ():
            if not name.endswith(".log") or not isinstance(node, Inode):
                continue
            file = f"{path}/{name}"
            for position, header in batches(file, node.content, seed, []):
                if header.base_offset >= log.end:
                    log.add(_entry(header, file, node.content, position))

    @staticmethod
    def _overlaps(entry: Entry, path: str, position: int) -> bool:
        return entry.path == path and entry.position + entry.size > position

    @staticmethod
    def _found(path: str, content: Content, position: int, end: int) -> list[Entry]:
        """Whole batches among bytes that were written."""
        if not any(content.read(16, position)):
            return []  # zeros written ahead, or a cut
        data, found, at = content.view(position, end - position), list[Entry](), 0
        while at + HEADER_BYTES <= len(data):
            header = read_header(data, at)
            if foreign(header) or malformed(header) or at + header.size_bytes > len(data):
                break
            found.append(_entry(header, path, content, position + at))
            at += header.size_bytes
        return found


def _entry(header: BatchHeader, path: str, content: Content, position: int) -> Entry:
    payload = content.view(position + PAYLOAD_FROM, header.size_bytes - PAYLOAD_FROM)
    return Entry(
        header.base_offset,
        header.next_offset,
        header.leader_epoch,
        xxh3_64_intdigest(payload),
        path,
        content,
        position,
        header.size_bytes,
    )
