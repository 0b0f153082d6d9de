"""Whether a record costs the same in a large broker as in a small one (P14).

    python -m tailrace.bench.growth [--log 2GiB]

Batches of 100 records of 100 B, encoded before, one a request, eight under way: at most eight
partitions are dirty in a sync round. Paths: ``cpu-partitions-1`` and ``cpu-partitions-1000``
(processor time of the broker per record, durability fsync; with 1,000 the batches go around);
``cpu-log-small`` and ``cpu-log-large`` (durability os, batches of 10 KB again, into a log that is
at 1/20 of ``--log`` and at ``--log``; what lies between is written in batches of 256 KiB). The
target speaks of 1 and 20 GiB: give ``--log 20GiB`` where the disk has room for it.
"""

import time

import anyio

from tailrace.bench.cpus import SENDERS, pin
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.raw import RECORDS as LARGE_RECORDS
from tailrace.bench.streams import create
from tailrace.bench.wire import Batch, Wire, batch_of
from tailrace.bench.workbench import Workbench, cpu_seconds, parser, touch_memory, workbench
from tailrace.protocol.units import parse_size_bytes

RECORDS = 100
SIZE_BYTES = 100
MANY = 1_000
WARM_BATCHES = 20  # of each partition
SMALL_SHARE = 20
TOUCH_BYTES = 512 << 20
TURNS = 3  # of each kind, in turn
SETTLE_S = 2.0


def per_record(
    broker: BrokerProcess, wire: Wire, batches: list[Batch], seconds: float
) -> tuple[float, int]:
    """Processor time in us, and records."""
    before = cpu_seconds(broker.pid)
    count, _ = wire.produce(batches, seconds=seconds)
    records = count * RECORDS
    return (cpu_seconds(broker.pid) - before) / records * 1e6, records


def partitions(bench: Workbench) -> None:
    with bench.broker(touch_bytes=TOUCH_BYTES) as broker:
        anyio.run(create, broker.url, ["one"], 1, "fsync")
        anyio.run(create, broker.url, ["many"], MANY, "fsync")
        with Wire(broker.url) as wire:
            one = [batch_of(wire.topic("one"), 0, RECORDS, SIZE_BYTES)]
            topic = wire.topic("many")
            many = [batch_of(topic, number, RECORDS, SIZE_BYTES) for number in range(MANY)]
            # The first batches of a log cost more: files grow, zeros are written ahead of them.
            for batches in (one, many):
                size_bytes = WARM_BATCHES * len(one[0].entry) * len(batches)
                wire.produce(batches, size_bytes=size_bytes, acks=1)
            time.sleep(SETTLE_S)
            for _ in range(TURNS):
                for batches in (one, many):
                    cost, records = per_record(broker, wire, batches, bench.seconds)
                    tell(bench, f"cpu-partitions-{len(batches)}", cost, records, durable=True)


def log(bench: Workbench, size_bytes: int) -> None:
    touch_memory(size_bytes)
    with bench.broker() as broker:
        anyio.run(create, broker.url, ["log"], 1, "os")
        with Wire(broker.url) as wire:
            topic = wire.topic("log")
            small = [batch_of(topic, 0, RECORDS, SIZE_BYTES)]
            large = [batch_of(topic, 0, LARGE_RECORDS, SIZE_BYTES)]
            wire.produce(large, size_bytes=size_bytes // SMALL_SHARE)
            for name, more in (("small", 0), ("large", size_bytes)):
                if more:
                    wire.produce(large, size_bytes=more - size_bytes // SMALL_SHARE)
                time.sleep(SETTLE_S)  # the kernel has written most of it
                for _ in range(TURNS):
                    cost, records = per_record(broker, wire, small, bench.seconds)
                    tell(bench, f"cpu-log-{name}", cost, records, durable=False)


def tell(bench: Workbench, path: str, cost: float, records: int, *, durable: bool) -> None:
    note = f"{records:,} records of broker CPU"
    bench.tell(path, cost, "us/record", size_bytes=SIZE_BYTES, durable=durable, note=note)


def main() -> None:
    made = parser(__doc__ or "", seconds=1.0)
    made.add_argument("--log", default="2GiB", help="how large the log becomes")
    given = made.parse_args()
    with workbench(given) as bench:
        pin(0, SENDERS)
        partitions(bench)
        log(bench, parse_size_bytes(given.log) or 0)


if __name__ == "__main__":
    main()
