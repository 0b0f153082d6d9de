"""Whether a record costs the same in a large broker as in a small one (P14).

    python -m tailrace.bench.growth [--log 2GiB]

Batches of 100 records of 100 B, encoded before, one a request, synced before they are acknowledged.
Paths: ``cpu-partitions-1`` and ``cpu-partitions-1000`` (processor time of the broker per record, by
one connection with eight batches under way: with 1,000 the batches go around, so that at most eight
partitions are dirty in a sync round), ``cpu-partitions-1@96`` and ``cpu-partitions-1000@96`` (by
twelve such connections: at most 96 are dirty), and ``rss-partitions-written`` (memory of the broker
when each of the 1,000 has been written to); ``cpu-log-small`` and ``cpu-log-large`` (one
connection again, into a log that is at 1/20 of ``--log`` and at ``--log``; what lies between is
written in batches of 256 KiB), and ``rss-log-small`` and ``rss-log-large`` (memory of the broker
then). The target speaks of 1 and 20 GiB: give ``--log 20GiB`` where the disk has room for it. Not
of the target, and with ``durability = "os"``: ``cpu-consumer-1`` and ``cpu-consumer-1000``
(processor time of broker and client together, its sending included, for a record that is sent
alone and comes to a consumer of so many partitions while the others are quiet;
``cpu-consumer-broker-…`` is the broker's share). What a sync waits for takes no processor
time; how many batches share a round does depend on the disk, so kinds stand in turns where they
can.
"""

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack

import anyio

import tailrace
from tailrace import Record
from tailrace.bench.cpus import SENDERS, pin
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.raw import RECORDS as LARGE_RECORDS
from tailrace.bench.streams import create
from tailrace.bench.touch import touch_memory
from tailrace.bench.wire import IN_FLIGHT, Batch, Wire, batch_of
from tailrace.bench.workbench import Workbench, cpu_seconds, parser, resident_bytes, workbench
from tailrace.protocol.units import parse_size_bytes

RECORDS = 100
SIZE_BYTES = 100
MANY = 1_000
CONNECTIONS = 12  # each with IN_FLIGHT batches: the target speaks of at most 100 dirty
WARM_BATCHES = 20  # of each partition
WARM_RECORDS = 50
SMALL_SHARE = 20
TOUCH_BYTES = 512 << 20
TURNS = 3  # of each kind, in turn
SETTLE_S = 2.0


