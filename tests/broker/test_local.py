"""A request of the broker's own rooms is answered as a client's, without a socket."""

from pathlib import Path

import pytest
import trio

from tailrace.broker.local import COPY_BYTES_MAX, LocalCaller
from tailrace.broker.node import Node
from tailrace.broker.server import Server
from tailrace.protocol.errors import TopicExists, TopicNotFound
from tailrace.protocol.messages import (
    CreateTopicRequest,
    DeleteTopicRequest,
    FetchResponse,
    MetadataRequest,
    MetadataResponse,
    ProduceResponse,
    Request,
    Response,
    TopicResponse,
)
from tests.broker import harness
from tests.broker.harness import request_memory, run, serving


def node_of(server: Server) -> Node:
    assert server.gateway is not None
    return server.gateway.node


async def ask(server: Server, request: Request, body: bytes = b"") -> tuple[Response, bytes]:
    return await LocalCaller(node_of(server), "a room").ask(request, bytearray(body))


def test_answers_now_later_or_with_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready):
            found, _ = await ask(server, MetadataRequest((), False))  # answered at once
            assert isinstance(found, MetadataResponse)
            host, port = ready.addresses["client"]
            assert (found.brokers[0].host, found.brokers[0].port) == (host, port)
            create = CreateTopicRequest("orders", None, None, (), False)
            assert isinstance((await ask(server, create))[0], TopicResponse)  # by a task
            with pytest.raises(TopicExists):
                await ask(server, create)
            with pytest.raises(TopicNotFound):
                await ask(server, DeleteTopicRequest("nothing"))
            assert request_memory(server) == 0

    run(main)


@pytest.mark.parametrize("size_bytes", [100, COPY_BYTES_MAX + 1])
def test_batches_go_in_and_come_out(tmp_path: Path, size_bytes: int) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, _):
            create = CreateTopicRequest("orders", None, None, (), False)
            made, _ = await ask(server, create)
            assert isinstance(made, TopicResponse)
            topic_id = made.topic.topic_id
            entry = harness.batch(topic_id, [b"x" * size_bytes])
            written, _ = await ask(server, harness.produce_request(topic_id, [entry]), entry)
            assert isinstance(written, ProduceResponse)
            assert written.results[0].error is None
            read, data = await ask(server, harness.fetch_request(topic_id))
            assert isinstance(read, FetchResponse)
            assert read.results[0].length == len(data) == len(entry)
            assert request_memory(server) == 0

    run(main)


def test_a_cancelled_long_poll_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, _):
            create = CreateTopicRequest("orders", None, None, (), False)
            made, _ = await ask(server, create)
            assert isinstance(made, TopicResponse)
            request = harness.fetch_request(made.topic.topic_id, wait_ms=30_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, server, request)
                while not node_of(server).parked:  # noqa: ASYNC110 there is no event for it
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            assert not node_of(server).parked
            assert request_memory(server) == 0

    run(main)
