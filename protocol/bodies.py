"""The body of a frame that arrives in pieces, and the memory it gathers in.

A reader that fetches gets megabytes a second. Fresh memory for each answer costs it as much as all
else (pages that the kernel clears and hands out, 256 for a MiB), so ``Spares`` keeps what former
bodies lay in. Invariants:

- memory is used again only when nobody has a view of it any more: a ``bytearray`` cannot change
  its length before that, which is how it is found out;
- a body takes as much as has arrived of it at first, then four times as much; only once somebody
  asks for ``room`` what may run ahead of it (a broker finds room for it in its budget before);
- spares hold ``KEPT_BYTES_MAX`` at most, and nothing after ``clear``.
"""

from collections import deque

AHEAD_BYTES = 2 << 20
GROWTH = 4
KEPT_BYTES_MAX = 8 << 20
KEPT_BYTES_MIN = 64 << 10  # smaller ones come from memory that the allocator holds anyway
NO_BODY = memoryview(bytearray())
_ROUND_BYTES = 16 << 10  # so that answers of about one size can take each other's memory


class Spares:
    """What bodies lay in that were handed out, oldest first."""

    __slots__ = ("_bytes", "_lent", "_rests", "ahead_bytes")

    def __init__(self, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.ahead_bytes = ahead_bytes  # of a body whose room is asked for, before they arrive
        self._lent: deque[bytearray] = deque()
        self._bytes = 0
        self._rests = True  # no body was handed out since ``tidy``

    def take(self, size: int) -> bytearray:
        """At least ``size`` bytes with any content, and about half as many more at most."""
        if size < KEPT_BYTES_MIN:
            return bytearray(size)
        for place, memory in enumerate(self._lent):
            if size <= len(memory) <= size + size // 2 + _ROUND_BYTES and _unused(memory):
                del self._lent[place]  # not ``remove``: it compares contents
                self._bytes -= len(memory)
                return memory
        return bytearray(-(-size // _ROUND_BYTES) * _ROUND_BYTES)

    def lend(self, memory: bytearray) -> None:
        """A body in it was handed out, or has outgrown it; it may come back."""
        if KEPT_BYTES_MIN <= len(memory) <= KEPT_BYTES_MAX:
            self._rests = False
            self._lent.append(memory)
            self._bytes += len(memory)
            while self._bytes > KEPT_BYTES_MAX:
                self._bytes -= len(self._lent.popleft())

    def clear(self) -> None:
        """Keep nothing: large bodies have stopped coming."""
        if self._lent:
            self._lent.clear()
            self._bytes = 0

    def tidy(self) -> None:
        """Keep nothing if nothing came since this was called before."""
        if self._rests:
            self.clear()
        self._rests = True


def _unused(memory: bytearray) -> bool:
    try:
        memory.append(memory.pop())
    except BufferError:  # somebody has a view of it
        return False
    return True


class Body:
    """One body on its way in: ``wanted`` bytes."""

    __slots__ = ("_filled", "_memory", "_spares", "_wanted", "large")

    def __init__(self, wanted: int, spares: Spares) -> None:
        self.large = wanted >= KEPT_BYTES_MIN
        self._wanted = wanted
        self._spares = spares
        self._filled = 0
        self._memory = bytearray()

    @property
    def missing_bytes(self) -> int:
        """Until it is complete."""
        return self._wanted - self._filled

    def add(self, data: bytes, at: int) -> int:
        """Take what belongs here of ``data`` from ``at`` on; how many bytes that were."""
        piece = memoryview(data)[at : at + self.missing_bytes]
        end = self._filled + len(piece)
        if end > len(self._memory):
            self._grow(end * GROWTH if self._memory else end)
        memoryview(self._memory)[self._filled : end] = piece  # a bytearray's slice copies it twice
        self._filled = end
        return len(piece)

    def room(self) -> memoryview:
        """Where its next bytes belong; empty once it is complete."""
        ahead = self._spares.ahead_bytes
        if len(self._memory) < self._wanted and (
            len(self._memory) < ahead or self._filled == len(self._memory)
        ):
            self._grow(max(ahead, self._filled * GROWTH))
        return memoryview(self._memory)[self._filled : self._wanted]

    def _grow(self, size: int) -> None:
        before, self._memory = self._memory, self._spares.take(min(self._wanted, size))
        memoryview(self._memory)[: self._filled] = memoryview(before)[: self._filled]
        self._spares.lend(before)

    def filled(self, count: int) -> None:
        """So many bytes were written to the beginning of ``room``."""
        self._filled += count
        assert self._filled <= min(self._wanted, len(self._memory))

    def view(self) -> memoryview:
        """The complete body, which is the caller's from now on."""
        assert not self.missing_bytes
        self._spares.lend(self._memory)
        return memoryview(self._memory)[: self._wanted]
