"""The frame reader: any cut of the stream gives the same frames, and lengths are never trusted."""

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.errors import ConnectError
from tailrace.protocol.frame import HEADER_BYTES, Frame, FrameLimits, FrameReader, encode_frame

LIMITS = FrameLimits(lambda api: {2: 1 << 21}.get(api, 1 << 10), 256)


def frame_bytes(api: int, correlation_id: int, head: bytes, body: bytes = b"") -> bytes:
    return encode_frame(api, 1, correlation_id, head, len(body)) + body


def drain(reader: FrameReader) -> list[Frame]:
    found: list[Frame] = []
    while (frame := reader.next()) is not None:
        found.append(frame)
    return found


def read_all(pieces: list[bytes]) -> list[Frame]:
    reader = FrameReader(LIMITS)
    found: list[Frame] = []
    for piece in pieces:
        reader.feed(piece)
        found += drain(reader)
    return found


def plain(frames: list[Frame]) -> list[tuple[int, int, bytes, bytes]]:
    return [(f.api, f.correlation_id, f.head, bytes(f.body)) for f in frames]


@given(
    contents=st.lists(st.tuples(st.binary(max_size=100), st.binary(max_size=300)), max_size=6),
    cuts=st.lists(st.integers(0, 2_000), max_size=12),
)
def test_any_cut_of_the_stream_gives_the_same_frames(
    contents: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame_bytes(2, i, head, body) for i, (head, body) in enumerate(contents))
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    expected = [(2, i, head, body) for i, (head, body) in enumerate(contents)]
    assert plain(read_all(pieces)) == expected


def test_byte_by_byte() -> None:
    stream = frame_bytes(1, 1, b"head") + frame_bytes(2, 2, b"x", b"body")
    pieces = [stream[i : i + 1] for i in range(len(stream))]
    assert plain(read_all(pieces)) == [(1, 1, b"head", b""), (2, 2, b"x", b"body")]


def test_feeding_before_the_last_feed_was_read_keeps_every_byte() -> None:
    stream = b"".join(frame_bytes(1, i, b"head") for i in range(5))
    reader = FrameReader(LIMITS)
    reader.feed(stream[:30])
    assert reader.next() is not None
    for at in range(30, len(stream), 7):
        reader.feed(stream[at : at + 7])
    assert [frame.correlation_id for frame in drain(reader)] == [1, 2, 3, 4]


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_body_is_writable_and_nobody_elses(pieces: int) -> None:
    stream = frame_bytes(2, 1, b"h", b"first") + frame_bytes(2, 2, b"h", b"other")
    step = -(-len(stream) // pieces)
    first, second = read_all([stream[i : i + step] for i in range(0, len(stream), step)])
    first.body[:] = b"wrote"
    assert bytes(second.body) == b"other"
    assert bytes(first.body) == b"wrote"


def test_missing_bytes_tells_what_completes_the_frame() -> None:
    stream = frame_bytes(2, 1, b"head", b"body")
    reader = FrameReader(LIMITS)
    assert reader.missing_bytes == 0
    reader.feed(stream[:5])
    assert reader.next() is None
    assert reader.missing_bytes == HEADER_BYTES - 5
    reader.feed(stream[5:22])
    assert reader.next() is None
    assert reader.missing_bytes == len(stream) - 22
    reader.feed(stream[22:])
    assert reader.next() is not None
    assert reader.missing_bytes == 0


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    fits = frame_bytes(1, 1, b"", b"x" * (1024 - HEADER_BYTES))
    assert len(read_all([fits])) == 1
    with pytest.raises(
        ConnectError, match=r"T124: frame of api 1 of 1,025 bytes exceeds the limit"
    ):
        read_all([frame_bytes(1, 1, b"", b"x" * (1025 - HEADER_BYTES))])


def test_a_head_has_a_limit_of_its_own() -> None:
    assert len(read_all([frame_bytes(2, 1, b"x" * 256)])) == 1
    with pytest.raises(ConnectError, match="T124: head of a frame of api 2 of 257 bytes"):
        read_all([frame_bytes(2, 1, b"x" * 257)])


@pytest.mark.parametrize("length", [0, 1, 15, 1 << 21, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_cannot_be_is_refused_with_the_header(length: int) -> None:
    header = struct.pack(">IHHIII", length, 2, 1, 1, 0, 0)
    with pytest.raises(ConnectError, match=r"T121|T124"):
        read_all([header])


@pytest.mark.parametrize("head_length", [1, 5, (1 << 32) - 1])
def test_a_head_longer_than_its_frame_is_refused(head_length: int) -> None:
    with pytest.raises(ConnectError, match="T121: malformed frame: length 16 does not hold a head"):
        read_all([struct.pack(">IHHIII", 16, 2, 1, 1, head_length, 0)])


def test_a_damaged_head_is_found_before_the_body_is_waited_for() -> None:
    stream = bytearray(frame_bytes(2, 1, b"head", b"x" * 1000))
    stream[21] ^= 1
    with pytest.raises(ConnectError, match="T121"):
        read_all([bytes(stream[:24])])


def test_memory_follows_the_bytes_that_came_not_the_length_they_claim() -> None:
    reader = FrameReader(FrameLimits(lambda api: 1 << 31, 1 << 20))
    covered = encode_frame(2, 1, 1, b"", (1 << 31) - HEADER_BYTES)
    tracemalloc.start()
    reader.feed(covered + b"x" * 1000)
    assert reader.next() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert reader.missing_bytes == (1 << 31) - HEADER_BYTES - 1000
