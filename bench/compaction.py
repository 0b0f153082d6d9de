"""How fast compaction is, what memory it takes, and whether anybody notices.

    python -m tailrace.bench.compaction [--records N] [--keys N] [--rounds N] [--rate SIZE]

Starts a broker of its own and, for each round, builds a topic of so many records over so many keys
(100 B values, keys in random order, one record in fifty a tombstone). Then, round by round:

A. durable sends to another topic, 100 per second, and a consumer that follows it, while nothing
   else happens;
B. the same while the cleaner works on the round's topic, as fast as it can or at ``--rate`` per
   second (storage.cleaner_rate): its MB/s, and by how much the memory of broker and worker together
   grows.

At the end every topic is read from its start and held against a dict. Beside the cleaner's figure
stands what the disk takes in the same run when as many bytes are written and synced.
"""

import argparse
import itertools
import os
import random
import struct
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec

import tailrace
from tailrace.bench.processes import BrokerProcess
from tailrace.bench.workload import percentiles

VALUE_BYTES = 100
BATCH = 10_000
BATCHES_IN_FLIGHT = 4
TOMBSTONES_EVERY = 50
SENDS_PER_S = 100.0
SEND_BYTES = 100
STAMP = struct.Struct(">d")
QUIET_S = 15.0
LOOK_S = 0.1
CHILDREN_S = 1.0
RUN_S_MAX = 3_600.0
CHUNK = bytes(random.Random(7).randbytes(4 << 20))
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SETTINGS = {
    "TAILRACE_LOG__FORMAT": "json",
    "TAILRACE_STORAGE__MIN_FREE": "1MiB",
}


@dataclass(frozen=True, slots=True)
class Built:
    """A topic, and what is in it after everything that is superseded has gone."""

    topic: str
    last: list[int]  # by key: number of its last record; -1: a tombstone, -2: none
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Latencies:
    """In ms, each from when the record was meant to be sent."""

    sent: list[float] = field(default_factory=list[float])  # until it was durable
    received: list[float] = field(default_factory=list[float])  # until a consumer had it


class Done(msgspec.Struct):
    """A line of the broker's log, as far as it matters here."""

    event: str = ""
    topic: str = ""
    message: str = ""
    seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000, help="of each topic")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", default="unlimited", help="storage.cleaner_rate")
    given = parser.parse_args()
    records, keys = given.records, given.keys
    os.environ |= SETTINGS | {"TAILRACE_STORAGE__CLEANER_RATE": given.rate}
    with tempfile.TemporaryDirectory(prefix="tailrace-compaction-") as folder:
        with BrokerProcess(Path(folder) / "data") as broker:
            anyio.run(measure, broker, records, keys, given.rounds, backend="asyncio")
        disk_bytes_per_s = written_per_s(Path(folder), records * VALUE_BYTES)
    print(f"disk, sequential, written and synced: {disk_bytes_per_s / 1e6:,.0f} MB/s")


async def measure(broker: BrokerProcess, records: int, keys: int, rounds: int) -> None:
    """All rounds against one broker."""
    async with tailrace.connect(broker.url) as client:
        await client.admin.create_topic("probe")
        built = [await build(client, f"t{number}", records, keys) for number in range(rounds)]
        for one in built:
            async with sending(client) as quiet:
                await anyio.sleep(QUIET_S)
            show("A, nothing else", quiet)
            async with sending(client) as busy:
                await compacted(client, broker, one)
            show("B, while the cleaner ran", busy)
        for one in built:
            count = await check(client, one)
            print(f"{one.topic}: {count:,} records left, equal to the dict")


async def build(
    client: tailrace.Client, topic: str, records: int, keys: int, value_bytes: int = VALUE_BYTES
) -> Built:
    """Make the topic. It is not compacted yet."""
    await client.admin.create_topic(topic)
    names, rng = [b"key-%09d" % number for number in range(keys)], random.Random(topic)
    padding = [rng.randbytes(value_bytes - 8) for _ in range(1_000)]
    last = [-2] * keys
    waiting = anyio.Semaphore(BATCHES_IN_FLIGHT)
    began = time.perf_counter()
    async with client.producer() as producer, anyio.create_task_group() as tasks:

        async def send(values: Sequence[bytes | None], of: Sequence[bytes]) -> None:
            await producer.send_many(topic, values, keys=of)
            waiting.release()

        for first in range(0, records, BATCH):
            chosen = rng.choices(range(keys), k=min(BATCH, records - first))
            values: list[bytes | None] = []
            for number, key in enumerate(chosen, first):
                dead = number % TOMBSTONES_EVERY == 0
                last[key] = -1 if dead else number
                values.append(None if dead else number.to_bytes(8) + padding[number % 1_000])
            await waiting.acquire()
            tasks.start_soon(send, values, [names[key] for key in chosen])
    detail = await client.admin.describe_topic(topic)
    seconds = time.perf_counter() - began
    print(f"{topic}: {records:,} records, {detail.size_bytes / 1e6:,.0f} MB, in {seconds:.1f} s")
    return Built(topic, last, detail.size_bytes)


