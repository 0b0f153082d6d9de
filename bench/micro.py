"""Small pieces of work whose instructions are counted (``guard``), each the same every time.

    valgrind --tool=callgrind --instr-atstart=no python -m tailrace.bench.micro

Five of them are what everything is made of: a batch encoded, one decoded, a log, frames, a send.
Four more are the ways by which a client moves many records; what the SDK does for each of those is
in none of the five. What comes before and between them is not counted.
No threads, no clocks, no garbage collection, and a hash seed that is given: so the count moves only
with the code.
"""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from tailrace import Client
from tailrace.bench.workload import make_values
from tailrace.protocol.batch import decode_columns, encode_batch, header_seed, scan_one
from tailrace.protocol.batch_header import BatchHeader
from tailrace.protocol.connection import (
    IN_FLIGHT_MAX,
    PRODUCE_BYTES_MAX,
    SERVED,
    ClientConnection,
    ServerConnection,
)
from tailrace.protocol.messages import (
    PROTOCOL,
    HelloResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.storage.disk import OsDisk
from tailrace.storage.log import Appended, Log, LogConfig

TOPIC = "micro"
TOPIC_ID = bytes(range(16))
SEED = header_seed(TOPIC_ID, 0)
RECORDS = 1_000
WARM = 20  # operations before those that are counted: caches are full, code is specialised
Counted = Callable[[str, int], AbstractContextManager[None]]
Work = Callable[[Counted], None]


@contextmanager
def counted(name: str, operations: int) -> Generator[None]:
    """Count the block's instructions into a dump of this name."""
    control("--instr=on")
    control("--zero")
    yield
    control(f"--dump={name}:{operations}")
    control("--instr=off")


def control(command: str) -> None:
    """Tell callgrind, which runs this very process."""
    said = subprocess.run(
        ["callgrind_control", command, str(os.getpid())], capture_output=True, text=True
    )
    if "OK." not in said.stdout:
        sys.exit(f"callgrind_control {command}: {said.stdout}{said.stderr}")


def encode(count: Counted) -> None:
    """A producer's batch of 1,000 records of 100 B with keys."""
    values: list[bytes | None] = [*make_values(RECORDS, 100)]
    keys: list[bytes | None] = [b"key-%04d" % number for number in range(RECORDS)]

    def one() -> None:
        encode_batch(SEED, values=values, keys=keys, timestamps=1, compression="lz4")

    repeat(count, "encode", 200, one)


def decode(count: Counted) -> None:
    """The same in a consumer: verified, and its columns."""
    values: list[bytes | None] = [*make_values(RECORDS, 100)]
    keys: list[bytes | None] = [b"key-%04d" % number for number in range(RECORDS)]
    entry = memoryview(encode_batch(SEED, values=values, keys=keys, timestamps=1))

    def one() -> None:
        header = scan_one(entry, 0, SEED)
        assert isinstance(header, BatchHeader), header
        decode_columns(entry, header)

    repeat(count, "decode", 200, one)


def log(count: Counted) -> None:
    """A batch appended to a log, and the place of it found for a fetch."""
    entry = encode_batch(SEED, values=[*make_values(10, 100)], timestamps=1)
    with tempfile.TemporaryDirectory(prefix="tailrace-micro-") as folder:
        opened = Log.open(
            OsDisk(),
            str(Path(folder) / "log"),
            topic_id=TOPIC_ID,
            partition=0,
            config=LogConfig(synced=False),
            now_ms=0,
            clean=False,
        )

        def one() -> None:
            (found,) = opened.append([memoryview(bytearray(entry))], leader_epoch=0, now_ms=1)
            assert isinstance(found, Appended), found
            assert opened.read(found.base_offset, 1 << 20, opened.end).length == len(entry)

        repeat(count, "log", 500, one)
        opened.close(clean=False)


def framing(count: Counted) -> None:
    """A produce request of one record through both machines of a connection, and its answer."""
    entry = encode_batch(SEED, values=[b"x" * 100], timestamps=1)
    client, server = ClientConnection("c", "bench"), ServerConnection("bench")
    (hello,) = server.feed(client.open())
    welcome = HelloResponse(
        *(PROTOCOL, "n1", "cluster", "bench", SERVED, PRODUCE_BYTES_MAX, 1 << 20),
        *(IN_FLIGHT_MAX, 60_000),
    )
    list(client.feed(server.answer(hello, welcome)))
    request = ProduceRequest(-1, 30_000, (ProducePartition(TOPIC_ID, 0, len(entry)),))
    response = ProduceResponse((ProduceResult(None, 0, 1, 0),))

    def one() -> None:
        _, head = client.request(request, len(entry))
        (incoming,) = server.feed(head + entry)
        (answer,) = client.feed(server.answer(incoming, response))
        assert answer.message == response

    repeat(count, "framing", 1_000, one)


def repeat(count: Counted, name: str, operations: int, one: Callable[[], None]) -> None:
    """Warm up, then count."""
    for _ in range(WARM):
        one()
    with count(name, operations):
        for _ in range(operations):
            one()


def simulated(work: Callable[[Client], Awaitable[None]]) -> None:
    """Do this with a client and the topic ``micro`` in a simulated world, whose own share is the
    same every time."""

    async def main(cluster: SimCluster) -> None:
        cluster.net.taps.clear()  # nobody judges
        async with cluster.client() as client:
            await client.admin.create_topic(TOPIC)
            await work(client)

    run_cluster(main, seed=1)


async def repeat_async(
    count: Counted, name: str, operations: int, one: Callable[[], Awaitable[object]], each: int = 1
) -> None:
    """Warm up, then count. ``each``: of how many records an operation is."""
    for _ in range(WARM):
        await one()
    with count(name, operations * each):
        for _ in range(operations):
            await one()


def send(count: Counted) -> None:
    """A durable send of one record: SDK, connection, handlers, log, sync round, and the ack."""

    async def work(client: Client) -> None:
        async with client.producer() as producer:
            await repeat_async(count, "send", 300, lambda: producer.send(TOPIC, b"x" * 100))

    simulated(work)


def send_many(count: Counted) -> None:
    """A record of 1,000 that one call sends, with all that follows until its ack."""
    values = make_values(RECORDS, 100)

    async def work(client: Client) -> None:
        async with client.producer() as producer:
            one = partial(producer.send_many, TOPIC, values)
            await repeat_async(count, "send_many", 100, one, RECORDS)

    simulated(work)


def enqueue(count: Counted) -> None:
    """A record of 1,000 that go one by one, half of them without ``await``; the same."""
    values = make_values(RECORDS, 100)

    async def work(client: Client) -> None:
        async with client.producer() as producer:

            async def one() -> None:
                for value in values[: RECORDS // 2]:
                    producer.enqueue_nowait(TOPIC, value)
                for value in values[RECORDS // 2 :]:
                    await producer.enqueue(TOPIC, value)
                await producer.flush()

            await repeat_async(count, "enqueue", 50, one, RECORDS)

    simulated(work)


def consume(count: Counted) -> None:
    """A record of 50,000 that are fetched and read, by ``batches()`` and by ``async for``."""
    calls = 50
    values = make_values(RECORDS, 100)

    async def work(client: Client) -> None:
        async with client.producer() as producer:
            for _ in range(calls):
                await producer.send_many(TOPIC, values)

        async def batches() -> None:
            found = 0
            async with client.consumer(TOPIC, stop_at_end=True) as consumer:
                async for batch in consumer.batches():
                    found += len(batch.values)
            assert found == calls * RECORDS

        async def each() -> None:
            found = 0
            async with client.consumer(TOPIC, stop_at_end=True) as consumer:
                async for record in consumer:
                    found += record.value is not None
            assert found == calls * RECORDS

        for name, one in (("batches", batches), ("each", each)):
            await one()
            with count(name, calls * RECORDS):
                await one()

    simulated(work)


WORK: tuple[Work, ...] = (encode, decode, log, framing, send, send_many, enqueue, consume)


def main(count: Counted = counted) -> None:
    gc.disable()
    for work in WORK:
        work(count)


if __name__ == "__main__":
    main()
