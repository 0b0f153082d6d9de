"""Throughput: one producer, then one consumer, each by every way the SDK has (P1 to P5).

    python -m tailrace.bench.streams [--size 100] [--keys] [--partitions 1] [--durability fsync]

Paths: ``produce`` (``send_many`` of about 1 MB a call, eight calls under way), ``produce-each``
(``await enqueue`` record by record), ``produce-each-nowait``, ``consume-batches`` (``batches()``,
the list of each one's values), ``consume-each`` (``async for``, each value touched). A suffix tells
what was varied: ``+keys``, ``+partitions=10``, ``+os``. Values are random bytes. Each way has its
own topic, and a scratch topic first. Producers stop by the clock and count what was acknowledged; a
consumer reads its topic from start to end as often as the time allows.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

import tailrace
from tailrace.bench.actors import Actor, Gate, go
from tailrace.bench.cpus import RECEIVERS
from tailrace.bench.touch import WRITTEN_BYTES_PER_S, touch_memory
from tailrace.bench.workbench import Workbench, parser, workbench
from tailrace.bench.workload import make_values
from tailrace.protocol.batch import RECORDS_MAX

CALLS_IN_FLIGHT = 8
CALL_BYTES = 1 << 20
KEYS = 1_000
WARM_SHARE = 0.25  # of the time that is then measured
TURN = 1_000  # records between two looks at the clock
WARM = "warm-"  # before the name of a scratch topic

Bytes = tailrace.Producer[bytes, bytes]
Rate = tuple[int, float]  # records, seconds


@dataclass(frozen=True)
class Plan:
    """What is sent."""

    url: str
    size_bytes: int
    keyed: bool
    seconds: float
    compression: str

    @property
    def call_records(self) -> int:
        """Of one ``send_many``."""
        return min(RECORDS_MAX, max(1, CALL_BYTES // self.size_bytes))

    def columns(self) -> tuple[list[bytes], list[bytes] | None]:
        """Values and keys of one call."""
        count = self.call_records
        keys = [b"key-%06d" % (number % KEYS) for number in range(count)] if self.keyed else None
        return make_values(count, self.size_bytes), keys


async def produce(gate: Gate, plan: Plan, topic: str, way: str) -> Rate:
    """Acknowledged records, and how long it took; on a scratch topic before."""
    async with tailrace.connect(plan.url) as client:
        compression: Any = plan.compression
        async with client.producer(compression=compression) as producer:
            await WAYS[way](producer, plan, WARM + topic, plan.seconds * WARM_SHARE)
            await gate.ready()
            began = time.perf_counter()
            count = await WAYS[way](producer, plan, topic, plan.seconds)
            took_s = time.perf_counter() - began
            found = (await client.admin.describe_topic(topic)).records
            assert found == count, f"{count} records were acknowledged, {found} are there"
            return count, took_s


async def send_many(producer: Bytes, plan: Plan, topic: str, seconds: float) -> int:
    """Calls of many records, several under way."""
    values, keys = plan.columns()
    until = time.perf_counter() + seconds
    count = 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await producer.send_many(topic, values, keys=keys)
            count += len(values)

    async with anyio.create_task_group() as tasks:
        for _ in range(CALLS_IN_FLIGHT):
            tasks.start_soon(caller)
    return count


async def enqueue(producer: Bytes, plan: Plan, topic: str, seconds: float) -> int:
    """Record by record, waiting where there is no room, and for all acks at the end."""
    values, keys = plan.columns()
    until = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < until:
        if keys is None:
            for value in values[:TURN]:
                await producer.enqueue(topic, value)
        else:
            for value, key in zip(values[:TURN], keys, strict=False):
                await producer.enqueue(topic, value, key=key)
        count += len(values[:TURN])
    await producer.flush()
    return count


async def enqueue_nowait(producer: Bytes, plan: Plan, topic: str, seconds: float) -> int:
    """A plain call for each record; where there is no room, the other way."""
    values, keys = plan.columns()
    named: Sequence[bytes | None] = keys or [None] * len(values)
    until = time.perf_counter() + seconds
    await producer.enqueue(topic, values[0])
    count = 1
    while time.perf_counter() < until:
        for value, key in zip(values[:TURN], named, strict=False):
            try:
                producer.enqueue_nowait(topic, value, key=key)
            except tailrace.BufferFull:
                await producer.enqueue(topic, value, key=key)
        count += len(values[:TURN])
        await anyio.lowlevel.checkpoint()  # the sender needs turns
    await producer.flush()
    return count


WAYS: dict[str, Callable[[Bytes, Plan, str, float], Awaitable[int]]] = {
    "produce": send_many,
    "produce-each": enqueue,
    "produce-each-nowait": enqueue_nowait,
}


async def consume(gate: Gate, plan: Plan, topic: str, way: str) -> Rate:
    """Records read, and how long it took: the scratch topic before, then the topic, again and
    again."""
    count, seconds = 0, 0.0
    async with tailrace.connect(plan.url) as client:
        await READINGS[way](client, WARM + topic, plan.seconds * WARM_SHARE)
        await gate.ready()
        while seconds < plan.seconds:
            began = time.perf_counter()
            count += await READINGS[way](client, topic, plan.seconds - seconds)
            seconds += time.perf_counter() - began
    return count, seconds


async def read_batches(client: tailrace.Client, topic: str, seconds: float) -> int:
    count = 0
    until = time.perf_counter() + seconds
    async with client.consumer(topic, stop_at_end=True) as consumer:
        async for batch in consumer.batches():
            count += len(batch.values)
            if time.perf_counter() > until:
                break
        check_dense(consumer, count)
    return count


async def read_each(client: tailrace.Client, topic: str, seconds: float) -> int:
    count = size = 0
    until = time.perf_counter() + seconds
    async with client.consumer(topic, stop_at_end=True) as consumer:
        async for record in consumer:
            count += 1
            size += len(record.value or b"")
            if not count % TURN and time.perf_counter() > until:
                break
        check_dense(consumer, count)
    assert size, "records without values"
    return count


def check_dense(consumer: tailrace.Consumer[bytes, bytes], count: int) -> None:
    """So many were handed out, and none was left out before the place where it stands."""
    reached = sum(consumer.position(one) for one in consumer.assignment)
    assert reached == count, f"{count} records were read, up to offsets of {reached} in all"


READINGS: dict[str, Callable[[tailrace.Client, str, float], Awaitable[int]]] = {
    "consume-batches": read_batches,
    "consume-each": read_each,
}


async def create(url: str, topics: list[str], partitions: int, durability: str) -> None:
    async with tailrace.connect(url) as client:
        for name in topics:
            config: dict[str, tailrace.ConfigValue] = {"durability": durability}
            await client.admin.create_topic(name, partitions=partitions, config=config)


def suffix_of(given: Any) -> str:
    """Of a path: what was not as usual."""
    suffix = "+keys" if given.keys else ""
    if given.partitions > 1:
        suffix += f"+partitions={given.partitions}"
    if given.compression != "lz4":
        suffix += f"+{given.compression}"
    return suffix if given.durability == "fsync" else f"{suffix}+{given.durability}"


def measure(bench: Workbench, given: Any) -> None:
    """All ways, one after another."""
    size, durable = given.size, given.durability == "fsync"
    suffix = suffix_of(given)
    wanted = given.paths.split(",") if given.paths else [*WAYS, *READINGS]
    touched = int(WRITTEN_BYTES_PER_S * bench.seconds)
    with bench.broker(touch_bytes=touched) as broker:
        plan = Plan(broker.url, size, given.keys, bench.seconds, given.compression)
        topics = [name for way in WAYS for name in (way, WARM + way)]
        anyio.run(create, broker.url, topics, given.partitions, given.durability)

        def tell(path: str, rate: Rate) -> None:
            bench.tell(
                *(path + suffix, rate[0] / rate[1], "records/s"), size_bytes=size, durable=durable
            )

        for way in WAYS:
            if way in wanted or (way == "produce" and set(wanted) & set(READINGS)):
                with Actor(produce, plan, way, way) as producer:
                    go(producer, before=lambda: touch_memory(bench.folder, touched))
                    tell(way, producer.result())
        for way in READINGS:
            if way in wanted:
                with Actor(consume, plan, "produce", way).placed(RECEIVERS) as consumer:
                    go(consumer)
                    tell(way, consumer.result())


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", type=int, default=100, help="bytes of a value")
    made.add_argument("--keys", action="store_true", help="1,000 different ones")
    made.add_argument("--partitions", type=int, default=1)
    made.add_argument("--durability", choices=["fsync", "os"], default="fsync")
    made.add_argument("--compression", choices=["lz4", "zstd", "none"], default="lz4")
    made.add_argument("--paths", help="some of them, with commas")
    given = made.parse_args()
    with workbench(given) as bench:
        measure(bench, given)


if __name__ == "__main__":
    main()
