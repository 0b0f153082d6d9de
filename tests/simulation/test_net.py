"""The simulated network behaves like TCP, and breaks like it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio

from tailrace.simulation.life import Life, NodeDead
from tailrace.simulation.link import WINDOW_BYTES
from tailrace.simulation.net import SimNet, SimTransport
from tailrace.simulation.seeding import Trace, run_seeded


@dataclass
class Pair:
    """A client and a server that are connected."""

    net: SimNet
    client_life: Life
    server_life: Life
    client: SimTransport
    server: SimTransport


def with_pair(scenario: Callable[[Pair], Awaitable[None]], seed: int = 1) -> None:
    async def main(trace: Trace) -> None:
        net = SimNet(seed)
        client, server = Life("c1"), Life("n1")
        listener = await net.server(server).listen("127.0.0.1", 7400)
        here = await net.client(client).connect("n1", 7400, None)
        there = await listener.accept()
        with trio.fail_after(100_000):
            await scenario(Pair(net, client, server, here, there))

    run_seeded(main, seed)


async def receive_all(transport: SimTransport, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await transport.receive(65_536)
    return data


async def receive_until_reset(transport: SimTransport) -> int:
    arrived = 0
    try:
        while True:
            arrived += len(await transport.receive(4096))
    except ConnectionResetError:
        return arrived


async def send_until_reset(transport: SimTransport) -> None:
    with pytest.raises(ConnectionResetError):
        await transport.send([bytes(WINDOW_BYTES + 1)])


def test_bytes_arrive_later_in_order_and_in_pieces() -> None:
    async def scenario(pair: Pair) -> None:
        data = bytes(range(256)) * 256
        before = trio.current_time()
        await pair.client.send([data[:10], memoryview(data)[10:]])
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < len(data):
            pieces.append(await pair.server.receive(20_000))
        assert b"".join(pieces) == data
        assert trio.current_time() > before
        assert len({len(piece) for piece in pieces}) > 1
        assert pair.server.peer.startswith("c1:")
        assert pair.client.peer == "n1:7400"

    with_pair(scenario)


def test_a_sender_waits_for_a_reader() -> None:
    async def scenario(pair: Pair) -> None:
        with trio.move_on_after(1000) as waited:
            await pair.client.send([bytes(WINDOW_BYTES + 1)])
        assert waited.cancelled_caught
        assert pair.client.send_nowait(b"more") == 0
        await pair.server.receive(1 << 20)
        assert pair.client.send_nowait(b"more") > 0

    with_pair(scenario)


def test_an_orderly_end_comes_after_the_bytes() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.client.send([b"last words"])
        pair.client.close()
        assert await receive_all(pair.server, 10) == b"last words"
        assert await pair.server.receive(10) == b""
        with pytest.raises(ConnectionAbortedError):
            await pair.client.receive(10)
        with pytest.raises(ConnectionResetError):
            await pair.server.send([b"nobody listens"])

    with_pair(scenario)


def test_a_cut_link_delays_until_it_heals() -> None:
    async def scenario(pair: Pair) -> None:
        pair.net.cut("c1", "n1")
        await pair.client.send([b"into the dark"])
        await pair.server.send([b"the other way is open"])
        assert len(await receive_all(pair.client, 21)) == 21
        with trio.move_on_after(60) as waited:
            await pair.server.receive(100)
        assert waited.cancelled_caught
        pair.net.heal()
        assert await receive_all(pair.server, 13) == b"into the dark"

    with_pair(scenario)


def test_a_reset_reaches_both_ends_after_some_of_the_bytes() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.client.send([b"x" * 1000])
        pair.net.reset_some(1.0)
        arrived = await receive_until_reset(pair.server)
        assert arrived <= 1000
        with pytest.raises(ConnectionResetError):
            await pair.client.receive(10)

    with_pair(scenario)


def test_a_connection_can_break_at_a_random_byte() -> None:
    async def scenario(pair: Pair) -> None:
        pair.net.reset_share, pair.net.reset_bytes_max = 1.0, 1000
        listener = pair.net.listener("n1", 7400)
        assert listener is not None
        here = await pair.net.client(pair.client_life).connect("n1", 7400, None)
        there = await listener.accept()
        async with trio.open_nursery() as nursery:
            for transport in (here, there):
                nursery.start_soon(send_until_reset, transport)
        arrived = [await receive_until_reset(here), await receive_until_reset(there)]
        assert min(arrived) < 1000

    with_pair(scenario)


def test_nobody_listens() -> None:
    async def scenario(pair: Pair) -> None:
        net = pair.net.client(pair.client_life)
        with pytest.raises(ConnectionRefusedError):
            await net.connect("n1", 1, None)
        pair.net.power_off(pair.server_life)
        with trio.move_on_after(60) as waited:
            await net.connect("n1", 7400, None)
        assert waited.cancelled_caught, "a machine without power refuses nothing"
        pair.net.power_on("n1")
        with pytest.raises(ConnectionRefusedError):
            await net.connect("n1", 7400, None)

    with_pair(scenario)


def test_a_killed_process_resets_its_connections() -> None:
    async def scenario(pair: Pair) -> None:
        pair.server_life.dead = True
        pair.net.process_died(pair.server_life)
        with pytest.raises(ConnectionResetError):
            await pair.client.receive(10)
        with pytest.raises(NodeDead):
            await pair.server.send([b"zombie"])
        with pytest.raises(NodeDead):
            await pair.server.receive(1)

    with_pair(scenario)


def test_peers_of_a_powerless_machine_learn_of_it_when_it_is_back() -> None:
    async def scenario(pair: Pair) -> None:
        pair.net.power_off(pair.server_life)
        await pair.client.send([b"hello?"])
        with trio.move_on_after(600) as waited:
            await pair.client.receive(10)
        assert waited.cancelled_caught
        pair.net.power_on("n1")
        with pytest.raises(ConnectionResetError):
            await pair.client.send([b"hello?"])

    with_pair(scenario)


def test_a_closed_listener_accepts_no_more() -> None:
    async def scenario(pair: Pair) -> None:
        server = pair.net.server(pair.server_life)
        listener = await server.listen("127.0.0.1", 0)
        with pytest.raises(OSError, match="in use"):
            await server.listen("127.0.0.1", listener.port)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await listener.accept()

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()

    with_pair(scenario)


def test_a_dead_receiver_task_does_not_wait_for_ever() -> None:
    async def scenario(pair: Pair) -> None:
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await pair.server.receive(1)

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            pair.server.close()

    with_pair(scenario)


def test_a_wall_stands_also_before_hosts_that_come_later() -> None:
    async def main() -> None:
        net = SimNet(1)
        early = net.link("a", "b")
        net.wall(lambda source, target: target == "b")
        assert early.cut
        assert net.link("c", "b").cut
        assert not net.link("b", "c").cut
        net.wall(lambda source, target: source == "b")
        assert (early.cut, net.link("b", "c").cut) == (False, True)
        net.heal()
        assert not any(link.cut for link in net.links())

    trio.run(main)
