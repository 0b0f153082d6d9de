"""How long a broker with much data needs to be ready again after ``kill -9``.

    python -m tailrace.bench.recovery [--partitions 500] [--size 10GiB] [--small 1GiB] [DIR]

Fills a topic through the SDK, in batches of 16 to 256 KiB, kills the broker in the midst of it and
starts it again: once with the files still in the page cache, once (as root) after the cache was
dropped. Ready is when ``/readyz`` says 200, counted from the start of the process. Then the same
with small batches of 1 KiB, and the space that partitions with 1 MiB each take. Give a folder on
the disk to be measured; it needs room for the data, and everything is removed at the end.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess, free_port
from tailrace.bench.workload import make_values
from tailrace.protocol.units import format_size, parse_size_bytes

TOPIC = "recovery"
LARGE_BYTES = (16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10)
SMALL_BYTES = (1 << 10,)
RECORD_BYTES = 1_000
CALLERS = 64
PRODUCERS = 4
MORE_SHARE = 0.1  # written again before each further start, so that there is something to recover
READY_SECONDS_MAX = 120.0
IDLE_SECONDS = 3.0
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Load:
    """What to fill a broker with."""

    partitions: int
    total_bytes: int
    batch_bytes: Sequence[int]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time to ready after kill -9.")
    parser.add_argument("--partitions", type=int, default=500)
    parser.add_argument("--size", default="10GiB", help="data in large batches; 0: leave it out")
    parser.add_argument("--small", default="1GiB", help="data in batches of 1 KiB; 0: leave it out")
    parser.add_argument("folder", nargs="?", help="where to work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailrace-recovery-", dir=options.folder) as folder:
        print(f"{os.cpu_count()} CPUs, {options.partitions} partitions")
        for name, size, batches in (
            ("batches of 16 to 256 KiB", options.size, LARGE_BYTES),
            ("batches of 1 KiB", options.small, SMALL_BYTES),
        ):
            load = Load(options.partitions, parse_size_bytes(size) or 0, batches)
            if load.total_bytes:
                measure(Path(folder) / "data", name, load)
        measure_space(Path(folder) / "space", options.partitions)


def measure(data: Path, name: str, load: Load) -> None:
    """Fill, kill, start; write more, kill, drop the page cache, start."""
    port = free_port()
    broker = BrokerProcess(data, arguments=("--http-port", str(port)))
    try:
        broker.start()
        began = time.perf_counter()
        asyncio.run(fill(broker, load))
        seconds = time.perf_counter() - began
        print(f"{name}: {format_size(load.total_bytes)} in {seconds:.0f} s, killed while writing")
        report("warm", broker, port)
        asyncio.run(fill(broker, more(load)))
        if drop_caches():
            report("cold", broker, port)
    finally:
        broker.kill()
        remove(data)


def more(load: Load) -> Load:
    return Load(load.partitions, int(load.total_bytes * MORE_SHARE), load.batch_bytes)


async def fill(broker: BrokerProcess, load: Load) -> None:
    """Send until so many bytes are durable, then kill the broker under the senders."""
    done = 0
    finished = asyncio.Event()
    rng = random.Random(load.total_bytes)
    values = make_values(max(load.batch_bytes) // RECORD_BYTES + 1, RECORD_BYTES)
    turn = iter(range(1 << 62))

    async def send(producer: tailrace.Producer[bytes, bytes]) -> None:
        nonlocal done
        while True:
            size = rng.choice(load.batch_bytes)
            chosen = values[: max(1, size // RECORD_BYTES)]
            with suppress(tailrace.TailraceError):
                await producer.send_many(TOPIC, chosen, partition=next(turn) % load.partitions)
            done += sum(map(len, chosen))
            if done >= load.total_bytes:
                finished.set()

    async with tailrace.connect(broker.url) as client:
        await client.admin.create_topic(TOPIC, partitions=load.partitions, exist_ok=True)
        async with producers(client) as made:
            tasks = [
                asyncio.ensure_future(send(made[number % PRODUCERS])) for number in range(CALLERS)
            ]
            await finished.wait()
            await asyncio.to_thread(broker.kill)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def producers(
    client: tailrace.Client,
) -> AsyncGenerator[list[tailrace.Producer[bytes, bytes]]]:
    """Some producers; what they could not send any more is of no interest."""
    made = [client.producer(compression="none", close_timeout=0.1) for _ in range(PRODUCERS)]
    for one in made:
        await one.__aenter__()
    try:
        yield made
    finally:
        for one in made:
            with suppress(tailrace.TailraceError):
                await one.aclose()


def report(state: str, broker: BrokerProcess, port: int) -> None:
    """Start the broker and print how long it took, and what recovery says it did."""
    ready, said = start(broker, port), recovered(broker)
    print(f"  {state}: /readyz 200 after {ready:.2f} s, du {format_size(du(broker.data_dir))}")
    print(f"    {said}")


def start(broker: BrokerProcess, port: int) -> float:
    """Seconds from the start of the process to the first 200 of ``/readyz``."""
    began = time.monotonic()
    broker.start()
    wait(lambda: status(port, "/readyz") == 200, began)
    return time.monotonic() - began


def wait(done: Callable[[], bool], began: float) -> None:
    while not done():
        if time.monotonic() - began > READY_SECONDS_MAX:
            sys.exit(f"the broker is not ready after {READY_SECONDS_MAX:.0f} s")
        time.sleep(0.01)


def status(port: int, path: str) -> int:
    """What the broker answers on HTTP; 0 if it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def recovered(broker: BrokerProcess) -> str:
    """The last closing line of recovery in the broker's log."""
    lines = broker.stderr_path.read_text(errors="replace").splitlines()
    found = [json.loads(line) for line in lines if '"broker.recovered"' in line]
    return str(found[-1]["message"])


