"""What the tests of compaction share: a place that outlives brokers, and keys to be cleaned."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from tailrace.broker.cleaner import CompactionStatus
from tailrace.broker.heavy import OffloadHeavy
from tailrace.broker.server import Server
from tailrace.broker.world import Heavy, Progress, World, no_progress
from tailrace.protocol.batch import decode_columns, encode_batch, header_seed, parse_header
from tailrace.protocol.messages import (
    ProduceResponse,
)
from tailrace.storage.jobs import Job, Result
from tailrace.storage.rewrite import offsets_of
from tailrace.storage.survey import CompactJob
from tests.broker.harness import Client, connected, produce_request, serving

EAGER: dict[str, str] = {
    "cleanup": "compact",
    "segment_size": "4KiB",
    "segment_age": "1ms",
    "compaction_lag_max": "1h",
    "compaction_dirty_ratio": "0",
}
SLOW = {**EAGER, "segment_age": "1d"}  # the open segment stays open
Found = dict[int, tuple[bytes | None, bytes | None]]


class ScriptedHeavy:
    """Heavy work done here; before each job ``before`` is called, which may raise or wait."""

    def __init__(self, inner: Heavy) -> None:
        self.inner = inner
        self.jobs: list[Job] = []
        self.asked = trio.Event()
        self.allowed: trio.Event | None = None  # wait for it before compacting
        self.failures: list[Exception] = []
        self.before: Callable[[Job], Awaitable[None]] | None = None

    async def run(
        self, job: Job, *, rate_bytes: int | None = None, progress: Progress = no_progress
    ) -> Result:
        self.jobs.append(job)
        if self.failures:
            raise self.failures.pop(0)
        if self.before is not None:
            await self.before(job)
        if isinstance(job, CompactJob) and self.allowed is not None:
            self.asked.set()
            await self.allowed.wait()
        progress(0)
        return await self.inner.run(job, rate_bytes=rate_bytes, progress=progress)

    async def rest(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Place:
    """A data directory and brokers on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heavy: ScriptedHeavy

    @asynccontextmanager
    async def broker(self) -> AsyncGenerator[tuple[Server, Client]]:
        def change(world: World) -> World:
            self.heavy = ScriptedHeavy(OffloadHeavy(world.offload, world.disk))
            return replace(world, heavy=self.heavy)

        async with serving(self.path, {}, change) as (server, ready), connected(ready) as client:
            yield server, client

    def files(self, pattern: str) -> list[Path]:
        return sorted((self.path / "data").rglob(pattern))


async def fill(
    client: Client,
    topic_id: bytes,
    batches: int = 12,
    key_of: Callable[[int], int] = lambda n: n % 5,
) -> Found:
    """Batches of 1 KB over a few keys, three to a segment; what must stay of them."""
    newest: dict[bytes, tuple[int, bytes]] = {}
    for number in range(batches):
        key, value = b"k%d" % key_of(number), b"%d" % number + bytes(1_000)
        entry = encode_batch(
            header_seed(topic_id, 0), keys=[key], values=[value], timestamps=1, compression="none"
        )
        answer, _ = await client.ask(produce_request(topic_id, [entry]), ProduceResponse, entry)
        assert answer.results[0].error is None
        newest[key] = (answer.results[0].base_offset, value)
    return {offset: (key, value) for key, (offset, value) in newest.items()}


async def read(client: Client, topic_id: bytes) -> Found:
    """Every record there is."""
    found: Found = {}
    offset = 0
    while True:
        answer, body = await client.fetch(topic_id, offset)
        assert answer.results[0].error is None, answer.results[0].error
        if not body:
            return found
        position = 0
        while position < len(body):
            header = parse_header(body, position)
            columns = decode_columns(body[position:], header)
            keys = columns.keys or [None] * len(columns.values)
            rows = zip(offsets_of(header, columns), keys, columns.values, strict=True)
            found |= {at: (key, value) for at, key, value in rows}
            position += header.size_bytes
            offset = header.next_offset


def status(server: Server) -> CompactionStatus:
    """Of the only partition."""
    node = server._node
    assert node is not None
    (partition,) = node.shelf
    found = node.cleaner.status(partition)
    assert found is not None
    return found


def runs(server: Server, result: str) -> float:
    return server.metrics.compaction_runs.of("orders", result).value
