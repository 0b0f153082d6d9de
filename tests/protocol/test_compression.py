"""Compression: round trips, and bombs that stop at their bound."""

import contextlib
import random
import struct
import subprocess
import sys

import lz4.frame
import pytest
import zstandard
from hypothesis import given, strategies as st
from xxhash import xxh32_intdigest

from tailrace.protocol.compression import (
    DOCUMENT_BYTES_MAX,
    GZIP,
    LZ4,
    NONE,
    SNAPPY,
    ZSTD,
    CompressionError,
    compress,
    decompress,
    document_bytes_max,
)

MIB = 1 << 20
BOTH = pytest.mark.parametrize("codec", [LZ4, ZSTD], ids=["lz4", "zstd"])


def frame_of(document: bytes, codec: int) -> bytes:
    """What another writer makes, with no bound of ours."""
    if codec == ZSTD:
        return zstandard.ZstdCompressor(level=1).compress(document)
    frame: bytes = lz4.frame.compress(document)
    return frame


# A process of its own: what another test left with the allocator must not count here.
TAKE_BOMB = """
import sys
from pathlib import Path
from tailrace.protocol.compression import CompressionError, decompress

def peak_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

frame = sys.stdin.buffer.read()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = peak_kib()
try:
    decompress(frame, int(sys.argv[1]))
except CompressionError:
    print(peak_kib() - before)
"""


@BOTH
@given(seed=st.binary(min_size=1, max_size=200), times=st.integers(1, 200))
def test_documents_come_back(codec: int, seed: bytes, times: int) -> None:
    document = seed * times
    frame = compress(document, codec)
    if frame is None:
        frame = frame_of(document, codec)
    assert decompress(frame, codec) == document
    assert decompress(memoryview(frame), codec) == document


@BOTH
@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB + 7])
def test_a_document_of_several_pieces_comes_back_whole_or_not_at_all(codec: int, size: int) -> None:
    document = random.Random(size).randbytes(size)  # its frame is as large
    frame = frame_of(document, codec)
    assert decompress(frame, codec) == document
    assert decompress(memoryview(frame), codec) == document
    for broken in (frame[:MIB], frame[: size // 2], frame[:-1], frame + b"x", frame + frame):
        with pytest.raises(CompressionError):
            decompress(broken, codec)


@BOTH
def test_every_truncation_and_extension_is_refused(codec: int) -> None:
    frame = frame_of(b"a line of a log, and another line of a log\n" * 9, codec)
    for length in range(len(frame)):
        with pytest.raises(CompressionError):
            decompress(frame[:length], codec)
    for extra in (b"\0", frame):
        with pytest.raises(CompressionError):
            decompress(frame + extra, codec)


@BOTH
def test_no_flipped_byte_ends_in_anything_but_an_answer_or_an_error(codec: int) -> None:
    frame = bytearray(frame_of(b"a line of a log, and another line of a log\n" * 9, codec))
    for position in range(len(frame)):
        for mask in (0x01, 0x80, 0xFF):
            frame[position] ^= mask
            with contextlib.suppress(CompressionError):
                assert len(decompress(frame, codec)) <= MIB
            frame[position] ^= mask


@BOTH
@pytest.mark.parametrize("size", [2 * MIB, 12 * MIB, 64 * MIB])
def test_bombs_stop_at_their_bound(codec: int, size: int) -> None:
    frame = frame_of(bytes(size), codec)
    assert len(frame) * 200 < size
    command = [sys.executable, "-c", TAKE_BOMB, str(codec)]
    taken = subprocess.run(command, input=frame, capture_output=True, check=True, timeout=60)
    assert int(taken.stdout) < 20 * 1024


@BOTH
def test_the_writer_makes_no_bomb(codec: int) -> None:
    assert compress(bytes(2 * MIB), codec) is None
    assert compress(bytes(MIB), codec) is not None


@BOTH
def test_a_document_that_does_not_shrink_is_left_alone(codec: int) -> None:
    assert compress(b"\x95\xc0", codec) is None


@BOTH
def test_sixteen_mebibytes_are_the_end(codec: int) -> None:
    noise = random.Random(1).randbytes(100_000)  # keeps the ratio below 200
    most = noise + bytes(DOCUMENT_BYTES_MAX - len(noise))
    assert decompress(frame_of(most, codec), codec) == most
    with pytest.raises(CompressionError):
        decompress(frame_of(most + b"x", codec), codec)


def test_the_bound_by_size() -> None:
    assert document_bytes_max(1) == MIB
    assert document_bytes_max(MIB // 200) == MIB
    assert document_bytes_max(10_000) == 2_000_000
    assert document_bytes_max(1 << 30) == DOCUMENT_BYTES_MAX


def lz4_frame(*, flags: int, block_size: int = 0x40, size: int | None = None) -> bytes:
    """An LZ4 frame header with a checksum that holds, and no blocks."""
    descriptor = bytes([flags, block_size]) + (struct.pack("<Q", size) if size is not None else b"")
    check = xxh32_intdigest(descriptor) >> 8 & 0xFF
    return b"\x04\x22\x4d\x18" + descriptor + bytes([check]) + bytes(4)


def test_an_lz4_frame_may_not_claim_what_it_does_not_hold() -> None:
    for size in (1, 1 << 31, (1 << 63) - 1):
        with pytest.raises(CompressionError):
            decompress(lz4_frame(flags=0x68, size=size), LZ4)


def test_an_lz4_dictionary_is_refused() -> None:
    frame = b"\x04\x22\x4d\x18" + bytes([0x61, 0x40]) + bytes(9)
    with pytest.raises(CompressionError, match="dictionary"):
        decompress(frame, LZ4)


def test_a_zstd_dictionary_is_refused() -> None:
    samples: list[bytes | bytearray | memoryview] = [
        b"line %d of a log about clients %d and pages %d" % (i, i * 7, i * 3) for i in range(999)
    ]
    dictionary = zstandard.train_dictionary(4096, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(bytes(samples[5]) * 3)
    with pytest.raises(CompressionError, match="dictionary"):
        decompress(frame, ZSTD)


@pytest.mark.parametrize("codec", [NONE, GZIP, SNAPPY, 5, 7, -1])
def test_other_compressions_are_neither_written_nor_read(codec: int) -> None:
    with pytest.raises(CompressionError, match="is not written"):
        compress(b"document", codec)
    with pytest.raises(CompressionError, match="is not read"):
        decompress(b"document", codec)
