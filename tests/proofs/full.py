"""A real broker on a file system of 96 MiB, under a producer that never stops (root: mounts it).

    python -m tests.proofs.full                   all of it: 10 minutes of the ring, then the rest
    python -m tests.proofs.full --seconds 20      the same in short
    python -m tests.proofs.full --only ring       ring | reject | inject

**ring**: a topic with ``on_full = drop_oldest``. The producer must never be refused, a reader at
the head must see every record, one that fell behind must be told so with numbers.

**reject**: a topic that keeps what it promised. The producer is refused when the disk is full and
goes on by itself each time room is made: a foreign file goes, a topic is deleted, a retention is
shortened, and after other programs took the very last block. Nothing acknowledged is lost.

**inject**: calls of the broker fail with ENOSPC under ``strace``: writes of every kind, growing a
new segment, renames, the metadata store's writes. The broker lives, nothing acknowledged is lost.
"""

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import tailrace
from tailrace.bench.processes import BrokerProcess
from tests.proofs.producing import PARTITIONS, VALUE_BYTES, Producing, number_of

DISK_BYTES = 96 << 20
MIB = 1 << 20
WINDOW_S = 10.0
CALLS = ("pwritev2", "ftruncate", "rename", "pwrite64")  # what writes, grows, names; and SQLite
RING, KEPT, OTHER = "ring", "kept", "other"


