"""``make demo``: a real access log in, durable on disk, out again, and proof that it is the same.

Starts a broker as a process of its own on a fresh data directory, imports the log keyed by client
address into a topic of four partitions, reads it back, kills the broker with SIGKILL, starts it
again and reads once more. Exits 0 only if, both times, every client's lines came back unchanged
and in order.
"""

import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess

PARTITIONS = 4
CHUNK_RECORDS = 1_000
LATENCY_SENDS = 500
Lines = dict[bytes, list[bytes]]


def main() -> None:
    """Run the demo on the log named on the command line."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/apache_access.log")
    lines = path.read_bytes().splitlines()
    print(f"tailrace demo: {len(lines):,} lines of {path.name}, durability fsync")
    with tempfile.TemporaryDirectory(prefix="tailrace-demo-") as folder:
        broker = BrokerProcess(Path(folder) / "data")
        with broker:
            print(f"  broker ready in {broker.ready_seconds:.2f} s: {broker.url}")
            asyncio.run(import_log(broker.url, lines))
            asyncio.run(read_back(broker.url, lines, "read back"))
            asyncio.run(measure_sends(broker.url, lines))
            broker.kill()
            print("  broker killed with SIGKILL")
            broker.start()
            print(f"  broker ready again in {broker.ready_seconds:.2f} s")
            asyncio.run(read_back(broker.url, lines, "read back again"))
    print("ok: every client's lines came back unchanged and in order, before and after the kill")


async def import_log(url: str, lines: Sequence[bytes]) -> None:
    """Send the whole log, keyed by client address, stamped with the log's own times."""
    keys = [client_address(line) for line in lines]
    times = [event_time_ms(line) for line in lines]
    async with tailrace.connect(url) as client:
        await client.admin.create_topic("access", partitions=PARTITIONS)
        began = time.perf_counter()
        async with client.producer() as producer:
            for at in range(0, len(lines), CHUNK_RECORDS):
                chunk = slice(at, at + CHUNK_RECORDS)
                await producer.send_many(
                    "access", lines[chunk], keys=keys[chunk], timestamps=times[chunk]
                )
        elapsed = time.perf_counter() - began
    report("imported", lines, elapsed, f"{len(set(keys)):,} clients, {PARTITIONS} partitions")


async def read_back(url: str, lines: Sequence[bytes], what: str) -> None:
    """Read the topic to its end and compare with the input, client by client, in order."""
    expected: Lines = defaultdict(list)
    for line in lines:
        expected[client_address(line)].append(line)
    found: Lines = defaultdict(list)
    async with tailrace.connect(url) as client:
        began = time.perf_counter()
        async with client.consumer("access", stop_at_end=True) as consumer:
            async for batch in consumer.batches():
                for key, value in zip(batch.keys, batch.values, strict=True):
                    assert key is not None
                    assert value is not None
                    found[key].append(value)
        elapsed = time.perf_counter() - began
    if found != expected:
        wrong = [key for key in expected if found.get(key) != expected[key]]
        sys.exit(f"FAILED: {len(wrong):,} clients differ, for one {wrong[:1]}")
    report(what, lines, elapsed, "equal per client, in order")


async def measure_sends(url: str, lines: Sequence[bytes]) -> None:
    """How long one durable ``send`` takes, one at a time."""
    taken: list[float] = []
    async with tailrace.connect(url) as client:
        await client.admin.create_topic("latency")
        async with client.producer() as producer:
            for line in lines[:LATENCY_SENDS]:
                began = time.perf_counter()
                await producer.send("latency", line)
                taken.append((time.perf_counter() - began) * 1_000)
    taken.sort()
    p50, p90, p99 = (taken[int(len(taken) * share)] for share in (0.5, 0.9, 0.99))
    print(
        f"  {len(taken)} single durable sends: p50 {p50:.2f} ms  p90 {p90:.2f} ms  p99 {p99:.2f} ms"
    )


def report(what: str, lines: Sequence[bytes], elapsed: float, remark: str) -> None:
    size = sum(map(len, lines))
    rate, speed = len(lines) / elapsed, size / elapsed / 1_000_000
    print(f"  {what}: {rate:,.0f} records/s, {speed:.0f} MB/s ({elapsed:.2f} s; {remark})")


def client_address(line: bytes) -> bytes:
    return line.split(b" ", 1)[0]


def event_time_ms(line: bytes) -> int:
    stamp = line.split(b"[", 1)[1].split(b"]", 1)[0].decode()
    return int(datetime.strptime(stamp, "%d/%b/%Y:%H:%M:%S %z").timestamp() * 1_000)


if __name__ == "__main__":
    main()
