"""One connection: planned faults, memory, and bugs that must not spread."""

import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker import handlers
from tailrace.broker.server import Server
from tailrace.broker.world import Delay, Drop, Fail, Fault, Hold, World
from tailrace.protocol.batch import BatchHeader, decode_columns, header_seed, scan_one
from tailrace.protocol.errors import NotLeader, to_wire
from tailrace.protocol.messages import Api, MetadataRequest, MetadataResponse, ProduceResponse
from tailrace.protocol.texts import not_leader
from tests.broker.harness import (
    batch,
    connected,
    fetch_request,
    produce_request,
    request_memory,
    run,
    serving,
)


async def memory_is(server: Server, wanted: Callable[[float], bool]) -> None:
    with trio.fail_after(5):
        while not wanted(request_memory(server)):  # noqa: ASYNC110  nobody rings
            await trio.sleep(0.001)


def faulty(plan: dict[Api, Fault]) -> Callable[[World], World]:
    return lambda world: replace(world, faults=plan.get)


def test_planned_faults_befall_requests(tmp_path: Path) -> None:
    plan: dict[Api, Fault] = {}

    async def main() -> None:
        async with serving(tmp_path, change=faulty(plan)) as (server, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
                plan[Api.PRODUCE] = Fail(to_wire(not_leader("orders", 0, broker="n1")))
                with pytest.raises(NotLeader):
                    await client.produce(topic_id, [b"a"])
                plan[Api.PRODUCE] = Delay(0.03)
                began = trio.current_time()
                entry = batch(topic_id, [b"b"])
                slow = await client.send(produce_request(topic_id, [entry]), entry)
                behind = await client.send(MetadataRequest(None, False))
                assert isinstance((await client.wait(behind)).message, MetadataResponse)
                assert trio.current_time() - began >= 0.03
                assert isinstance((await client.wait(slow)).message, ProduceResponse)
                plan[Api.PRODUCE] = Hold()
                await client.send(produce_request(topic_id, [entry]), entry)
                await client.metadata()
                assert len(server.open_requests()) == 1
                plan[Api.PRODUCE] = Drop()
                with pytest.raises((trio.EndOfChannel, trio.BrokenResourceError)):
                    await client.produce(topic_id, [b"c"])
            plan.clear()
            async with connected(ready) as client:
                assert (await client.produce(topic_id, [b"d"])).base_offset == 1

    run(main)


def test_all_requests_together_keep_to_the_memory_and_all_are_served(tmp_path: Path) -> None:
    peak: list[int] = [0]

    async def main() -> None:
        settings: dict[str, str | int | float | bool] = {
            "limits.request_memory": "16MiB",
            "topic.segment_size": "64MiB",
            "topic.max_record": "8MiB",
        }
        async with serving(tmp_path, settings) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            entry = batch(topic_id, [bytes(6 << 20)])

            async def send() -> None:
                async with connected(ready) as other:
                    answer, _ = await other.ask(
                        produce_request(topic_id, [entry]), ProduceResponse, entry
                    )
                    assert answer.results[0].error is None

            async def watch() -> None:
                while True:
                    peak[0] = max(peak[0], int(request_memory(server)))
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as background:
                background.start_soon(watch)
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(send)
                background.cancel_scope.cancel()
            assert request_memory(server) == 0

    run(main)
    assert 0 < peak[0] <= 17 << 20


def test_who_claims_a_large_body_gets_memory_for_it_only_within_the_budget(tmp_path: Path) -> None:
    async def main() -> None:
        settings: dict[str, str | int | float | bool] = {"limits.request_memory": "16MiB"}
        async with serving(tmp_path, settings) as (server, ready), AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(ready)) for _ in range(120)]
            request = produce_request(bytes(16), [bytes(200_000)])
            tracemalloc.start()
            for client in clients:
                _, head = client.protocol.request(request, 200_000)
                await client.stream.send_all(head + bytes(1_000))
            await trio.sleep(0.2)
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert 15 << 20 < request_memory(server) <= 16 << 20
            assert held < 19 << 20

    run(main)


