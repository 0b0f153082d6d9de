"""Which leader epoch began at which offset (R1, R8): where a follower must truncate.

Invariants of the list: epochs and start offsets both rise strictly. An epoch in which nothing was
appended leaves no entry once the next one begins at the same offset.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from tailrace.storage import checkpoint

_COUNT = struct.Struct(">I")
_ENTRY = struct.Struct(">iq")


class EpochStart(NamedTuple):
    """A leader epoch and the log end when it began."""

    epoch: int
    start_offset: int


class EpochHistory:
    """The epochs of one partition."""

    def __init__(self, entries: Sequence[EpochStart] = ()) -> None:
        self._entries = list(entries)

    @property
    def entries(self) -> Sequence[EpochStart]:
        return self._entries

    @property
    def latest(self) -> int:
        """The current epoch, -1 before the first."""
        return self._entries[-1].epoch if self._entries else -1

    def begin(self, epoch: int, offset: int) -> bool:
        """``epoch`` begins at the log end ``offset``; False if it is the current one already."""
        assert epoch >= self.latest, "a leader epoch never falls (S9)"
        if epoch == self.latest:
            return False
        while self._entries and self._entries[-1].start_offset >= offset:
            self._entries.pop()
        self._entries.append(EpochStart(epoch, offset))
        return True

    def found(self, epoch: int, offset: int) -> bool:
        """A follower's log goes on at its end ``offset`` with a batch of ``epoch``: whatever else
        was to begin there has left nothing. Whether that changes anything."""
        kept = [entry for entry in self._entries if entry.start_offset < offset]
        assert not kept or kept[-1].epoch <= epoch, "epochs never fall along a log (S9)"
        if not kept or kept[-1].epoch < epoch:
            kept.append(EpochStart(epoch, offset))
        changed = kept != self._entries
        self._entries = kept
        return changed

    def truncate_to(self, offset: int) -> bool:
        """Forget epochs that begin beyond the log end ``offset``; whether there were any."""
        kept = [entry for entry in self._entries if entry.start_offset <= offset]
        changed = len(kept) < len(self._entries)
        self._entries = kept
        return changed

    def before(self, offset: int) -> int:
        """The epoch of the batch that ends at an offset of the log; -1 if none can."""
        for entry in reversed(self._entries):
            if entry.start_offset < offset:
                return entry.epoch
        return -1

    def end_of(self, epoch: int, log_end: int) -> EpochStart:
        """The largest known epoch up to ``epoch``, and the offset where that one ended.

        For an epoch beyond the latest that is (latest, log end), never "undefined" (R8); for one
        before the first it is (-1, start of the first).
        """
        found, end = -1, log_end
        for entry in reversed(self._entries):
            if entry.epoch <= epoch:
                found = entry.epoch
                break
            end = entry.start_offset
        return EpochStart(found, end)


def encode_epochs(history: EpochHistory) -> bytes:
    """The ``epochs`` file."""
    rows = b"".join(_ENTRY.pack(*entry) for entry in history.entries)
    return checkpoint.encode(checkpoint.Kind.EPOCHS, _COUNT.pack(len(history.entries)) + rows)


def decode_epochs(body: memoryview) -> EpochHistory | None:
    """From the body of the file, or None if it must be rebuilt."""
    if len(body) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(body)
    if len(body) != _COUNT.size + count * _ENTRY.size:
        return None
    return EpochHistory([EpochStart(*row) for row in _ENTRY.iter_unpack(body[_COUNT.size :])])
