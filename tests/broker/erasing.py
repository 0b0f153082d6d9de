"""What the tests of erasures and log starts share: a place that outlives brokers, and requests."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.heavy import OffloadHeavy
from tailrace.broker.server import Ready, Server
from tailrace.broker.world import Heavy, Progress, World, no_progress
from tailrace.protocol.batch import BatchHeader, decode_columns, encode_batch, header_seed, scan_one
from tailrace.protocol.columns import Columns
from tailrace.protocol.messages import (
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    EraseRequest,
    ErasureResponse,
    GetErasureRequest,
    ProduceResponse,
    RecordPosition,
    StartOffset,
)
from tailrace.storage.jobs import Job, Result
from tailrace.storage.rewrite import offsets_of
from tests.broker.harness import NOW_MS, Client, connected, produce_request, serving

SECRET = b"alice has a secret"
END = -1  # in DeleteRecords: the high watermark
Record = tuple[int, bytes | None, bytes]


class HeldHeavy:
    """Heavy work that may be held up or fail, before it begins."""

    def __init__(self, heavy: Heavy) -> None:
        self.heavy = heavy
        self.held = False
        self.hold_at = 0  # the number of the job to be held, from 1
        self.failures: list[Exception] = []
        self.failing: dict[int, Exception] = {}  # jobs that fail, by their number from 1
        self.jobs: list[Job] = []
        self.asked = trio.Event()
        self.changed = trio.Event()

    async def run(
        self, job: Job, *, rate_bytes: int | None = None, progress: Progress = no_progress
    ) -> Result:
        self.jobs.append(job)
        self.held = self.held or len(self.jobs) == self.hold_at
        if len(self.jobs) >= self.hold_at:
            self.asked.set()
        while self.held:
            await self.changed.wait()
        if self.failures:
            raise self.failures.pop(0)
        if (error := self.failing.pop(len(self.jobs), None)) is not None:
            raise error
        return await self.heavy.run(job, rate_bytes=rate_bytes, progress=progress)

    def go(self) -> None:
        self.held = False
        self.changed.set()

    async def rest(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Place:
    """One data directory, and brokers that serve it one after another."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.heavy: HeldHeavy

    @asynccontextmanager
    async def broker(
        self, held: bool = False, **settings: str
    ) -> AsyncGenerator[tuple[Server, Ready, Client]]:
        def change(world: World) -> World:
            self.heavy = HeldHeavy(OffloadHeavy(world.offload, world.disk))
            self.heavy.held = held
            return replace(world, heavy=self.heavy)

        dotted = {name.replace("__", "."): value for name, value in settings.items()}
        async with (
            serving(self.path, {"topic.segment_size": "64KiB", **dotted}, change) as (
                server,
                ready,
            ),
            connected(ready) as client,
        ):
            yield server, ready, client

    def holding(self, needle: bytes) -> list[str]:
        """Files below the data directory in which it stands."""
        files = (one for one in (self.path / "data").rglob("*") if one.is_file())
        return sorted(one.name for one in files if needle in one.read_bytes())


async def send(
    client: Client,
    topic_id: bytes,
    records: Sequence[tuple[bytes | None, bytes]],
    partition: int = 0,
) -> int:
    """One batch of (key, value); its base offset."""
    entry = encode_batch(
        header_seed(topic_id, partition),
        keys=[key for key, _ in records],
        values=[value for _, value in records],
        timestamps=NOW_MS,
        compression="none",
    )
    request = produce_request(topic_id, [entry], partition)
    answer, _ = await client.ask(request, ProduceResponse, entry)
    assert answer.results[0].error is None
    return answer.results[0].base_offset


async def fill(client: Client, topic_id: bytes, partition: int = 0, batches: int = 12) -> None:
    """Batches of 20 KB in segments of three; every fifth record is Alice's."""
    for number in range(batches):
        records: list[tuple[bytes | None, bytes]] = [
            (b"alice", SECRET + b" %d" % index) if index % 5 == 0 else (b"bob", b"%d" % index)
            for index in range(number * 10, number * 10 + 10)
        ]
        await send(client, topic_id, [*records, (None, bytes(20_000))], partition)


async def read(
    client: Client, topic_id: bytes, partition: int = 0, offset: int = 0
) -> list[Record]:
    """Every record from an offset on: offset, key, value."""
    found: list[Record] = []
    first, seed = offset, header_seed(topic_id, partition)
    while True:
        answer, body = await client.fetch(topic_id, offset, partition)
        assert answer.results[0].error is None, answer.results[0].error
        if not body:
            return [record for record in found if record[0] >= first]
        position = 0
        while position < len(body):
            header = scan_one(body, position, seed)
            assert isinstance(header, BatchHeader)
            if header.record_count:
                found += records_of(header, decode_columns(body[position:], header))
            position += header.size_bytes
            offset = header.next_offset


def records_of(header: BatchHeader, columns: Columns) -> list[Record]:
    keys = columns.keys or [None] * len(columns.values)
    rows = zip(offsets_of(header, columns), keys, columns.values, strict=True)
    return [(offset, key, value or b"") for offset, key, value in rows]


async def erase(
    client: Client,
    topic: str = "orders",
    keys: Sequence[bytes] = (),
    records: Sequence[tuple[int, int]] = (),
    number: int = 1,
    wait: bool = True,
) -> ErasureResponse:
    positions = tuple(RecordPosition(*one) for one in records)
    request = EraseRequest(number.to_bytes(16), topic, tuple(keys), positions)
    answer, _ = await client.ask(request, ErasureResponse)
    return await receipt(client, topic, number, 20_000) if wait else answer


async def receipt(client: Client, topic: str, number: int, wait_ms: int = 0) -> ErasureResponse:
    request = GetErasureRequest(topic, number.to_bytes(16), wait_ms)
    return (await client.ask(request, ErasureResponse))[0]


async def delete_records(client: Client, starts: dict[int, int]) -> dict[int, int]:
    wanted = tuple(StartOffset(partition, offset) for partition, offset in starts.items())
    request = DeleteRecordsRequest("orders", wanted)
    answer, _ = await client.ask(request, DeleteRecordsResponse)
    return {one.partition: one.offset for one in answer.partitions}


async def until(done: Callable[[], bool]) -> None:
    """Files tell nobody that they changed."""
    for _ in range(1_000):
        if done():
            return
        await trio.sleep(0.01)
    pytest.fail("not within 10 s")


def but(records: list[Record], goes: Callable[[Record], bool]) -> list[Record]:
    return [record for record in records if not goes(record)]
