"""What is cut between brokers, and what becomes of bytes that were on their way."""

from collections.abc import Sequence

import trio
import trio.testing

from tailrace.protocol.seams import Buffer
from tailrace.testing.wires import Wire, Wiring


def test_only_different_sides_are_apart() -> None:
    wiring = Wiring()
    cut = wiring.cut([{"n1"}, {"n2", "n3"}])
    assert wiring.apart("n1", "n2")
    assert wiring.apart("n3", "n1")
    assert not wiring.apart("n2", "n3")
    assert not wiring.apart("n1", "n4"), "on no side: reached by all"
    other = wiring.cut([{"n2", "metadata"}, {"n3"}])
    assert wiring.apart("n3", "metadata")
    wiring.mend(cut)
    assert not wiring.apart("n1", "n2")
    wiring.mend(other)
    assert not wiring.apart("n3", "metadata")


class Loop:
    """A transport that gives back what it is sent."""

    peer = "other:1"

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.closed = False

    async def receive(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"".join(self.data)

    async def receive_into(self, room: memoryview) -> int:
        data = await self.receive(len(room))
        room[: len(data)] = data
        return len(data)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        for buffer in buffers:
            assert isinstance(buffer, bytes)
            self.data.append(buffer)

    def send_nowait(self, data: bytes) -> int:
        self.data.append(data)
        return len(data)

    def close(self) -> None:
        self.closed = True


def test_bytes_wait_at_a_cut_and_pass_when_it_is_mended() -> None:
    wiring, inner = Wiring(), Loop()
    wire = Wire(inner, wiring, "n1", "n2")
    received: list[bytes] = []

    async def main() -> None:
        assert wire.send_nowait(b"a") == 1
        cut = wiring.cut([{"n1"}, {"n2"}])
        assert wire.send_nowait(b"b") == 0

        async def talk() -> None:
            await wire.send([b"c"])
            received.append(await wire.receive(10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await trio.testing.wait_all_tasks_blocked()
            assert inner.data == [b"a"]
            wiring.mend(cut)
        assert received == [b"ac"]
        wire.close()
        assert inner.closed

    trio.run(main)
