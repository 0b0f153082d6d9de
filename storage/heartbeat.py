"""The ``clock`` file of a data directory: what time it was when the broker was last seen alive.

Made durably, then overwritten in place by one plain write, like the flushed mark (R25): shorter
than a sector, always of one length, checked by its checksum. It survives a killed process; after a
power cut it may be older than the last beat, which only makes the broker doubt more of what the
wall clock says (``broker/clock.py``). A file that is lost reads as None.
"""

import struct
from typing import NamedTuple

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk

DOUBTS_MAX = 8
_BEAT = struct.Struct(">qq" + "qq" * DOUBTS_MAX)


class Doubt(NamedTuple):
    """The wall clock went ahead by so many ms, and has stood there for so many since."""

    size_ms: int
    seen_ms: int  # by monotonic time, while a broker ran


class Beat(NamedTuple):
    """The trusted time in ms since the epoch, and what the wall clock has on it, oldest first."""

    trusted_ms: int
    doubts: tuple[Doubt, ...]


def encode(beat: Beat) -> bytes:
    """The whole file; always of the same length."""
    assert len(beat.doubts) <= DOUBTS_MAX, "the clock keeps no more"
    numbers = [number for doubt in beat.doubts for number in doubt]
    numbers += [0] * (2 * DOUBTS_MAX - len(numbers))
    body = _BEAT.pack(beat.trusted_ms, len(beat.doubts), *numbers)
    return checkpoint.encode(checkpoint.Kind.CLOCK, body)


def read(disk: Disk, path: str) -> Beat | None:
    """None: missing or damaged. Raises other ``OSError``s."""
    body = checkpoint.read(disk, path, checkpoint.Kind.CLOCK)
    if body is None or len(body) != _BEAT.size:
        return None
    trusted_ms, count, *numbers = _BEAT.unpack(body)
    if not 0 <= count <= DOUBTS_MAX:
        return None
    return Beat(trusted_ms, tuple(Doubt(*numbers[2 * n : 2 * n + 2]) for n in range(count)))


def write(disk: Disk, path: str, beat: Beat) -> None:
    """Not synced, but for the first one. Raises ``OSError``, on a full disk say; T093."""
    if read(disk, path) is None:
        checkpoint.replace(disk, path, encode(beat))
        return
    file = disk.open(path)
    try:
        file.write([encode(beat)], 0)
    finally:
        file.close()
