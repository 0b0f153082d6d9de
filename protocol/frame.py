"""Frames: how messages are cut out of a byte stream (grammar: docs/wire_format.md, section 2).

    u32 length       bytes after this field
    u16 api          u16 version          u32 correlation id
    u32 head length  u32 check = xxh32(the 16 bytes before it, then the head; seed 0)
    head             positional msgpack (``codec.py``)
    body             raw record batches, each with checksums of its own

Invariants of the reader:
- a length is checked before anything is kept because of it, and memory follows the bytes that
  arrived; only once somebody asks for ``room`` some may run ahead (``Spares.ahead_bytes``);
- the head's check is verified as soon as the head is there, before the body is waited for;
- copying is linear, however the stream was cut: each byte about twice; where the shell receives
  into ``room`` only what came with the head, or has outgrown what ran ahead;
- a body lies in a ``bytearray`` of its own: the broker patches batches in place and keeps them.

It does not decode heads and knows no api: what is allowed comes in by ``FrameLimits``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from xxhash import xxh32_intdigest

from tailrace.protocol.bodies import NO_BODY, Body, Spares
from tailrace.protocol.texts_wire import frame_too_large, malformed_frame

PREAMBLE = b"\x89TLR\r\n\x1a\x01"  # a byte no text begins with; line ends and ^Z find mangling
HEADER_BYTES = 20
_COVERED = Struct(">IHHII")  # length, api, version, correlation id, head length
_CHECK = Struct(">I")
_HEADER = Struct(">IHHIII")
_LENGTH_BYTES = 4
_LENGTH_MIN = HEADER_BYTES - _LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What a reader takes. ``frame``: bytes of a whole frame, by api."""

    frame: Callable[[int], int]
    head: int  # bytes of a head: bounds what decoding it can cost


class Frame(NamedTuple):
    """One frame whose head is checked and whose body is the caller's to keep and to change."""

    api: int
    version: int
    correlation_id: int
    head: bytes
    body: memoryview


def encode_frame(
    api: int, version: int, correlation_id: int, head: bytes, body_length: int = 0
) -> bytes:
    """Header and head; the caller sends ``body_length`` bytes of batches right behind it."""
    length = _LENGTH_MIN + len(head) + body_length
    covered = _COVERED.pack(length, api, version, correlation_id, len(head))
    return covered + _CHECK.pack(xxh32_intdigest(covered + head)) + head


_Header = tuple[int, int, int, int, int, int]


class FrameReader:
    """Bytes in, frames out. After an error it is only good for closing the connection.

    ``spares``: where memory for large bodies comes from, and goes back to; may be others' too.
    """

    __slots__ = ("_at", "_body", "_data", "_header", "_partial", "_spares", "limits")

    def __init__(self, limits: FrameLimits, spares: Spares | None = None) -> None:
        self.limits = limits  # may be changed between frames
        self._spares = spares or Spares()
        self._data: bytes = b""  # what was fed and not looked at yet begins at _at
        self._at = 0
        # A frame that comes in pieces: header and head gather in _partial, then the body in _body.
        self._partial = bytearray()
        self._header: _Header | None = None  # set once 20 bytes are there and its sizes allowed
        self._body: Body | None = None  # set once the head is there and its check holds

    @property
    def missing_bytes(self) -> int:
        """Bytes that complete the frame (or, while unknown, its header); 0 between frames."""
        if self._header is not None:
            if self._body is not None:
                return self._body.missing_bytes
            return self._header[0] + _LENGTH_BYTES - len(self._partial)
        begun = len(self._partial) + len(self._data) - self._at
        return max(HEADER_BYTES - begun, 1) if begun else 0

    def feed(self, data: bytes) -> None:
        """Take what the network brought. Cheap; call ``next`` until it returns None."""
        if self._at < len(self._data):
            data = self._data[self._at :] + data
        self._data = data
        self._at = 0

    def room(self) -> memoryview | None:
        """Where the next bytes belong, if they belong to a large body; None: ``feed`` them.

        After ``next`` has returned None. Say ``filled`` how many it were.
        """
        return None if self._body is None or not self._body.large else self._body.room()

    def filled(self, count: int) -> None:
        """So many bytes lie in ``room`` now; the same as feeding them."""
        assert self._body is not None
        self._body.filled(count)

    def next(self) -> Frame | None:
        """The next whole frame, None if more bytes are needed.

        Raises ConnectError T121 (no frame of ours, or damaged) and T124 (too large).
        """
        at, data = self._at, self._data
        if not self._partial and len(data) - at >= HEADER_BYTES:
            header: _Header = _HEADER.unpack_from(data, at)
            end = at + _LENGTH_BYTES + header[0]
            if end <= len(data):
                return self._whole(data, at, end, header)
        return self._pieced()

    def _whole(self, data: bytes, at: int, end: int, header: _Header) -> Frame:
        """The common case: the frame lies in one piece in what was fed."""
        self._check_sizes(header)
        body_at = at + HEADER_BYTES + header[4]
        head = data[at + HEADER_BYTES : body_at]
        _verify(data[at : at + _COVERED.size], head, header)
        self._at = end
        body = memoryview(bytearray(memoryview(data)[body_at:end])) if body_at < end else NO_BODY
        return Frame(header[1], header[2], header[3], head, body)

    def _pieced(self) -> Frame | None:
        """Go on with a frame that arrives over several feeds."""
        if self._header is None:
            if not self._gather(self._partial, HEADER_BYTES):
                return None
            header: _Header = _HEADER.unpack(self._partial)
            self._check_sizes(header)
            self._header = header
        length, api, version, correlation_id, head_length, _ = self._header
        if self._body is None:
            if not self._gather(self._partial, HEADER_BYTES + head_length):
                return None
            _verify(self._partial[: _COVERED.size], self._partial[HEADER_BYTES:], self._header)
            self._body = Body(length - _LENGTH_MIN - head_length, self._spares)
        self._at += self._body.add(self._data, self._at)
        if self._body.missing_bytes:
            return None
        head, body = bytes(self._partial[HEADER_BYTES:]), self._body.view()
        self._partial, self._header, self._body = bytearray(), None, None
        return Frame(api, version, correlation_id, head, body)

    def _gather(self, buffer: bytearray, wanted: int) -> bool:
        """Move bytes until ``buffer`` holds ``wanted``; whether it does."""
        missing = wanted - len(buffer)
        if missing > 0:
            piece = memoryview(self._data)[self._at : self._at + missing]
            buffer += piece
            self._at += len(piece)
        return len(buffer) >= wanted

    def _check_sizes(self, header: _Header) -> None:
        length, api, head_length = header[0], header[1], header[4]
        limit = self.limits.frame(api)
        if length + _LENGTH_BYTES > limit:
            size = length + _LENGTH_BYTES
            raise frame_too_large(f"frame of api {api}", size=size, limit=limit)
        if length < _LENGTH_MIN or head_length > length - _LENGTH_MIN:
            raise malformed_frame(f"length {length} does not hold a head of {head_length} bytes")
        if head_length > self.limits.head:
            what = f"head of a frame of api {api}"
            raise frame_too_large(what, size=head_length, limit=self.limits.head)


def _verify(covered: bytes | bytearray, head: bytes | bytearray, header: _Header) -> None:
    if xxh32_intdigest(covered + head) != header[5]:
        raise malformed_frame("header or head does not match its checksum")