class SmallDisk:
    """An ext4 file system in a file. No block is reserved for root, who runs this."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        run("mount", "-o", "loop", str(image), str(self.path))

    def fill(self, size_bytes: int | None = None) -> int:
        """A foreign file of that size, or of all there is; how many bytes it got."""
        written, chunk = 0, bytes(65_536)
        with (self.path / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while size_bytes is None or written < size_bytes:
                written += file.write(chunk)
            os.fsync(file.fileno())
        return written

    def empty(self) -> None:
        (self.path / "filler").unlink()

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def unmount(self) -> None:
        run("umount", str(self.path))


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass
class Bench:
    """One broker on one small disk, and a client of it."""

    disk: SmallDisk
    broker: BrokerProcess
    client: tailrace.Client

    async def refusals(self) -> int:
        """Produce requests that were answered with T031, so far."""
        http = (await self.client.admin.describe_cluster()).brokers[0].http
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{http}/metrics").read())
        lines = [line for line in text.decode().splitlines() if 'code="T031"' in line]
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if "_requests" in line))

    async def state(self) -> str:
        return (await self.client.admin.describe_cluster()).brokers[0].state

    async def bounds(self, topic: str) -> list[tuple[int, int]]:
        """Log start and high watermark of each partition."""
        detail = await self.client.admin.describe_topic(topic)
        return [(one.log_start, one.high_watermark) for one in detail.partition_list]

    async def until(
        self, what: str, done: Callable[[], Awaitable[bool]], seconds: float = 60.0
    ) -> float:
        """Wait for it; how many seconds it took."""
        began = time.monotonic()
        while not await done():
            assert time.monotonic() - began < seconds, f"{what}: not within {seconds:.0f} s"
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def read_all(self, topic: str) -> list[int]:
        """Read what there is; how many records by partition. Each must stand at its offset."""
        found, before = [0] * PARTITIONS, dict(enumerate(await self.bounds(topic)))
        async with self.client.consumer(topic, stop_at_end=True) as consumer:
            async for record in consumer:
                assert number_of(record.value) == record.offset, "not where it was acknowledged"
                start, end = before[record.partition]
                assert found[record.partition] or record.offset >= start
                if not found[record.partition]:
                    before[record.partition] = (record.offset, end)
                expected = before[record.partition][0] + found[record.partition]
                assert record.offset == expected, f"{expected} is missing"
                found[record.partition] += 1
        for partition, (start, end) in before.items():
            assert start + found[partition] >= end, f"partition {partition} ends too early"
        return found


@contextmanager
def small_broker() -> Generator[tuple[SmallDisk, BrokerProcess], None, None]:
    folder = Path(tempfile.mkdtemp(prefix="tailrace-full-"))
    disk = SmallDisk(folder)
    broker = BrokerProcess(disk.path / "data")
    broker.stderr_path = folder / "broker.stderr"
    try:
        with broker:
            yield disk, broker
            assert broker.stop() == 0, f"the broker did not end well; see {broker.stderr_path}"
        text = broker.stderr_path.read_text(errors="replace")
        assert "Traceback" not in text, f"see {broker.stderr_path}"
    finally:
        disk.unmount()
    shutil.rmtree(folder)


# ── the ring ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class Head:
    """A reader at the head, which must miss nothing."""

    seen: int = 0
    lag_max: int = 0  # records


async def follow(bench: Bench, head: Head, producing: Producing) -> None:
    expected: dict[int, int] = {}
    async with bench.client.consumer(RING, start="earliest") as consumer:
        async for batch in consumer.batches(max_records=2_000):
            for record in batch:
                wanted = expected.get(record.partition, record.offset)
                assert record.offset == wanted == number_of(record.value), f"{wanted} is missing"
                expected[record.partition] = wanted + 1
            head.seen += len(batch)
            head.lag_max = max(head.lag_max, producing.last.records - sum(expected.values()))


async def fall_behind(bench: Bench) -> str:
    """Stop reading until the position is gone; what the consumer is told then."""
    async with bench.client.consumer(RING, prefetch_bytes=1) as consumer:
        first = await anext(aiter(consumer))

        async def gone() -> bool:
            return all(start > 0 for start, _ in await bench.bounds(RING))

        await bench.until("the oldest records go", gone)
        with pytest.raises(tailrace.OffsetOutOfRange) as told:
            async for _ in consumer:
                pass
    assert first.offset <= told.value.requested < told.value.start < told.value.end
    return str(told.value)


async def ring(bench: Bench, seconds: float) -> None:
    config = {"on_full": "drop_oldest"}
    await bench.client.admin.create_topic(RING, partitions=PARTITIONS, config=config)
    head, ends_at = Head(), time.monotonic() + seconds
    with Producing(bench.broker.url, RING) as producing:
        await bench.until("the first records", moved(producing, 0))
        behind = asyncio.create_task(fall_behind(bench))
        following = asyncio.create_task(follow(bench, head, producing))
        free_bytes = bench.disk.free_bytes
        while time.monotonic() < ends_at:
            await asyncio.sleep(0.25)
            free_bytes = min(free_bytes, bench.disk.free_bytes)
            for task in (following, behind):
                if task.done():
                    task.result()
        told = await behind
        report = producing.stop()
        await asyncio.sleep(1.0)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    assert report.errors == 0, f"{report.errors} sends failed"
    refusals, bounds = await bench.refusals(), await bench.bounds(RING)
    assert [end for _, end in bounds] == list(report.acked), "the log does not end with the acks"
    kept = await bench.read_all(RING)
    rates = producing.rates(min(WINDOW_S, seconds / 4))
    rates_mb = [rate * VALUE_BYTES / 1e6 for rate in rates]
    print(f"  MB/s: {' '.join(f'{rate:.1f}' for rate in rates_mb)}")
    print(
        f"ok ring: {report.records:,} records of 1 KiB in {seconds:.0f} s, {sum(kept):,} kept;"
        f" MB/s min {min(rates_mb):.1f}, median {statistics.median(rates_mb):.1f}, max"
        f" {max(rates_mb):.1f}; {refusals} refusals; least free {free_bytes / MIB:.1f} MiB; the"
        f" reader at the head saw {head.seen:,}, at most {head.lag_max:,} behind"
    )
    print(f"  told to the one that fell behind: {told}")
    assert refusals == 0, "a producer was refused"
    assert min(rates_mb) > statistics.median(rates_mb) / 4, "not steady"


# ── a topic that keeps what it promised ──────────────────────────────────────────────────────


async def reject(bench: Bench) -> None:
    admin = bench.client.admin
    await admin.create_topic(KEPT, partitions=PARTITIONS)
    await admin.create_topic(OTHER)
    async with bench.client.producer(compression="none") as producer:
        for _ in range(20):
            await producer.send_many(OTHER, [bytes(VALUE_BYTES)] * 1_000)
    bench.disk.fill(20 * MIB)
    with Producing(bench.broker.url, KEPT) as producing:

        async def refused() -> bool:
            return await bench.state() == "read_only"

        async def resumes(why: str) -> None:
            more = moved(producing, producing.last.records)
            seconds = await bench.until(f"writes after {why}", more, 30)
            print(f"  {why}: writes went on after {seconds:.1f} s")

        await bench.until("the disk is full", refused)
        await asyncio.sleep(3)
        assert await bench.refusals() > 0
        stood = producing.last.records
        await asyncio.sleep(3)
        assert producing.last.records == stood, "written below min_free"
        assert (await bench.bounds(KEPT))[0][0] == 0, "what retention promises was dropped"
        await bench.read_all(KEPT)
        await admin.create_topic("below")
        await admin.alter_topic(OTHER, config={"retention": "1h"})
        print(f"  full at {stood:,} records: reads go on, topics can be created and altered")

        bench.disk.empty()
        await resumes("a foreign file is gone")
        await bench.until("the disk is full again", refused)
        await admin.delete_topic(OTHER)
        await resumes("a topic is deleted")
        await bench.until("the disk is full again", refused)
        taken = bench.disk.fill()
        await asyncio.sleep(3)
        assert bench.disk.free_bytes < MIB
        await admin.alter_topic(KEPT, config={"retention_size": "16MiB"})
        await bench.until("retention makes room", lambda: shrank(bench))
        print(f"  other programs took the last {taken / MIB:.1f} MiB: retention works all the same")
        bench.disk.empty()
        await resumes("the last block is free again")
        report = producing.stop()
    assert report.errors == 0, f"{report.errors} sends failed"
    bounds = await bench.bounds(KEPT)
    assert [end for _, end in bounds] == list(report.acked), "the log does not end with the acks"
    kept = await bench.read_all(KEPT)
    print(
        f"ok reject: {report.records:,} records acknowledged, each at its place, none lost;"
        f" {sum(kept):,} of them kept by retention_size; {await bench.refusals()} refusals"
    )


async def shrank(bench: Bench) -> bool:
    return all(start > 0 for start, _ in await bench.bounds(KEPT))


# ── calls that fail ──────────────────────────────────────────────────────────────────────────


@contextmanager
def failing(call: str, pid: int, trace: Path) -> Generator[None, None, None]:
    """Every fourth such call of each thread fails."""
    tracer = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-o", str(trace), "-p", str(pid)),
            *("-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC:when=3+4"),
        ]
    )
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


async def inject(bench: Bench, seconds: float) -> None:
    for call in CALLS:
        await inject_into(bench, call, seconds)


async def inject_into(bench: Bench, call: str, seconds: float) -> None:
    topic, trace = f"inject-{call}", bench.disk.path.parent / "trace"
    # Small segments, so that new ones are made, indexed, dropped all the time.
    config = {"segment_size": "256KiB", "retention_size": "8MiB"}
    await bench.client.admin.create_topic(topic, partitions=PARTITIONS, config=config)
    denied = 0
    with Producing(bench.broker.url, topic) as producing:
        await bench.until("the first records", moved(producing, 0))
        with failing(call, bench.broker.pid, trace):
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                try:
                    await bench.client.admin.alter_topic(topic, config={"retention": "1h"})
                except (tailrace.MetadataUnavailable, tailrace.RequestTimeout):
                    denied += 1
        await bench.until("writes go on", moved(producing, producing.last.records), 30)
        await bench.client.admin.alter_topic(topic, config={"retention": "2h"})
        report = producing.stop()
    failed = len(re.findall(r"ENOSPC.*INJECTED", trace.read_text()))
    assert failed, f"{call} was never made to fail"
    assert report.errors == 0, f"{report.errors} sends failed"
    ends = [end for _, end in await bench.bounds(topic)]
    assert ends == list(report.acked), "the log does not end with the acks"
    await bench.read_all(topic)
    await bench.client.admin.delete_topic(topic)
    print(
        f"ok inject {call}: {failed:,} calls failed; {report.records:,} records acknowledged, each"
        f" at its place, none lost; {denied} alterations refused"
    )


def moved(producing: Producing, before: int) -> Callable[[], Awaitable[bool]]:
    """More than so many records are acknowledged."""

    async def more() -> bool:
        return producing.last.records > before

    return more


# ── the command ──────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of the ring")
    parser.add_argument("--only", choices=("ring", "reject", "inject"))
    options = parser.parse_args()
    works: dict[str, Callable[[Bench], Awaitable[None]]] = {
        "ring": lambda bench: ring(bench, options.seconds),
        "reject": reject,
        "inject": lambda bench: inject(bench, min(10.0, options.seconds / 4)),
    }
    for name, work in works.items():
        if options.only in (None, name):
            try:
                with small_broker() as (disk, broker):
                    asyncio.run(with_client(disk, broker, work))
            except AssertionError as error:
                sys.exit(f"FAILED {name}: {error}")


async def with_client(
    disk: SmallDisk, broker: BrokerProcess, work: Callable[[Bench], Awaitable[None]]
) -> None:
    async with tailrace.connect(broker.url, connect_timeout=20) as client:
        await work(Bench(disk, broker, client))


if __name__ == "__main__":
    main()
