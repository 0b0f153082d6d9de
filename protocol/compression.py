"""Compression of a batch's records section: LZ4 and zstd frames, bounded both ways.

Ids are Kafka's (bits 0-2 of a batch's attributes). gzip and snappy stand only in batches of
payload format 0 and are neither written nor read here.

Invariants:
- ``decompress`` gives at most ``DOCUMENT_BYTES_MAX`` bytes, and above ``RATIO_FREE_BYTES`` at most
  ``RATIO_MAX`` times what it was given, whatever the frame declares;
- it takes exactly one frame without a dictionary, and refuses anything behind it;
- ``compress`` never gives what ``decompress`` would refuse.
"""

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import lz4.frame
import zstandard

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Buffer = bytes | bytearray | memoryview

NAMES: tuple[Compression, ...] = get_args(Compression)  # by id
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
NATIVE = frozenset((NONE, LZ4, ZSTD))  # what a batch of columns may carry

DOCUMENT_BYTES_MAX = 16 << 20
RATIO_FREE_BYTES = 1 << 20
RATIO_MAX = 200
PIECE_BYTES = 1 << 20  # an ordinary batch is one piece
ZSTD_WINDOW_BYTES_MAX = 8 << 20
ZSTD_LEVEL = 3

_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_LZ4_FLAG_DICTIONARY = 0x01
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_lz4 = cast(Any, lz4.frame)  # the library ships no types
_lz4_compress: Callable[[Buffer], bytes] = _lz4.compress
_lz4_decompressor: Callable[[], Any] = _lz4.LZ4FrameDecompressor


class CompressionError(ValueError):
    """The bytes are not one frame of their kind within the bounds."""


def compress(document: bytes, compression: int) -> bytes | None:
    """One frame of ``compression`` (``LZ4`` or ``ZSTD``); ``None`` where it would not pay.

    That is: the frame is no smaller than the document, or so much smaller that readers would
    take it for a bomb. The document then goes uncompressed.
    """
    if compression == LZ4:
        frame = _lz4_compress(document)
    elif compression == ZSTD:
        # A compressor is not safe in two threads, and a new one costs a tenth of its first use.
        frame = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(document)
    else:
        raise CompressionError(f"{_name(compression)} is not written")
    if len(frame) >= len(document) or len(document) > document_bytes_max(len(frame)):
        return None
    return frame


def decompress(frame: Buffer, compression: int) -> bytes:
    """The document in ``frame``. Raises ``CompressionError``."""
    if compression == LZ4:
        return _decompress_lz4(frame)
    if compression == ZSTD:
        return _decompress_zstd(frame)
    raise CompressionError(f"{_name(compression)} is not read")


def document_bytes_max(frame_bytes: int) -> int:
    """How large a document of ``frame_bytes`` compressed bytes may be."""
    return min(DOCUMENT_BYTES_MAX, max(RATIO_FREE_BYTES, RATIO_MAX * frame_bytes))


def _decompress_lz4(frame: Buffer) -> bytes:
    if bytes(frame[:4]) != _LZ4_MAGIC:
        raise CompressionError("no LZ4 frame")
    if len(frame) > 4 and frame[4] & _LZ4_FLAG_DICTIONARY:
        raise CompressionError("LZ4 frame wants a dictionary")
    limit = document_bytes_max(len(frame))
    decompressor = _lz4_decompressor()
    pieces: list[bytes] = []
    fed = total = 0
    try:
        # Piece by piece: a bomb is known by its pieces, before anything is joined. The library
        # has each twice for a moment and copies the input that it keeps.
        while not decompressor.eof:
            if decompressor.needs_input and fed >= len(frame):
                raise CompressionError("LZ4 frame ends too early")
            data = frame[fed : fed + PIECE_BYTES] if decompressor.needs_input else b""
            fed += len(data)
            most = min(PIECE_BYTES, limit + 1 - total)
            pieces.append(decompressor.decompress(data, max_length=most))
            total += len(pieces[-1])
            if total > limit:
                raise CompressionError(
                    f"LZ4 frame of {len(frame)} bytes holds more than {limit} bytes"
                )
    except RuntimeError as error:
        raise CompressionError(f"LZ4 frame is broken: {error}") from error
    behind = len(decompressor.unused_data or b"") + len(frame) - fed
    if behind:
        raise CompressionError(f"{behind} bytes behind the LZ4 frame")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _decompress_zstd(frame: Buffer) -> bytes:
    if bytes(frame[:4]) != _ZSTD_MAGIC:
        raise CompressionError("no zstd frame")
    limit = document_bytes_max(len(frame))
    try:
        declared = zstandard.get_frame_parameters(frame)
        if declared.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            raise CompressionError("zstd frame does not declare its content size")
        if not 0 < declared.content_size <= limit:
            raise CompressionError(
                f"zstd frame of {len(frame)} bytes declares {declared.content_size}, "
                f"allowed is 1 to {limit}"
            )
        if declared.window_size > ZSTD_WINDOW_BYTES_MAX:
            raise CompressionError(
                f"zstd window of {declared.window_size} bytes, "
                f"at most {ZSTD_WINDOW_BYTES_MAX} is allowed"
            )
        if declared.dict_id:
            raise CompressionError("zstd frame wants a dictionary")
        # The library takes the declared size, just checked, as the size of its output and fails
        # on a frame that holds more or less; it ignores max_output_size once a size is declared.
        return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompress(
            frame, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CompressionError(f"zstd frame is broken: {error}") from error


def _name(compression: int) -> str:
    return NAMES[compression] if 0 <= compression < len(NAMES) else f"compression {compression}"
