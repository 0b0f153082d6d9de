"""A broker in the test's own trio run, on real sockets and files, and a bare client for it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from tailrace.broker.config import Config, from_mapping
from tailrace.broker.server import Ready, Server
from tailrace.broker.system import system_world
from tailrace.broker.world import World
from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.protocol.connection import Answer, ClientConnection
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    ConfigItem,
    CreateTopicRequest,
    DeleteTopicRequest,
    DeleteTopicResponse,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    HelloResponse,
    MetadataRequest,
    MetadataResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
    Request,
    Response,
    TopicResponse,
)

R = TypeVar("R", bound=Response)
Settings = dict[str, str | int | float | bool]
NOW_MS = 1_763_690_000_000


def config(tmp_path: Path, settings: Settings | None = None) -> Config:
    return from_mapping(
        {
            "listeners.client.bind": "127.0.0.1:0",
            "http.bind": "",
            "storage.data_dir": str(tmp_path / "data"),
            "storage.min_free": "1B",
            "topic.segment_size": "1MiB",
            **(settings or {}),
        }
    )


@asynccontextmanager
async def serving(
    tmp_path: Path,
    settings: Settings | None = None,
    change: Callable[[World], World] = lambda world: world,
) -> AsyncIterator[tuple[Server, Ready]]:
    """A broker that serves; stopped gracefully at the end."""
    server = Server(change(system_world()), config(tmp_path, settings))
    ended = trio.Event()

    async def serve(task_status: trio.TaskStatus[Ready]) -> None:
        try:
            await server.run(task_status=task_status)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        ready = await nursery.start(serve)
        try:
            yield server, ready
            server.stop()
            with trio.fail_after(10):
                await ended.wait()
        finally:
            server.kill()


def request_memory(server: Server) -> float:
    """Bytes of the memory budget in use, as a scrape would show them."""
    read = server.metrics.request_memory.read
    assert read is not None
    return read()[()]


class Client:
    """One connection; requests may be pipelined."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], name: str = "test"
    ) -> None:
        self.stream = stream
        self.protocol = ClientConnection(name, "tailrace/test")
        self.answers: dict[int, Answer] = {}

    async def hello(self) -> HelloResponse:
        await self.stream.send_all(self.protocol.open())
        while self.protocol.hello is None:
            await self.receive()
        self.answers.clear()
        return self.protocol.hello

    async def receive(self) -> None:
        data = await self.stream.receive_some(1 << 20)
        if not data:
            raise trio.EndOfChannel
        for answer in self.protocol.feed(bytes(data)):
            self.answers[answer.correlation_id] = answer

    async def send(self, message: Request, body: bytes = b"") -> int:
        number, head = self.protocol.request(message, len(body))
        await self.stream.send_all(head + body)
        return number

    async def wait(self, number: int) -> Answer:
        with trio.fail_after(20):
            while number not in self.answers:
                await self.receive()
        return self.answers.pop(number)

    async def ask(self, message: Request, kind: type[R], body: bytes = b"") -> tuple[R, memoryview]:
        answer = await self.wait(await self.send(message, body))
        if isinstance(answer.message, TailraceError):
            raise answer.message
        assert isinstance(answer.message, kind)
        return answer.message, answer.body

    # ── shortcuts ────────────────────────────────────────────────────────────────────────────

    async def create(self, name: str, /, partitions: int = 1, **settings: str) -> bytes:
        items = tuple(ConfigItem(key, value) for key, value in settings.items())
        request = CreateTopicRequest(name, partitions, None, items, False)
        answer, _ = await self.ask(request, TopicResponse)
        return answer.topic.topic_id

    async def delete(self, name: str) -> bytes:
        answer, _ = await self.ask(DeleteTopicRequest(name), DeleteTopicResponse)
        return answer.topic_id

    async def metadata(self, *names: str, auto_create: bool = False) -> MetadataResponse:
        request = MetadataRequest(names or None, auto_create)
        return (await self.ask(request, MetadataResponse))[0]

    async def produce(
        self, topic_id: bytes, values: Sequence[bytes], partition: int = 0, acks: int = -1
    ) -> ProduceResult:
        """The result of one batch."""
        entry = batch(topic_id, values, partition)
        request = produce_request(topic_id, [entry], partition, acks)
        answer, _ = await self.ask(request, ProduceResponse, entry)
        return answer.results[0]

    async def fetch(
        self,
        topic_id: bytes,
        offset: int = 0,
        partition: int = 0,
        wait_ms: int = 0,
        bytes_min: int = 1,
        bytes_max: int = 1 << 20,
    ) -> tuple[FetchResponse, memoryview]:
        request = fetch_request(topic_id, offset, partition, wait_ms, bytes_min, bytes_max)
        return await self.ask(request, FetchResponse)


def fetch_request(
    topic_id: bytes,
    offset: int = 0,
    partition: int = 0,
    wait_ms: int = 0,
    bytes_min: int = 1,
    bytes_max: int = 1 << 20,
) -> FetchRequest:
    wanted = FetchPartition(topic_id, partition, offset, bytes_max, -1, -1, -1)
    return FetchRequest(wait_ms, bytes_min, bytes_max, 0, None, -1, (wanted,))


def batch(
    topic_id: bytes,
    values: Sequence[bytes],
    partition: int = 0,
    timestamp: int = NOW_MS,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    return encode_batch(
        header_seed(topic_id, partition),
        values=list(values),
        keys=None,
        timestamps=[timestamp] * len(values),
        headers=None,
        compression="none",
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
    )


def produce_request(
    topic_id: bytes, entries: Sequence[bytes], partition: int = 0, acks: int = -1
) -> ProduceRequest:
    parts = tuple(ProducePartition(topic_id, partition, len(entry)) for entry in entries)
    return ProduceRequest(acks, 30_000, parts)


@asynccontextmanager
async def connected(ready: Ready, name: str = "test") -> AsyncIterator[Client]:
    """A client that has said hello."""
    host, port = ready.addresses["client"]
    client = Client(await trio.open_tcp_stream(host, port), name)
    try:
        await client.hello()
        yield client
    finally:
        await trio.aclose_forcefully(client.stream)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """In trio, bounded."""

    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded)