def per_record(
    broker: BrokerProcess, wires: Sequence[Wire], batches: Sequence[Batch], seconds: float
) -> tuple[float, int]:
    """Processor time in us, and records; by all connections at once, each with its share of
    several partitions."""
    counts: list[int] = []

    def write(wire: Wire, share: Sequence[Batch]) -> None:
        counts.append(wire.produce(share, seconds=seconds)[0])

    shares = [batches[at :: len(wires)] or batches for at in range(len(wires))]
    threads = [
        threading.Thread(target=write, args=pair) for pair in zip(wires, shares, strict=True)
    ]
    before = cpu_seconds(broker.pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(wires), "a connection failed"
    records = sum(counts) * RECORDS
    return (cpu_seconds(broker.pid) - before) / records * 1e6, records


def partitions(bench: Workbench) -> None:
    with bench.broker(touch_bytes=TOUCH_BYTES) as broker, ExitStack() as stack:
        anyio.run(create, broker.url, ["one"], 1, "fsync")
        anyio.run(create, broker.url, ["many"], MANY, "fsync")
        wires = [stack.enter_context(Wire(broker.url)) for _ in range(CONNECTIONS)]
        one = [batch_of(wires[0].topic("one"), 0, RECORDS, SIZE_BYTES)]
        topic = wires[0].topic("many")
        many = [batch_of(topic, number, RECORDS, SIZE_BYTES) for number in range(MANY)]
        # The first batches of a log cost more: files grow, zeros are written ahead of them.
        for batches in (one, many):
            size_bytes = WARM_BATCHES * len(one[0].entry) * len(batches)
            wires[0].produce(batches, size_bytes=size_bytes, acks=1)
        resident = resident_bytes(broker.pid)
        bench.tell("rss-partitions-written", resident / 1e6, "MB", note=f"{MANY:,}")
        touch_memory(bench.folder, TOUCH_BYTES)
        time.sleep(SETTLE_S)
        for _ in range(TURNS):
            for suffix, some in (("", wires[:1]), (f"@{CONNECTIONS * IN_FLIGHT}", wires)):
                for batches in (one, many):
                    cost, records = per_record(broker, some, batches, bench.seconds)
                    tell(bench, f"cpu-partitions-{len(batches)}{suffix}", cost, records)


def consumers(bench: Workbench) -> None:
    with bench.broker() as broker:
        anyio.run(come, bench, broker)


async def come(bench: Workbench, broker: BrokerProcess) -> None:
    counts = 1, MANY
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(tailrace.connect(broker.url))
        producer = await stack.enter_async_context(client.producer())
        readers: dict[int, AsyncIterator[Record[bytes, bytes]]] = {}
        for count in counts:
            await create(broker.url, [f"of-{count}"], count, "os")
            consumer = await stack.enter_async_context(client.consumer(f"of-{count}"))
            readers[count] = aiter(consumer)
            for number in range(WARM_RECORDS):
                await producer.send(f"of-{count}", b"warm", partition=number % count)
                await anext(readers[count])
        for _ in range(TURNS):
            for count in counts:
                sent, until = 0, time.monotonic() + bench.seconds
                before = cpu_seconds(broker.pid), time.process_time()
                while time.monotonic() < until:
                    await producer.send(f"of-{count}", bytes(SIZE_BYTES), partition=sent % count)
                    await anext(readers[count])
                    sent += 1
                of_broker = (cpu_seconds(broker.pid) - before[0]) / sent * 1e6
                of_client = (time.process_time() - before[1]) / sent * 1e6
                for path, cost in (("", of_broker + of_client), ("broker-", of_broker)):
                    bench.tell(f"cpu-consumer-{path}{count}", cost, "us/record")


def log(bench: Workbench, size_bytes: int) -> None:
    with bench.broker(touch_bytes=size_bytes) as broker:
        anyio.run(create, broker.url, ["log"], 1, "fsync")
        with Wire(broker.url) as wire:
            topic = wire.topic("log")
            small = [batch_of(topic, 0, RECORDS, SIZE_BYTES)]
            large = [batch_of(topic, 0, LARGE_RECORDS, SIZE_BYTES)]
            wire.produce(large, size_bytes=size_bytes // SMALL_SHARE)
            for name, more in (("small", 0), ("large", size_bytes)):
                if more:
                    wire.produce(large, size_bytes=more - size_bytes // SMALL_SHARE)
                touch_memory(bench.folder, TOUCH_BYTES)
                time.sleep(SETTLE_S)
                for _ in range(TURNS):
                    cost, records = per_record(broker, [wire], small, bench.seconds)
                    tell(bench, f"cpu-log-{name}", cost, records)
                bench.tell(f"rss-log-{name}", resident_bytes(broker.pid) / 1e6, "MB")


def tell(bench: Workbench, path: str, cost: float, records: int) -> None:
    note = f"{records:,} records of broker CPU"
    bench.tell(path, cost, "us/record", size_bytes=SIZE_BYTES, durable=True, note=note)


def main() -> None:
    made = parser(__doc__ or "", seconds=1.0)
    made.add_argument("--log", default="2GiB", help="how large the log becomes")
    given = made.parse_args()
    with workbench(given) as bench:
        pin(0, SENDERS)
        partitions(bench)
        consumers(bench)
        log(bench, parse_size_bytes(given.log) or 0)


if __name__ == "__main__":
    main()