@asynccontextmanager
async def sending(client: tailrace.Client) -> AsyncGenerator[Latencies]:
    """Durable sends of 100 B at a fixed rate, and somebody who reads them as they come."""
    latencies = Latencies()
    padding = CHUNK[: SEND_BYTES - STAMP.size]

    async def one(intended: float) -> None:
        await producer.send("probe", STAMP.pack(intended) + padding)
        latencies.sent.append((time.perf_counter() - intended) * 1_000)

    async def regularly() -> None:
        began = time.perf_counter()
        for number in itertools.count():
            intended = began + number / SENDS_PER_S
            await anyio.sleep(max(0.0, intended - time.perf_counter()))
            tasks.start_soon(one, intended)

    async def follow() -> None:
        async for record in consumer:
            (intended,) = STAMP.unpack_from(record.value or b"")
            latencies.received.append((time.perf_counter() - intended) * 1_000)

    async with client.producer() as producer, client.consumer("probe", start="latest") as consumer:
        await producer.send("probe", STAMP.pack(time.perf_counter()) + padding)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            tasks.start_soon(regularly)
            yield latencies
            tasks.cancel_scope.cancel()


async def compacted(client: tailrace.Client, broker: BrokerProcess, built: Built) -> Done:
    """Have a topic compacted, and say how that went."""
    config: dict[str, tailrace.ConfigValue | None] = {
        **{"cleanup": "compact", "compaction_dirty_ratio": 0, "compaction_lag_max": 1}
    }
    with watched_memory(broker.pid) as memory:
        before = sum(memory.now())
        await client.admin.alter_topic(built.topic, config=config)
        done = await ended(broker, built.topic)
    growth = memory.peak_bytes - before
    print(
        f"{built.topic}: compacted {built.size_bytes / 1e6:,.0f} MB in {done.seconds:.1f} s,"
        f" {built.size_bytes / done.seconds / 1e6:,.0f} MB/s"
        f" (read {done.read_bytes / 1e6:,.0f} MB, wrote {done.written_bytes / 1e6:,.0f} MB);"
        f" memory grew by {growth / (1 << 20):,.0f} MiB"
        f" ({', '.join(f'{size / (1 << 20):,.0f}' for size in memory.at_peak)} at the peak)"
    )
    return done


async def ended(broker: BrokerProcess, topic: str) -> Done:
    """Wait for the broker to say that it compacted the topic."""
    with anyio.fail_after(RUN_S_MAX):
        while True:
            for line in broker.stderr_path.read_text().splitlines():
                event = msgspec.json.decode(line, type=Done) if line.startswith("{") else Done()
                if event.topic == topic and event.event == "compaction.failed":
                    raise RuntimeError(event.message)
                if event.topic == topic and event.event == "compaction.done":
                    return event
            await anyio.sleep(LOOK_S)


async def check(client: tailrace.Client, built: Built) -> int:
    """Read the topic and hold it against what was sent; how many records there are."""
    found = [-2] * len(built.last)
    count = 0
    async with client.consumer(built.topic, stop_at_end=True) as consumer:
        async for batch in consumer.batches(max_records=BATCH):
            for key, value in zip(batch.keys, batch.values, strict=True):
                assert key is not None
                number = int(key[4:])
                assert found[number] == -2, f"{key!r} stands twice"
                found[number] = -1 if value is None else int.from_bytes(value[:8])
            count += len(batch)
    wrong = sum(a != b for a, b in zip(found, built.last, strict=True))
    assert not wrong, f"{wrong} keys of {built.topic} differ"
    return count


class Memory:
    """Resident memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak_bytes = 0
        self.at_peak: list[int] = []
        self._children: list[int] = []
        self._children_at = 0.0  # when to look for them again

    def now(self) -> list[int]:
        """Of each process; the first one's own first."""
        if time.monotonic() >= self._children_at:
            self._children = children_of(self.pid)
            self._children_at = time.monotonic() + CHILDREN_S
        sizes = [resident_bytes(pid) for pid in (self.pid, *self._children)]
        if sum(sizes) > self.peak_bytes:
            self.peak_bytes, self.at_peak = sum(sizes), sizes
        return sizes


@contextmanager
def watched_memory(pid: int) -> Generator[Memory]:
    """Look at it ten times a second."""
    memory, over = Memory(pid), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            memory.now()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue  # it has just ended
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def written_per_s(folder: Path, size_bytes: int) -> float:
    """Bytes per second, 4 MiB at a time, with one sync at the end."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(max(1, size_bytes // len(CHUNK))):
            os.write(file.fileno(), CHUNK)
        os.fdatasync(file.fileno())
        return os.fstat(file.fileno()).st_size / (time.perf_counter() - began)


def show(what: str, latencies: Latencies) -> None:
    for done, found in ("durable sends", latencies.sent), ("received", latencies.received):
        of = percentiles(found)
        print(
            f"{what}: {len(found):,} {done},"
            f" p50 {of['p50']:.2f} ms, p99 {of['p99']:.2f} ms, max {of['max']:.1f} ms"
        )


if __name__ == "__main__":
    main()
