"""Bodies that arrive in pieces: the same bytes by every way, and memory that comes back."""

import tracemalloc

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.bodies import AHEAD_BYTES, KEPT_BYTES_MAX, Body, Spares
from tailrace.protocol.frame import FrameLimits, FrameReader, encode_frame

MIB = 1 << 20
SIZE = 300_000


def frame_bytes(body: bytes) -> bytes:
    return encode_frame(2, 1, 7, b"head", len(body)) + body


def reader() -> FrameReader:
    return FrameReader(FrameLimits(lambda api: 1 << 30, 1 << 10), Spares())


def receive(into: FrameReader, stream: bytes, first: int, step: int) -> list[memoryview]:
    """As a channel does: what belongs to a body goes straight there."""
    into.feed(stream[:first])
    at, bodies = min(first, len(stream)), list[memoryview]()
    while True:
        while (frame := into.next()) is not None:
            bodies.append(frame.body)
        if at >= len(stream):
            return bodies
        room = into.room()
        if room is None:
            into.feed(stream[at : at + step])
            at += min(step, len(stream) - at)
        else:
            count = min(step, len(room), len(stream) - at)
            room[:count] = stream[at : at + count]
            del room
            into.filled(count)
            at += count


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, 70_000, 200_000]), min_size=1, max_size=5),
    first=st.integers(1, 150_000),
    step=st.sampled_from([1_000, 50_000, 1 << 17]),
)
def test_any_cut_gives_the_same_bodies(sizes: list[int], first: int, step: int) -> None:
    wanted = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream = b"".join(map(frame_bytes, wanted))
    assert [bytes(body) for body in receive(reader(), stream, first, step)] == wanted


def test_a_body_of_many_times_what_may_run_ahead_is_whole() -> None:
    body = bytes(range(256)) * (5 * AHEAD_BYTES // 256)
    (found,) = receive(reader(), frame_bytes(body), 1_000, 1 << 20)
    assert found == body


def test_there_is_no_room_between_frames() -> None:
    into = reader()
    assert into.room() is None
    into.feed(frame_bytes(b"x" * SIZE)[:10])
    assert into.next() is None
    assert into.room() is None, "the header is not there yet"


def test_memory_runs_ahead_by_two_mib_at_most() -> None:
    into = reader()
    claimed = encode_frame(2, 1, 1, b"", (1 << 30) - 100)
    tracemalloc.start()
    into.feed(claimed + b"x" * 1_000)
    assert into.next() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < AHEAD_BYTES + 100_000


def test_memory_that_nobody_looks_at_any_more_is_used_again() -> None:
    into = reader()
    (first,) = receive(into, frame_bytes(b"a" * SIZE), 1_000, 1 << 16)
    memory = first.obj
    del first
    (second,) = receive(into, frame_bytes(b"b" * (SIZE - 5_000)), 1_000, 1 << 16)
    assert second.obj is memory
    assert second == b"b" * (SIZE - 5_000)


@pytest.mark.parametrize("part", [slice(None), slice(5, 10)])
def test_memory_that_somebody_looks_at_is_left_alone(part: slice) -> None:
    into = reader()
    (first,) = receive(into, frame_bytes(b"a" * SIZE), 1_000, 1 << 16)
    kept = first[part]
    del first
    (second,) = receive(into, frame_bytes(b"b" * SIZE), 1_000, 1 << 16)
    assert second == b"b" * SIZE
    assert set(kept) == {ord("a")}


def test_a_body_takes_no_memory_of_twice_its_size() -> None:
    spares = Spares()
    large = spares.take(MIB)
    spares.lend(large)
    assert spares.take(MIB // 2) is not large


def test_memory_in_use_is_not_taken_for_another_with_the_same_content() -> None:
    spares = Spares()
    used, free = spares.take(MIB), spares.take(MIB)
    held = memoryview(used)
    spares.lend(used)
    spares.lend(free)
    assert spares.take(MIB) is free
    assert spares.take(MIB) is not free
    held.release()
    assert spares.take(MIB) is used


def test_spares_keep_so_much_and_no_more() -> None:
    spares = Spares()
    lent = [spares.take(MIB) for _ in range(KEPT_BYTES_MAX // MIB + 3)]
    for memory in lent:
        spares.lend(memory)
    again = [spares.take(MIB) for _ in lent]
    known = set(map(id, lent))
    assert sum(id(memory) in known for memory in again) == KEPT_BYTES_MAX // MIB


def test_spares_that_nobody_needs_any_more_are_let_go() -> None:
    spares = Spares()
    memory = spares.take(MIB)
    spares.lend(memory)
    spares.tidy()  # it was lent a moment ago
    assert spares.take(MIB) is memory
    spares.lend(memory)
    spares.tidy()
    spares.tidy()
    assert spares.take(MIB) is not memory


@pytest.mark.parametrize("first", [3, 17_000, 100_000])
def test_the_first_bytes_of_a_body_take_memory_for_a_few_times_as_many(first: int) -> None:
    body, data = Body(2 * MIB, Spares()), b"d" * (2 * MIB)
    tracemalloc.start()
    assert body.add(b".." + data[:first], 2) == first
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 8 * first + 100_000
    assert len(body.room()) == 2 * MIB - first
    tracemalloc.stop()
    assert body.add(data, 0) == 2 * MIB - first
    assert bytes(body.view()) == data


def test_a_body_whose_room_was_found_before_lies_in_one_piece_at_once() -> None:
    spares = Spares(ahead_bytes=16 * MIB)
    body = Body(5 * MIB, spares)
    body.add(b"abc", 0)
    assert len(body.room()) == 5 * MIB - 3


def test_memory_that_a_body_has_outgrown_comes_back() -> None:
    spares = Spares(ahead_bytes=MIB)
    body = Body(4 * MIB, spares)
    first = body.room().obj
    body.filled(MIB)
    assert len(body.room()) == 3 * MIB
    assert spares.take(MIB) is first
