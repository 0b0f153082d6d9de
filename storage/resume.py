"""What a start can go on from: index and producers of a log as they were a little before its end.

Saved now and then while a segment grows, by plain writes without any sync: it costs next to
nothing, survives a killed process, and may be lost or half written after a power cut; then a start
walks a longer way. Two files take turns, so that a process killed in the midst of one leaves the
other. Nothing is ever removed on the strength of them (that is what snapshots are for).

One is of use only for a log that reaches as far as it does: whoever cuts the log removes them.
"""

import struct
from dataclasses import dataclass

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk
from tailrace.storage.index import Index, Summary, decode_front, encode_front
from tailrace.storage.producers import ProducerTable, decode_producers, encode_table

NAMES = ("resume-0", "resume-1")
_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Resume:
    """The content of one file."""

    slot: int  # which of the files
    summary: Summary  # of the segment that was active
    index: Index
    _producers: memoryview

    def producers(self, topic: str, partition: int) -> ProducerTable | None:
        """As they were at ``summary.next_offset``."""
        return decode_producers(self._producers, self.summary.next_offset, topic, partition)


def encode_resume(summary: Summary, entries: bytes, producers: ProducerTable) -> bytes:
    """A file. ``entries``: of the index, up to there."""
    front = encode_front(summary, entries)
    table = encode_table(producers, summary.next_offset)
    body = b"".join((_LENGTH.pack(len(front)), front, table))
    return checkpoint.encode(checkpoint.Kind.RESUME, body)


def decode_resume(body: memoryview, slot: int) -> Resume | None:
    """From the body of a file."""
    if len(body) < _LENGTH.size:
        return None
    middle = _LENGTH.size + int(_LENGTH.unpack_from(body)[0])
    front = decode_front(body[_LENGTH.size : middle])
    return None if front is None else Resume(slot, *front, body[middle:])


def read_resumes(disk: Disk, directory: str, names: list[str]) -> list[Resume]:
    """Those that can be believed, the one that reaches farthest first."""
    found: list[Resume] = []
    for slot, name in enumerate(NAMES):
        if name in names:
            body = checkpoint.read(disk, f"{directory}/{name}", checkpoint.Kind.RESUME)
            one = None if body is None else decode_resume(body, slot)
            found += [] if one is None else [one]
    return sorted(found, key=lambda one: one.summary.next_offset, reverse=True)


def write_resume(disk: Disk, path: str, data: bytes) -> None:
    """Overwrite a file in place; nothing is synced. Raises ``OSError``."""
    file = disk.open(path, create=True)
    try:
        if file.size() > len(data):
            file.resize(len(data))
        file.write([data], 0)
    finally:
        file.close()


def remove_resumes(disk: Disk, directory: str) -> None:
    """The log is cut; the caller syncs the directory before it grows again."""
    for name in NAMES:
        disk.remove(f"{directory}/{name}")
