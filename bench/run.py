"""The benches themselves: the public SDK against a running broker, as a user would write it.

Before anything is timed the same volume goes once through a scratch topic, because the first touch
of memory and of disk blocks costs a virtual machine half its speed.
"""

import struct
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

import tailrace
from tailrace.bench.workload import Advance, Measured, Workload, make_values

CALLS_IN_FLIGHT = 8  # send_many calls of one producer that wait for their acks at once
WARM_RECORDS_MAX = 500_000
AWAKE_SECONDS = 0.002
STAMP = struct.Struct(">Q")  # perf_counter_ns in the first bytes of an e2e value


async def run(
    client: tailrace.Client, workload: Workload, topic: str, keep: bool, advance: Advance
) -> Measured:
    """Measure one workload in its own topic, which is deleted afterwards unless ``keep``."""
    if workload.mode == "consume":
        workload = replace(workload, acks="all")  # what is to be read must be there
    values = make_values(workload.records, workload.size_bytes)
    await _warm_up(client, workload, values, f"{topic}-warm")
    await client.admin.create_topic(topic, partitions=workload.partitions)
    try:
        if workload.mode == "produce":
            return await produce(client, workload, topic, values, advance)
        if workload.mode == "consume":
            await produce(client, workload, topic, values, lambda _: None)
            return await consume(client, workload, topic, advance)
        return await end_to_end(client, workload, topic, values, advance)
    finally:
        if not keep:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await client.admin.delete_topic(topic)


async def _warm_up(
    client: tailrace.Client, workload: Workload, values: Sequence[bytes], topic: str
) -> None:
    await client.admin.create_topic(topic, partitions=workload.partitions)
    try:
        part = values[:WARM_RECORDS_MAX]
        await produce(client, workload, topic, part, lambda _: None)
        if workload.mode == "consume":
            await consume(client, workload, topic, lambda _: None)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await client.admin.delete_topic(topic)


async def produce(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    values: Sequence[bytes],
    advance: Advance,
) -> Measured:
    """``send_many`` of ``batch`` records, ``CALLS_IN_FLIGHT`` at a time per producer."""
    measured = Measured()
    chunks = [values[at : at + workload.batch] for at in range(0, len(values), workload.batch)]
    chunks.reverse()
    began = time.perf_counter()
    async with task_group() as tasks:
        for _ in range(workload.producers):
            tasks.start_soon(_producer, client, workload, topic, chunks, measured, advance)
    measured.elapsed_seconds = time.perf_counter() - began
    return measured


async def _producer(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    chunks: list[Sequence[bytes]],
    measured: Measured,
    advance: Advance,
) -> None:
    async with open_producer(client, workload) as producer:

        async def caller() -> None:
            while chunks:
                chunk = chunks.pop()
                at = time.perf_counter()
                try:
                    await producer.send_many(topic, chunk)
                except tailrace.TailraceError:
                    measured.errors += len(chunk)
                    continue
                measured.latencies_ms.append((time.perf_counter() - at) * 1_000)
                measured.records += len(chunk)
                advance(len(chunk))

        async with task_group() as tasks:
            for _ in range(CALLS_IN_FLIGHT):
                tasks.start_soon(caller)


def open_producer(client: tailrace.Client, workload: Workload) -> tailrace.Producer[bytes, bytes]:
    """The producer of a workload."""
    return client.producer(
        acks=workload.acks,
        idempotent=workload.acks == "all",
        compression=workload.compression,
    )


@asynccontextmanager
async def task_group() -> AsyncGenerator[TaskGroup]:
    """A task group whose first failure leaves as itself."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def consume(
    client: tailrace.Client, workload: Workload, topic: str, advance: Advance
) -> Measured:
    """``batches()`` from the start to the end; a batch's latency is the wait for it."""
    measured = Measured()
    size = max(workload.batch, 1)
    async with client.consumer(topic, stop_at_end=True) as consumer:
        began = at = time.perf_counter()
        async for batch in consumer.batches(max_records=size):
            values = batch.values
            measured.records += len(values)
            now = time.perf_counter()
            measured.latencies_ms.append((now - at) * 1_000)
            at = now
            advance(len(values))
        measured.elapsed_seconds = time.perf_counter() - began
    return measured


async def end_to_end(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    values: Sequence[bytes],
    advance: Advance,
) -> Measured:
    """Producer and consumer at once; latency from the call of ``send_many`` to the consumer."""
    measured = Measured()
    padding = b"\0" * max(0, workload.size_bytes - STAMP.size)
    wanted = len(values)

    async def produce_stamped() -> None:
        async with open_producer(client, workload) as p:
            for at in range(0, wanted, workload.batch):
                count = min(workload.batch, wanted - at)
                value = STAMP.pack(time.perf_counter_ns()) + padding
                await p.send_many(topic, [value] * count)

    async def consume_stamped() -> None:
        async with client.consumer(topic) as consumer:
            async for batch in consumer.batches(max_records=workload.batch):
                now = time.perf_counter_ns()
                values = batch.values
                for value in (values[0], values[-1]):
                    assert value is not None
                    sent = STAMP.unpack_from(value)[0]
                    measured.latencies_ms.append((now - sent) / 1_000_000)
                measured.records += len(values)
                advance(len(values))
                if measured.records >= wanted:
                    return

    began = time.perf_counter()
    async with task_group() as tasks:
        tasks.start_soon(consume_stamped)
        tasks.start_soon(produce_stamped)
    measured.elapsed_seconds = time.perf_counter() - began
    return measured


async def single_sends(
    client: tailrace.Client, topic: str, *, rate_per_s: float, seconds: float, size_bytes: int
) -> list[float]:
    """Latencies in ms of durable ``send`` at a fixed rate, counted from the intended time.

    Counting from when a send should have begun, not from when it did, keeps one slow send from
    hiding those that had to wait behind it (coordinated omission).
    """
    latencies: list[float] = []
    value = make_values(1, size_bytes)[0]

    async def one(producer: tailrace.Producer[bytes, bytes], intended: float) -> None:
        await producer.send(topic, value)
        latencies.append((time.perf_counter() - intended) * 1_000)

    async with client.producer() as producer:
        await producer.send(topic, value)
        began = time.perf_counter()
        async with task_group() as tasks:
            for number in range(int(rate_per_s * seconds)):
                intended = began + number / rate_per_s
                await _until(intended)
                tasks.start_soon(one, producer, intended)
    return latencies


async def _until(moment: float) -> None:
    """Return at ``moment``, awake for the last bit: the timer of the bench is not what is measured.

    An event loop's timers are a millisecond wide, which is a third of what a send takes.
    """
    await anyio.sleep(max(0.0, moment - time.perf_counter() - AWAKE_SECONDS))
    while time.perf_counter() < moment:
        await anyio.lowlevel.checkpoint()