def test_nothing_is_reserved_for_a_peer_that_is_gone(tmp_path: Path) -> None:
    """It owes the rest of a large frame, takes no answers, and resets the connection."""

    async def main() -> None:
        async with (
            serving(tmp_path) as (server, ready),
            connected(ready) as other,
            connected(ready) as client,
        ):
            topic_id = await other.create("orders")
            for _ in range(15):
                await client.send(fetch_request(topic_id, wait_ms=20_000))
            entry = batch(topic_id, [bytes(8 << 20)])
            _, head = client.protocol.request(produce_request(topic_id, [entry]), len(entry))
            await client.stream.send_all(head + entry[:1_000])
            await memory_is(server, lambda used: used > 8 << 20)
            await other.produce(topic_id, [os.urandom(1_000_000)])
            await trio.sleep(0.2)  # more than the system takes is to be sent
            await client.stream.send_all(entry[1_000:50_000])
            await trio.sleep(0.05)
            reset = struct.pack("ii", 1, 0)
            client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            await client.stream.aclose()
            await memory_is(server, lambda used: used == 0)

    run(main)


def test_what_was_reserved_for_a_large_head_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            names = tuple("topic-" + "x" * 200 + str(number) for number in range(900))
            number, data = client.protocol.request(MetadataRequest(names, False))
            assert len(data) > 180_000
            await client.stream.send_all(data[:1_000])
            await memory_is(server, lambda used: used > 0)
            await client.stream.send_all(data[1_000:])
            await client.wait(number)
            assert request_memory(server) == 0

    run(main)


def test_large_batches_are_what_was_sent_though_their_memory_is_used_again(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        settings: dict[str, str | int | float | bool] = {"topic.max_record": "1MiB"}
        async with serving(tmp_path, settings) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            values = [bytes([number]) * 150_000 for number in range(60)]
            numbers: list[int] = []
            for value in values:
                entry = batch(topic_id, [value])
                numbers.append(await client.send(produce_request(topic_id, [entry]), entry))
                if len(numbers) == 8:
                    await client.wait(numbers.pop(0))
            for number in numbers:
                await client.wait(number)
            for offset, value in enumerate(values):
                _, found = await client.fetch(topic_id, offset, bytes_max=1_000)
                header = scan_one(found, 0, header_seed(topic_id, 0))
                assert isinstance(header, BatchHeader)
                assert decode_columns(found, header).values == [value]

    run(main)


def test_a_bug_in_a_handler_closes_its_connection_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("planted")

    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as witness:
            topic_id = await witness.create("orders")
            monkeypatch.setitem(handlers.HANDLERS, Api.DESCRIBE_CLUSTER, broken)
            async with connected(ready, "unlucky") as client:
                monkeypatch.setitem(handlers.HANDLERS, Api.METADATA, broken)
                with pytest.raises(trio.EndOfChannel):
                    await client.metadata()
            assert (await witness.produce(topic_id, [b"a"])).error is None

    run(main)
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "connection.failed"]
    assert "'unlucky' at 127.0.0.1:" in record.getMessage()


def test_a_broken_invariant_ends_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise AssertionError("planted")

    async def crash() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            monkeypatch.setitem(handlers.HANDLERS, Api.METADATA, broken)
            await client.send(MetadataRequest(None, False))
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await crash()
        assert raised.group_contains(AssertionError, match="planted")

    run(main)


def test_requests_that_came_at_once_are_taken_up_as_their_answers_are_taken(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            await client.create("wide", 500)
            answered = server.metrics.requests.of("metadata", "ok")
            requests = [client.protocol.request(MetadataRequest(None, False)) for _ in range(900)]
            await client.stream.send_all(b"".join(frame for _, frame in requests))
            before = -1.0
            while answered.value != before:
                before = answered.value
                await trio.sleep(0.05)
            assert 0 < before < 750  # of some 25 KB each
            for number, _ in requests:
                assert isinstance((await client.wait(number)).message, MetadataResponse)

    run(main)


def test_many_requests_that_came_at_once_do_not_keep_others_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            await client.create("wide", 100)
            answered = server.metrics.requests.of("metadata", "ok")
            requests = [client.protocol.request(MetadataRequest(None, False)) for _ in range(500)]
            async with connected(ready) as other:
                await client.stream.send_all(b"".join(frame for _, frame in requests))
                await other.metadata("wide")
                assert answered.value < 250

    run(main)
