"""The broker alone: batches encoded before go in, and come out unopened (P8, P10).

    python -m tailrace.bench.raw

Paths: ``raw-in`` (256 KiB batches, one a request, durability os), ``raw-out`` (the same batches,
hot, 1 MiB a fetch), ``raw-out-10`` (ten consumers of the same topic at once, all together), and
``raw-in-cpu``, ``fanout-cpu-1``, ``fanout-cpu-10``: processor time of the broker per GB; and
``rss-loaded``, its memory afterwards. Beside them ``loopback``, a bare socket, and ``file-write``,
new pages of a file without a broker, in the same minute: no batch comes in faster than either.
"""

import threading

import anyio

from tailrace.bench import limits
from tailrace.bench.cpus import SENDERS, pin
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.streams import create
from tailrace.bench.wire import Batch, Wire, batch_of
from tailrace.bench.workbench import (
    Workbench,
    cpu_seconds,
    parser,
    resident_bytes,
    touch_memory,
    workbench,
)

TOPIC = "raw"
SIZE_BYTES = 100
RECORDS = 2_480  # of 100 B and a few each: 256 KiB
FETCH_BYTES = 1 << 20
HOT_BYTES = 256 << 20
FILE_SHARE = 4  # of what may come in, as a divisor: written to a file without a broker
CONSUMERS = 10
BYTES_PER_S = 2_500_000_000  # at most: how much memory is touched before


def measure(bench: Workbench) -> None:
    """In, out, and out ten times."""
    written = int(bench.seconds * BYTES_PER_S)
    with bench.broker() as broker:
        anyio.run(create, broker.url, [TOPIC, "hot"], 1, "os")
        bench.tell("loopback", limits.loopback_bytes_per_s(), "bytes/s", system="machine")
        with Wire(broker.url) as wire:
            batch = batch_of(wire.topic(TOPIC), 0, RECORDS, SIZE_BYTES)
            wire.produce([batch], size_bytes=HOT_BYTES)
            touch_memory(written)
            file_bytes_per_s = limits.file_written_per_s(bench.folder, written // FILE_SHARE)
            bench.tell("file-write", file_bytes_per_s, "bytes/s", system="machine")
            touch_memory(written)
            before = cpu_seconds(broker.pid)
            count, took_s = wire.produce([batch], seconds=bench.seconds)
            used_s, size_bytes = cpu_seconds(broker.pid) - before, count * len(batch.entry)
            tell(bench, "raw-in", size_bytes / took_s)
            bench.tell("raw-in-cpu", used_s / size_bytes * 1e9, "s/GB", size_bytes=SIZE_BYTES)
            hot = batch_of(wire.topic("hot"), 0, RECORDS, SIZE_BYTES)
            count, _ = wire.produce([hot], size_bytes=HOT_BYTES)
        read(bench, broker, hot, count, 1)
        tell(bench, "raw-out", read(bench, broker, hot, count, 1, "fanout-cpu-1"))
        tell(bench, "raw-out-10", read(bench, broker, hot, count, CONSUMERS, "fanout-cpu-10"))
        bench.tell("rss-loaded", resident_bytes(broker.pid) / 1e6, "MB", note="after all of it")


def read(
    bench: Workbench,
    broker: BrokerProcess,
    batch: Batch,
    count: int,
    consumers: int,
    cpu_path: str = "",
) -> float:
    """Bytes per second by so many consumers together, each a thread that only receives."""
    received: list[tuple[int, float]] = []
    begin = threading.Barrier(consumers + 1)

    def consumer() -> None:
        with Wire(broker.url) as wire:
            begin.wait()
            received.append(wire.read(batch, count, bytes_max=FETCH_BYTES, seconds=bench.seconds))

    threads = [threading.Thread(target=consumer) for _ in range(consumers)]
    for thread in threads:
        thread.start()
    before = cpu_seconds(broker.pid)
    begin.wait()
    for thread in threads:
        thread.join()
    assert len(received) == consumers, "a consumer failed"
    total = sum(size for size, _ in received)
    used_s = cpu_seconds(broker.pid) - before
    if cpu_path:
        bench.tell(cpu_path, used_s / total * 1e9, "s/GB", size_bytes=SIZE_BYTES)
    return total / max(took_s for _, took_s in received)


def tell(bench: Workbench, path: str, value: float) -> None:
    bench.tell(path, value, "bytes/s", size_bytes=SIZE_BYTES, durable=False)


def main() -> None:
    with workbench(parser(__doc__ or "").parse_args()) as bench:
        pin(0, SENDERS)
        measure(bench)


if __name__ == "__main__":
    main()
