"""The broker alone: batches encoded before go in, and come out unopened (P8, P10).

    python -m tailrace.bench.raw

Paths: ``raw-in`` (256 KiB batches, one a request, durability os), ``raw-out`` (the same batches,
hot, 1 MiB a fetch), ``raw-out-10`` (ten consumers of the same topic at once, all together), and
``raw-in-cpu``, ``fanout-cpu-1``, ``fanout-cpu-10``: processor time of the broker per GB; and
``rss-loaded``, its memory afterwards (pages of files that it has mapped included). What goes out
is the median of five readings, by one and by ten in turns. Beside them ``loopback``, a bare socket,
and ``file-write``, new pages of a file without a broker, in the same minute: no batch comes in
faster than either.
"""

import threading
from statistics import median
from typing import NamedTuple

import anyio

from tailrace.bench import limits
from tailrace.bench.cpus import SENDERS, pin
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.streams import create
from tailrace.bench.touch import touch_memory
from tailrace.bench.wire import Batch, Wire, batch_of
from tailrace.bench.workbench import (
    Workbench,
    cpu_seconds,
    parser,
    resident_bytes,
    workbench,
)

TOPIC = "raw"
SIZE_BYTES = 100
RECORDS = 2_480  # of 100 B and a few each: 256 KiB
FETCH_BYTES = 1 << 20
HOT_BYTES = 256 << 20
FILE_SHARE = 4  # of what may come in, as a divisor: written to a file without a broker
CONSUMERS = 10
PAIRS = 5  # of a reading by one, and by all of them
BYTES_PER_S = 2_500_000_000  # at most: how much memory is touched before


def measure(bench: Workbench) -> None:
    """In, out, and out ten times."""
    written = int(bench.seconds * BYTES_PER_S)
    with bench.broker() as broker:
        anyio.run(create, broker.url, [TOPIC, "hot"], 1, "os")
        bench.tell("loopback", limits.loopback_bytes_per_s(), "bytes/s", system="machine")
        pin(0, SENDERS)
        with Wire(broker.url) as wire:
            batch = batch_of(wire.topic(TOPIC), 0, RECORDS, SIZE_BYTES)
            wire.produce([batch], size_bytes=HOT_BYTES)
            touch_memory(bench.folder, written)
            file_bytes_per_s = limits.file_written_per_s(bench.folder, written // FILE_SHARE)
            bench.tell("file-write", file_bytes_per_s, "bytes/s", system="machine")
            touch_memory(bench.folder, written)
            before = cpu_seconds(broker.pid)
            count, took_s = wire.produce([batch], seconds=bench.seconds)
            used_s, size_bytes = cpu_seconds(broker.pid) - before, count * len(batch.entry)
            tell(bench, "raw-in", size_bytes / took_s)
            bench.tell("raw-in-cpu", used_s / size_bytes * 1e9, "s/GB", size_bytes=SIZE_BYTES)
            hot = batch_of(wire.topic("hot"), 0, RECORDS, SIZE_BYTES)
            count, _ = wire.produce([hot], size_bytes=HOT_BYTES)
        read(bench, broker, hot, count, 1)
        alone: list[Reading] = []
        together: list[Reading] = []
        for _ in range(PAIRS):  # in turns: either figure alone moves by a quarter
            alone.append(read(bench, broker, hot, count, 1))
            together.append(read(bench, broker, hot, count, CONSUMERS))
        for path, cpu_path, found in (
            ("raw-out", "fanout-cpu-1", alone),
            ("raw-out-10", "fanout-cpu-10", together),
        ):
            tell(bench, path, median(one.bytes_per_s for one in found))
            used = median(one.cpu_s_per_gb for one in found)
            bench.tell(cpu_path, used, "s/GB", size_bytes=SIZE_BYTES)
        bench.tell("rss-loaded", resident_bytes(broker.pid) / 1e6, "MB", note="after all of it")


class Reading(NamedTuple):
    """What so many consumers did together."""

    bytes_per_s: float
    cpu_s_per_gb: float  # of the broker


def read(
    bench: Workbench, broker: BrokerProcess, batch: Batch, count: int, consumers: int
) -> Reading:
    """By so many consumers together, each a thread that only receives."""
    seconds = 2 * bench.seconds / PAIRS
    received: list[tuple[int, float]] = []
    connected, begin = threading.Barrier(consumers + 1), threading.Barrier(consumers + 1)

    def consumer() -> None:
        with Wire(broker.url) as wire:
            connected.wait()
            begin.wait()
            received.append(wire.read(batch, count, bytes_max=FETCH_BYTES, seconds=seconds))

    threads = [threading.Thread(target=consumer) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    connected.wait()
    before = cpu_seconds(broker.pid)
    begin.wait()
    for thread in threads:
        thread.join()
    assert len(received) == consumers, "a consumer failed"
    total = sum(size for size, _ in received)
    used_s = cpu_seconds(broker.pid) - before
    took_s = max(took_s for _, took_s in received)
    return Reading(total / took_s, used_s / total * 1e9)


def tell(bench: Workbench, path: str, value: float) -> None:
    bench.tell(path, value, "bytes/s", size_bytes=SIZE_BYTES, durable=False)


def main() -> None:
    with workbench(parser(__doc__ or "").parse_args()) as bench:
        measure(bench)


if __name__ == "__main__":
    main()
