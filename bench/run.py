"""The benches themselves: the public SDK against a running broker, as a user would write it.

Before anything is timed the same volume goes once through a scratch topic, because the first touch
of memory and of disk blocks costs a virtual machine half its speed.
"""

import struct
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

import tailrace
from tailrace.bench.workload import Advance, Measured, Workload, make_values
from tailrace.protocol import texts_cli

CALLS_IN_FLIGHT = 8  # send_many calls of one producer that wait for their acks at once
WARM_RECORDS_MAX = 500_000
AWAKE_SECONDS = 0.002
SEND_SECONDS = 30.0  # the timeout of one record, as the SDK has it
DELETE_SECONDS = 5  # for a topic to be deleted, also when cancelled (R41)
STAMP = struct.Struct(">Q")  # perf_counter_ns in the first bytes of an e2e value


class Watch:
    """Ends a bench that gets no further: by itself it would try every record for 30 s."""

    def __init__(self, client: tailrace.Client, patience_s: float) -> None:
        # A producer knows why it is stalled after half its timeout, or after 5 s.
        self.send_timeout_s = SEND_SECONDS if patience_s > 6 else 1.5 * patience_s
        self._producers: list[tailrace.Producer[bytes, bytes]] = []
        self._client = client
        self._patience_s = patience_s
        self._moved_at = time.perf_counter()

    def ask(self, producer: tailrace.Producer[bytes, bytes]) -> None:
        """This one may know why nothing is done."""
        self._producers.append(producer)

    def moved(self, count: int = 0) -> None:
        """Something was done."""
        self._moved_at = time.perf_counter()

    async def run(self) -> None:
        """Until cancelled; RequestTimeout T034 when nothing was done for so long."""
        while True:
            left_s = self._moved_at + self._patience_s - time.perf_counter()
            if left_s <= 0:
                raise texts_cli.bench_stuck(waited_s=self._patience_s, reason=self._reason())
            await anyio.sleep(left_s)

    def _reason(self) -> str:
        reasons = [self._client.health().reason, *(p.health().reason for p in self._producers)]
        return next((reason for reason in reasons if reason), "no answer")


async def run(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    keep: bool,
    advance: Advance,
    *,
    patience_s: float,
) -> Measured:
    """Measure one workload in its own topic, which is deleted afterwards unless ``keep``.

    RequestTimeout T034 after ``patience_s`` without progress.
    """
    if workload.mode == "consume":
        workload = replace(workload, acks="all")  # what is to be read must be there
    watch = Watch(client, patience_s)

    def done(count: int) -> None:
        watch.moved()
        advance(count)

    async with task_group() as tasks:
        tasks.start_soon(watch.run)
        measured = await _measure(client, workload, topic, keep, done, watch)
        tasks.cancel_scope.cancel()
    return measured


async def _measure(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    keep: bool,
    advance: Advance,
    watch: Watch,
) -> Measured:
    values = make_values(workload.records, workload.size_bytes)
    watch.moved()
    part = values[:WARM_RECORDS_MAX]
    async with _own_topic(client, workload, f"{topic}-warm", keep=False):
        await produce(client, workload, f"{topic}-warm", part, watch.moved, watch)
        if workload.mode == "consume":
            await consume(client, workload, f"{topic}-warm", watch.moved)
    async with _own_topic(client, workload, topic, keep=keep):
        watch.moved()
        if workload.mode == "produce":
            return await produce(client, workload, topic, values, advance, watch)
        if workload.mode == "consume":
            await produce(client, workload, topic, values, watch.moved, watch)
            return await consume(client, workload, topic, advance)
        return await end_to_end(client, workload, topic, values, advance, watch)


@asynccontextmanager
async def _own_topic(
    client: tailrace.Client, workload: Workload, topic: str, *, keep: bool
) -> AsyncGenerator[None]:
    """A topic that is deleted on the way out; if that fails too, the first error counts."""
    await client.admin.create_topic(topic, partitions=workload.partitions)
    try:
        yield
    except BaseException:
        with suppress(tailrace.TailraceError):
            await _delete(client, topic, keep)
        raise
    await _delete(client, topic, keep)


async def _delete(client: tailrace.Client, topic: str, keep: bool) -> None:
    if not keep:
        with anyio.CancelScope(shield=True), anyio.move_on_after(DELETE_SECONDS):
            await client.admin.delete_topic(topic)


async def produce(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    values: Sequence[bytes],
    advance: Advance,
    watch: Watch,
) -> Measured:
    """``send_many`` of ``batch`` records, ``CALLS_IN_FLIGHT`` at a time per producer."""
    measured = Measured()
    chunks = [values[at : at + workload.batch] for at in range(0, len(values), workload.batch)]
    chunks.reverse()
    began = time.perf_counter()
    async with task_group() as tasks:
        for _ in range(workload.producers):
            tasks.start_soon(_producer, client, workload, topic, chunks, measured, advance, watch)
    measured.elapsed_seconds = time.perf_counter() - began
    return measured


async def _producer(
    client: tailrace.Client,
    workload: Workload,
    topic: str,
    chunks: list[Sequence[bytes]],
    measured: Measured,
    advance: Advance,
    watch: Watch,
) -> None:
    async with open_producer(client, workload, watch) as producer:

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


def open_producer(
    client: tailrace.Client, workload: Workload, watch: Watch
) -> tailrace.Producer[bytes, bytes]:
    """The producer of a workload."""
    producer = client.producer(
        acks=workload.acks,
        idempotent=workload.acks == "all",
        compression=workload.compression,
        timeout=watch.send_timeout_s,
    )
    watch.ask(producer)
    return producer


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
    watch: Watch,
) -> Measured:
    """Producer and consumer at once; latency from the call of ``send_many`` to the consumer."""
    measured = Measured()
    padding = b"\0" * max(0, workload.size_bytes - STAMP.size)
    wanted = len(values)

    async def produce_stamped() -> None:
        async with open_producer(client, workload, watch) as p:
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