def measure_space(data: Path, partitions: int) -> None:
    """What partitions with 1 MiB each take on the disk, once the broker is idle and at the end."""
    broker = BrokerProcess(data)
    try:
        with broker:
            asyncio.run(fill_evenly(broker, partitions))
            idle = settled_du(data)
        print(
            f"{partitions} partitions with 1 MiB each: du {format_size(idle)} while the broker"
            f" idles, {format_size(du(data))} after a clean stop"
        )
    finally:
        remove(data)


async def fill_evenly(broker: BrokerProcess, partitions: int) -> None:
    """1 MiB for each, in batches of 64 KiB."""
    values = make_values((64 << 10) // RECORD_BYTES + 1, RECORD_BYTES)
    async with tailrace.connect(broker.url) as client:
        await client.admin.create_topic(TOPIC, partitions=partitions)
        async with client.producer(compression="none") as producer:
            for _ in range(16):
                sends = [
                    producer.send_many(TOPIC, values, partition=at) for at in range(partitions)
                ]
                await asyncio.gather(*sends)


def settled_du(data: Path) -> int:
    """Once it does not grow any more: zeros are written ahead of the logs while a disk is idle."""
    held, before = du(data), 0
    while held > before:
        time.sleep(IDLE_SECONDS)
        held, before = du(data), held
    return held


def du(folder: Path) -> int:
    """Bytes on the disk, as ``du`` counts them."""
    blocks = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                blocks += os.lstat(os.path.join(parent, name)).st_blocks
    return blocks * 512


def drop_caches() -> bool:
    """Forget the page cache, so that everything is read from the disk; False: not allowed."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        print("  cold: not measured, only root may drop the page cache")
        return False
    return True


def remove(data: Path) -> None:
    """The data and what the broker wrote beside it."""
    for parent, folders, names in os.walk(data, topdown=False):
        for name in names:
            Path(parent, name).unlink()
        for name in folders:
            Path(parent, name).rmdir()
    if data.exists():
        data.rmdir()


if __name__ == "__main__":
    main()
