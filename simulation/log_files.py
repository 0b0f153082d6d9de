"""The batches of a broker's logs, as they stand on a platter: what the oracle goes by.

No batch is decoded beyond its header, and nothing is asked of the broker.
"""

import hashlib
from collections.abc import Iterator

from tailrace.protocol.batch import BatchHeader, header_seed, parse_header, scan_one
from tailrace.simulation.content import Content
from tailrace.simulation.disk import Folder, Inode, Platter
from tailrace.storage.directory import parse_partition_name, partition_name

PAYLOAD_AT = 45  # what the producer wrote and nobody patches (batch_layout: under checksum P)

PartitionKey = tuple[bytes, int]  # topic id, partition
Rot = list[tuple[str, int, int]]  # bits that were flipped on purpose: file, position, mask
Logs = dict[PartitionKey, list[bytes]]


class Removed:
    """Batches that were durable in a segment file which has lost its name since.

    Whoever removes a file, or gives its name to another one, does so on purpose: retention,
    compaction, erasure, the deletion of a topic. Recovery, too, removes files when it cuts a log;
    what stood there was not removed in this sense (``forget_cut``).
    """

    def __init__(self, platter: Platter, topics: str, rot: Rot) -> None:
        self._platter = platter
        self._topics = topics
        self._rot = rot
        self._held: dict[PartitionKey, set[tuple[int, bytes]]] = {}
        platter.on_removed = self._note

    def held(self, key: PartitionKey, offset: int, payload: bytes) -> bool:
        """Whether that batch was durable when the last name of its file went."""
        return (offset, _digest(payload)) in self._held.get(key, ())

    def forget_cut(self, recovered: Logs) -> None:
        """These logs were recovered: what stood at or beyond their ends was cut, not removed."""
        for key, held in self._held.items():
            if key in recovered:
                end = log_end(self._platter, self._topics, key, recovered[key])
                self._held[key] = {one for one in held if one[0] < end}

    def _note(self, path: str, content: Content) -> None:
        folder, _, name = path.rpartition("/")
        topics, _, partition = folder.rpartition("/")
        key = parse_partition_name(partition)
        if topics != self._topics or key is None or not name.endswith(".log"):
            return
        if self._platter.durable_content(path) is not content:
            return
        held = self._held.setdefault(key, set())
        data = undamaged(path, content, self._rot)
        for at, header in batches(path, content, header_seed(*key), self._rot):
            start, length = at + PAYLOAD_AT, header.size_bytes - PAYLOAD_AT
            if content.durable(start, length) == content.read(length, start):
                payload = bytes(data[start : start + length])
                held.add((header.base_offset, _digest(payload)))


def logs(platter: Platter, topics: str, rot: Rot, *, over_gaps: bool = False) -> Logs:
    """Every batch of every partition on a disk, in order, up to the first that is not whole.

    ``over_gaps``: and from the next segment file on. Power may fail while files are removed, and
    then one may come back without the one behind it.
    """
    found: Logs = {}
    root = platter.find(topics)
    if not isinstance(root, Folder):
        return found
    for name, folder in sorted(root.entries.items()):
        key = parse_partition_name(name)
        if isinstance(folder, Folder) and key is not None:
            path, seed = f"{topics}/{name}", header_seed(*key)
            found[key] = _entries(path, folder, seed, rot, over_gaps=over_gaps)
    return found


def batches(
    path: str, content: Content, seed: int, rot: Rot, position: int = 0
) -> Iterator[tuple[int, BatchHeader]]:
    """Position and header of every batch of a segment file, as if nothing had rotted."""
    data = undamaged(path, content, rot)
    while position < content.high:
        header = scan_one(data, position, seed)
        if not isinstance(header, BatchHeader):
            return
        yield position, header
        position += header.size_bytes


def undamaged(path: str, content: Content, rot: Rot) -> memoryview:
    """The bytes of a file, flipped bits put right."""
    flips = [(position, mask) for rotten, position, mask in rot if rotten == path]
    if not flips:
        return content.view(0, content.size)
    data = bytearray(content.view(0, content.high))
    for position, mask in flips:
        data[position] ^= mask
    return memoryview(data)


def _entries(path: str, folder: Folder, seed: int, rot: Rot, *, over_gaps: bool) -> list[bytes]:
    entries: list[bytes] = []
    expected: int | None = None
    for name, node in sorted(folder.entries.items()):
        if not name.endswith(".log") or not isinstance(node, Inode):
            continue
        if expected is not None and int(name[:-4]) != expected and not over_gaps:
            break
        data = undamaged(f"{path}/{name}", node.content, rot)
        for position, header in batches(f"{path}/{name}", node.content, seed, rot):
            entries.append(bytes(data[position : position + header.size_bytes]))
            expected = header.next_offset
    return entries


def log_end(platter: Platter, topics: str, key: PartitionKey, entries: list[bytes]) -> int:
    """The offset that follows a log's last batch."""
    if entries:
        return parse_header(entries[-1]).next_offset
    folder = platter.find(f"{topics}/{partition_name(*key)}")
    names = folder.entries if isinstance(folder, Folder) else {}
    return max((int(name[:-4]) for name in names if name.endswith(".log")), default=0)


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
