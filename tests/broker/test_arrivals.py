"""Bytes on their way from a transport to where they belong."""

import random
from collections.abc import Sequence

import pytest
import trio

from tailrace.broker.arrivals import HEAD_BYTES, TURN_BYTES, Arrivals
from tailrace.broker.limits import RECEIVE_BYTES
from tailrace.protocol.codec import encode_message
from tailrace.protocol.connection import ServerConnection
from tailrace.protocol.frame import encode_frame
from tailrace.protocol.messages import Api, ProducePartition, ProduceRequest
from tailrace.protocol.seams import Buffer
from tests.protocol.test_connection import TOPIC, Pair


def produce_frame(number: int, body: bytes) -> bytes:
    request = ProduceRequest(-1, 1_000, (ProducePartition(TOPIC, 0, len(body)),))
    return encode_frame(Api.PRODUCE, 1, number, encode_message(request), len(body)) + body


class Stream:
    """A transport whose peer has sent all of it already, and ends."""

    def __init__(self, data: bytes, rng: random.Random | None = None) -> None:
        self.peer = "peer"
        self.turns = 0  # of others
        self.copied = 0  # bytes that did not come to where they belong
        self._data = data
        self._rng = rng  # None: each receive brings all that may come

    async def receive(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        self.turns += 1
        taken = self._take(max_bytes)
        self.copied += len(taken)
        return taken

    async def receive_into(self, room: memoryview) -> int:
        taken = self._take(len(room))
        if len(room) == HEAD_BYTES:
            self.copied += len(taken)
        room[: len(taken)] = taken
        return len(taken)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        raise AssertionError(buffers)

    def send_nowait(self, data: bytes) -> int:
        raise AssertionError(data)

    def close(self) -> None:
        pass

    def _take(self, most: int) -> bytes:
        rng = self._rng
        count = most if rng is None else rng.choice([most, most, rng.randint(1, most)])
        taken, self._data = self._data[:count], self._data[count:]
        return taken


async def bodies(server: ServerConnection, stream: Stream) -> list[bytes]:
    arrivals, found = Arrivals(stream, server), list[bytes]()
    while (requests := await arrivals.take()) is not None:
        for request in requests:
            found.append(bytes(request.body))
            server.drop(request)
    return found


def test_frames_of_all_sizes_come_out_as_they_went_in() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        wanted = [rng.randbytes(rng.choice([1, 90, 5_000, 70_000, 300_000])) for _ in range(12)]
        stream = Stream(b"".join(map(produce_frame, range(12), wanted)), rng)
        pair = Pair().greet()
        assert trio.run(bodies, pair.server, stream) == wanted, seed


def test_of_large_bodies_in_a_row_next_to_nothing_is_copied() -> None:
    wanted = [bytes([number]) * 300_000 for number in range(20)]
    stream = Stream(b"".join(map(produce_frame, range(20), wanted)))
    assert trio.run(bodies, Pair().greet().server, stream) == wanted
    assert stream.copied <= RECEIVE_BYTES + 20 * HEAD_BYTES


@pytest.mark.parametrize("size", [300_000, 10 * TURN_BYTES])
def test_others_have_their_turn_though_large_bodies_never_end(size: int) -> None:
    wanted = [bytes(size)] * (20 * TURN_BYTES // size)
    stream = Stream(b"".join(map(produce_frame, range(len(wanted)), wanted)))
    turns = 0

    async def main() -> list[bytes]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            found = await bodies(Pair().greet().server, stream)
            nursery.cancel_scope.cancel()
        return found

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    assert trio.run(main) == wanted
    assert turns >= 10


def test_small_frames_behind_a_large_one_come_many_at_once_again() -> None:
    wanted = [bytes(300_000), *[b"x" * 100] * 2_000]
    stream = Stream(b"".join(map(produce_frame, range(2_001), wanted)))
    assert trio.run(bodies, Pair().greet().server, stream) == wanted
    assert stream.turns <= 4
