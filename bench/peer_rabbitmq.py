"""RabbitMQ Streams: rabbitmq-server with its stream plugin, driven by rstream under uvloop.

A stream is acknowledged before it is synced, and there is no setting that changes that. Produced by
``send_batch`` of 1,000 values with confirms, 100 batches under way; read by a subscription whose
callback gets each record as bytes (no AMQP codec, which would cost more than all the rest).
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from tailrace.bench.peer_job import (
    Done,
    Job,
    Latencies,
    Peer,
    Started,
    Variant,
    chunk_of,
    say_ready,
    stamp_of,
    stamped,
    verified,
)
from tailrace.bench.peer_loop import run
from tailrace.bench.peer_process import found, serving
from tailrace.bench.peer_ticks import paced
from tailrace.bench.processes import free_port

UNSYNCED = Variant("no sync before ack", durable=False)
SCRIPTS = Path("/usr/lib/rabbitmq/lib")
IN_FLIGHT_RECORDS = 100_000
IN_FLIGHT_BYTES = 64 << 20
CREDIT = 50  # chunks under way to a consumer
INSTALL = "install rabbitmq-server (Debian)"


def script() -> str:
    """The server's own script; the one in PATH changes the user first."""
    scripts = sorted(SCRIPTS.glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    return str(scripts[-1]) if scripts else found("rabbitmq-server", INSTALL)


def server() -> str:
    return Path(script()).parents[1].name.replace("_server-", " ")


@contextmanager
def start(folder: Path, variant: Variant) -> Generator[Started]:
    """A node of its own name, port mapper, cookie and folders."""
    port, mapper_port, node_port = free_port(), free_port(), free_port()
    config, plugins = folder / "rabbitmq.conf", folder / "enabled_plugins"
    config.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{free_port()}\n"
        f"stream.listeners.tcp.1 = 127.0.0.1:{port}\n"
        f"stream.advertised_host = 127.0.0.1\nstream.advertised_port = {port}\n"
    )
    plugins.write_text("[rabbitmq_stream].\n")
    mapper = [found("epmd", INSTALL), "-port", str(mapper_port)]
    env = {
        "HOME": str(folder),  # of the cookie
        "ERL_EPMD_PORT": str(mapper_port),
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_DIST_PORT": str(node_port),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    with serving(folder, "epmd", mapper, mapper_port):
        with serving(folder, "rabbitmq", [script()], port, env):
            yield Started(f"127.0.0.1:{port}")


@asynccontextmanager
async def connected(job: Job, kind: str) -> AsyncGenerator[Any]:
    """A Producer or Consumer; Any, as rstream is not installed where this is checked."""
    host, _, port = job.address.rpartition(":")
    make: Any = getattr(import_module("rstream"), kind)
    async with make(host, int(port), username="guest", password="guest") as client:
        yield client


class Confirmed:
    """How many records were confirmed, and somebody who waits for enough of them."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._enough = asyncio.Event()

    def one(self, status: Any) -> None:
        if not status.is_confirmed:
            raise RuntimeError(f"not confirmed: {status}")
        self.count += 1
        if self.count >= self._wanted:
            self._enough.set()

    async def reach(self, count: int) -> None:
        self._wanted = count
        if self.count < count:
            self._enough.clear()
            await self._enough.wait()


def produce(job: Job) -> Done:
    return run(produce_async(job))


async def produce_async(job: Job) -> Done:
    values = chunk_of(job.size_bytes)
    async with connected(job, "Producer") as producer:
        await producer.create_stream("warm")
        await send_batches(producer, "warm", values, job.seconds)
        await producer.delete_stream("warm")
        await producer.create_stream(job.stream)
        began = time.perf_counter()
        count = await send_batches(producer, job.stream, values, job.seconds)
        return Done(count, time.perf_counter() - began)


async def send_batches(producer: Any, stream: str, values: Sequence[bytes], seconds: float) -> int:
    """For so long, and until all was confirmed; how many."""
    confirmed, sent, until = Confirmed(), 0, time.perf_counter() + seconds
    in_flight = min(IN_FLIGHT_RECORDS, IN_FLIGHT_BYTES // len(values[0]))
    while time.perf_counter() < until:
        await producer.send_batch(stream, values, on_publish_confirm=confirmed.one)
        sent += len(values)
        await confirmed.reach(sent - in_flight)
    await confirmed.reach(sent)
    return sent


def consume_each(job: Job) -> Done:
    return run(consume_each_async(job))


async def consume_each_async(job: Job) -> Done:
    all_came = asyncio.Event()
    count, last = 0, b""

    def take(value: bytes, _: Any) -> None:
        nonlocal count, last
        count += 1
        last = value
        if count == job.count:
            all_came.set()

    async with connected(job, "Consumer") as consumer:
        began = time.perf_counter()
        await consumer.subscribe(job.stream, take, initial_credit=CREDIT)
        await all_came.wait()
        ended = time.perf_counter()
    return verified(job, count, last, began, ended)


def send(job: Job) -> Done:
    return run(send_async(job))


async def send_async(job: Job) -> Done:
    """A batch of what is due, at once: ``send`` would gather for half a second."""
    latencies, confirmed = Latencies(job), Confirmed()
    message: Any = import_module("rstream.utils").RawMessage
    moments_of: dict[int, int] = {}
    numbers = itertools.count(1)

    def acknowledged(status: Any) -> None:
        confirmed.one(status)
        latencies.add(moments_of.pop(status.message_id))

    async with connected(job, "Producer") as producer:

        async def send_due(moments: list[int]) -> None:
            batch: list[Any] = []
            for moment in moments:
                number = next(numbers)
                moments_of[number] = moment
                batch.append(message(stamped(moment, job.size_bytes), number))
            await producer.send_batch(job.stream, batch, on_publish_confirm=acknowledged)

        await paced(job, send_due)
        await confirmed.reach(job.count)
    return latencies.done()


def receive(job: Job) -> Done:
    return run(receive_async(job))


async def receive_async(job: Job) -> Done:
    latencies, all_came = Latencies(job), asyncio.Event()

    def take(value: bytes, _: Any) -> None:
        latencies.add(stamp_of(value))
        if latencies.seen == job.count:
            all_came.set()

    async with connected(job, "Consumer") as consumer:
        await consumer.create_stream(job.stream)
        await consumer.subscribe(job.stream, take, initial_credit=CREDIT)
        say_ready()
        await all_came.wait()
    return latencies.done()


PEER = Peer(
    system="rabbitmq",
    variants=(UNSYNCED,),
    packages=("rstream", "uvloop"),
    python=None,
    server=server,
    start=start,
    actions={
        "produce": produce,
        "consume-each": consume_each,
        "send": send,
        "receive": receive,
    },
)
