"""A request goes to whoever it concerns: two real brokers, and metadata that name the other one."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tailrace.broker import gateway as module
from tailrace.broker.dialling import Dialler
from tailrace.broker.gateway import Gateway, leader_of
from tailrace.broker.members import Peer, PeerAddress
from tailrace.broker.peer import Peers
from tailrace.broker.security import Credentials
from tailrace.broker.server import Ready, Server
from tailrace.broker.system import system_world
from tailrace.broker.world import Drop, Fault, World
from tailrace.protocol.errors import (
    GroupNotFound,
    PartitionNotFound,
    PartitionOffline,
    RequestTimeout,
    TopicNotFound,
)
from tailrace.protocol.messages import (
    Api,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DescribeGroupRequest,
    DescribeGroupResponse,
    FetchResponse,
    MetadataResponse,
    PartitionMetadata,
    ProduceResponse,
    StartOffset,
    TopicMetadata,
)
from tests.broker import harness
from tests.broker.harness import connected, run, serving


class Elsewhere(Gateway):
    """Its metadata are those of another broker, which leads everything and has every group."""

    def __init__(self, here: Server, there: Server, ready: Ready, peers: Peers) -> None:
        assert here.gateway is not None
        assert there.gateway is not None
        super().__init__(here.gateway.node, peers)
        self.other = there.gateway
        self.where = PeerAddress(*ready.addresses["client"], tls=False)

    async def metadata(self, *topics: str, auto_create: bool = False) -> MetadataResponse:
        return await self.other.metadata(*topics, auto_create=auto_create)

    def peer(self, broker_id: str) -> Peer | None:
        assert broker_id == "n2"
        return Peer("n2", self.where)

    async def coordinator(self, group: str) -> str:
        return "n2"


@asynccontextmanager
async def two_brokers(
    tmp_path: Path, change: Callable[[World], World] = lambda world: world
) -> AsyncGenerator[tuple[Elsewhere, Ready]]:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    async with (
        serving(tmp_path / "here") as (here, _),
        serving(tmp_path / "there", {"broker.id": "n2"}, change) as (there, ready),
        trio.open_nursery() as nursery,
    ):
        # They are no cluster yet: each has its own id, and a broker asks only its own.
        credentials = Credentials(harness.config(tmp_path))
        dialler = Dialler(*(system_world(), "n1", ready.cluster_id, credentials), listener="client")
        peers = Peers(dialler.dial)
        nursery.start_soon(peers.run)
        await trio.testing.wait_all_tasks_blocked()
        yield Elsewhere(here, there, ready, peers), ready
        nursery.cancel_scope.cancel()


def test_what_this_broker_leads_needs_no_metadata(tmp_path: Path) -> None:
    """Of 1,000 partitions they took 3 ms, for each fetch of each tail."""

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            await client.create("orders", partitions=2)
            gateway = server.gateway
            assert gateway is not None
            gateway.metadata = unasked  # type: ignore[method-assign]
            request = DeleteRecordsRequest("orders", (StartOffset(1, 0),))
            await gateway.ask_leader("orders", 1, request, DeleteRecordsResponse)
            with pytest.raises(AssertionError, match="asked"):
                await gateway.ask_leader("orders", 2, request, DeleteRecordsResponse)

    async def unasked(*topics: str, auto_create: bool = False) -> MetadataResponse:
        raise AssertionError("asked")

    run(main)


def test_what_another_broker_leads_is_asked_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_brokers(tmp_path) as (gateway, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
            entry = harness.batch(topic_id, [b"a", b"b", b"c"])
            request = harness.produce_request(topic_id, [entry])
            written, _ = await gateway.ask_leader("orders", 0, request, ProduceResponse, entry)
            assert (written.results[0].error, written.results[0].base_offset) == (None, 0)
            read, data = await gateway.ask_leader(
                "orders", 0, harness.fetch_request(topic_id), FetchResponse
            )
            assert read.results[0].high_watermark == 3
            assert len(data) == read.results[0].length == len(entry)
            removal = DeleteRecordsRequest("orders", (StartOffset(0, 2),))
            await gateway.ask_leader("orders", 0, removal, DeleteRecordsResponse)
            topic = await gateway.topic("orders")
            assert await gateway.log_starts([(topic, 0)]) == [2]
            with pytest.raises(TopicNotFound):
                await gateway.ask_leader("nothing", 0, removal, DeleteRecordsResponse)

    run(main)


def test_a_group_is_asked_of_its_coordinator(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_brokers(tmp_path) as (gateway, _):
            with pytest.raises(GroupNotFound):
                await gateway.ask_group(
                    "billing", DescribeGroupRequest("billing"), DescribeGroupResponse
                )

    run(main)


def test_many_requests_share_one_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_brokers(tmp_path) as (gateway, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
            ends: list[int] = []

            async def read() -> None:
                found, _ = await gateway.ask_leader(
                    "orders", 0, harness.fetch_request(topic_id), FetchResponse
                )
                ends.append(found.results[0].high_watermark)

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(read)
            assert ends == [0] * 10
            assert len(gateway.other.node.connections) == 1

    run(main)


def test_a_connection_that_ended_is_opened_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with two_brokers(tmp_path) as (gateway, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
            request = harness.fetch_request(topic_id)
            for _ in range(3):
                await gateway.ask_leader("orders", 0, request, FetchResponse)
                for connection in list(gateway.other.node.connections):
                    connection.close()

    run(main)


def test_a_broker_that_is_not_there_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", 0.01)

    async def main() -> None:
        async with two_brokers(tmp_path) as (gateway, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
            gateway.where = PeerAddress("127.0.0.1", 1, tls=False)
            with pytest.raises(RequestTimeout, match=r"T034: orders\[0\] got no answer"):
                await gateway.ask_leader(
                    "orders", 0, harness.fetch_request(topic_id), FetchResponse
                )

    run(main)


def test_an_answer_that_was_lost_is_asked_for_again_only_where_that_does_no_harm(
    tmp_path: Path,
) -> None:
    asked: list[Api] = []

    def drop_first(api: Api) -> Fault | None:
        if api not in (Api.FETCH, Api.PRODUCE):
            return None
        asked.append(api)
        return Drop() if asked.count(api) == 1 else None

    async def main() -> None:
        change = partial(replace, faults=drop_first)
        async with two_brokers(tmp_path, change) as (gateway, ready):
            async with connected(ready) as client:
                topic_id = await client.create("orders")
            entry = harness.batch(topic_id, [b"a"])
            produce = harness.produce_request(topic_id, [entry])
            with pytest.raises(RequestTimeout):
                await gateway.ask_leader("orders", 0, produce, ProduceResponse, entry)
            await gateway.ask_leader("orders", 0, harness.fetch_request(topic_id), FetchResponse)
            assert asked == [Api.PRODUCE, Api.FETCH, Api.FETCH]

    run(main)


def test_who_leads_is_read_from_metadata() -> None:
    part = PartitionMetadata(1, "n2", 3, ("n2",), ("n2",), 0, 1)
    topic = TopicMetadata("orders", None, b"t" * 16, False, False, 1, "fsync", (part,))
    assert leader_of(topic, 1) == "n2"
    with pytest.raises(PartitionNotFound):
        leader_of(topic, 0)
    with pytest.raises(PartitionOffline, match="no leader"):
        leader_of(replace(topic, partitions=(replace(part, leader=None),)), 1)
