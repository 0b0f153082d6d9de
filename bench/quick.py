"""``make bench-quick``: about a minute of figures, each beside the limit it is held against."""

import os
import sys
import tempfile
import uuid
from pathlib import Path

import anyio

import tailrace
from tailrace.bench import limits, workbench
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.run import run, single_sends
from tailrace.bench.workload import Measured, Mode, Workload, percentiles

ROUNDS = 3
RECORDS = 1_000_000
SIZE_BYTES = 100
BATCH = 10_000
SEND_RATE_PER_S = 100.0
SEND_SECONDS = 8.0
PATIENCE_S = 60.0


def main() -> None:
    """Print the figures as a Markdown table; a folder to work in may be named."""
    parent = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", dir=parent) as folder:
        touch_disk(Path(folder))
        with BrokerProcess(Path(folder) / "data") as broker:
            produced, consumed = list[float](), list[float]()
            loopback, synced, packed = list[float](), list[float](), list[float]()
            for _ in range(ROUNDS):  # A B A B: the machine is shared, ratios are what counts
                loopback.append(limits.loopback_bytes_per_s())
                produced.append(rate(measure(broker.url, "produce")))
                synced.append(limits.fdatasyncs_per_s(Path(folder)))
                consumed.append(rate(measure(broker.url, "consume")))
                packed.append(limits.packed_records_per_s())
            sends = percentiles(anyio.run(latencies, broker.url, backend="asyncio"))
    print(f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, {SIZE_BYTES} B records")
    print("| what | median | lowest to highest |\n|---|---|---|")
    show("produced by `send_many`, durability fsync", produced, "records/s")
    show("consumed by `batches()`", consumed, "records/s")
    show("limit: raw loopback", [value / 1e6 for value in loopback], "MB/s")
    show("limit: fdatasync of 4 KiB, one after another", synced, "/s")
    show("limit: msgpack packing of columns", packed, "records/s")
    print(
        f"| durable `send` at {SEND_RATE_PER_S:.0f}/s | p50 {sends['p50']:.2f} ms |"
        f" p99 {sends['p99']:.2f} ms, max {sends['max']:.2f} ms |"
    )


def touch_disk(folder: Path) -> None:
    """About as many blocks as the run will use."""
    workbench.touch_disk(folder, 3 * RECORDS * SIZE_BYTES)


def measure(url: str, mode: Mode) -> Measured:
    workload = Workload(mode, RECORDS, SIZE_BYTES, BATCH, 1, 1, "all")

    async def work() -> Measured:
        async with tailrace.connect(url) as client:
            topic = f"bench-{uuid.uuid4().hex[:12]}"
            return await run(client, workload, topic, False, lambda _: None, patience_s=PATIENCE_S)

    return anyio.run(work, backend="asyncio")


async def latencies(url: str) -> list[float]:
    async with tailrace.connect(url) as client:
        await client.admin.create_topic("bench-latency")
        return await single_sends(
            client,
            "bench-latency",
            rate_per_s=SEND_RATE_PER_S,
            seconds=SEND_SECONDS,
            size_bytes=SIZE_BYTES,
        )


def rate(measured: Measured) -> float:
    return measured.records / measured.elapsed_seconds


def show(what: str, values: list[float], unit: str) -> None:
    ordered = sorted(values)
    median = ordered[len(ordered) // 2]
    print(f"| {what} | {median:,.0f} {unit} | {ordered[0]:,.0f} to {ordered[-1]:,.0f} |")


if __name__ == "__main__":
    main()
