"""Catching up from the disk beside a live producer (P11).

    python -m tailrace.bench.cold [--size 512MiB]

A topic of that size is written, synced, and thrown out of the page cache (``posix_fadvise``) before
each lap, that is each time it is read. Paths: ``cold-read`` (the consumer's bytes per second,
through the broker, by fetches of 1 MiB of which nothing is decoded) and ``disk-read`` (the same
files in the same laps, without a broker and with nobody beside: as many reads of 1 MiB under way as
the consumer has fetches), in turns, of which now the one and now the other begins. What a virtual
disk keeps in its host's memory is as fast for both. ``live-p99`` and ``live-p99-beside-cold``:
durable sends to another topic at 200/s, from their intended times, before and while the cold topic
is read. What the device alone does to whoever syncs, without a broker: ``sync-p99`` (100 B written
into a file of its own and synced, at the same rate), ``sync-p99-beside-read`` (while the same files
are read as fast as they can be) and ``sync-p99-beside-slow-read`` (at 150 MB/s).
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from tailrace.bench.actors import Actor, go
from tailrace.bench.cpus import SENDERS
from tailrace.bench.latency import send
from tailrace.bench.streams import create
from tailrace.bench.touch import BLOCK_BYTES, touch_memory
from tailrace.bench.wire import FETCHES_IN_FLIGHT, Wire, batch_of
from tailrace.bench.workbench import (
    WARM_S,
    Workbench,
    parser,
    say,
    workbench,
)
from tailrace.bench.workload import percentiles
from tailrace.protocol.units import parse_size_bytes

SIZE_BYTES = 1_000
RECORDS = 256
RATE_PER_S = 200.0
FETCH_BYTES = 1 << 20
TURNS = 3  # of the device alone, and of the broker
SLOW_BYTES_PER_S = 150e6
SYNCED_BYTES = 8 << 20  # written before, so that a sync is as cheap as it can be


def forget(folder: Path) -> int:
    """Sync all logs of a folder and drop them from the page cache; their bytes."""
    total = 0
    for path in sorted(folder.glob("*.log")):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(number).st_size
        finally:
            os.close(number)
    return total


def read_files(folder: Path, bytes_per_s: float) -> tuple[int, float]:
    """All logs of a folder, one after the other, at most so fast. Bytes, and seconds it took."""
    buffer, total = bytearray(BLOCK_BYTES), 0
    began = time.perf_counter()
    for path in sorted(folder.glob("*.log")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
                time.sleep(max(0.0, began + total / bytes_per_s - time.perf_counter()))
    return total, time.perf_counter() - began


def read_at_once(folder: Path) -> tuple[int, float]:
    """The same as fast as they can be, ``FETCHES_IN_FLIGHT`` reads under way."""
    places = [
        (path, at)
        for path in sorted(folder.glob("*.log"))
        for at in range(0, path.stat().st_size, FETCH_BYTES)
    ]
    counts = [0] * FETCHES_IN_FLIGHT

    def reader(number: int) -> None:
        buffer = bytearray(FETCH_BYTES)
        with ExitStack() as stack:
            files: dict[Path, int] = {}
            for path, at in places[number::FETCHES_IN_FLIGHT]:
                if path not in files:
                    files[path] = stack.enter_context(path.open("rb", buffering=0)).fileno()
                counts[number] += os.preadv(files[path], [buffer], at)

    threads = [threading.Thread(target=reader, args=(one,)) for one in range(FETCHES_IN_FLIGHT)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts), time.perf_counter() - began


def sync(folder: Path, seconds: float) -> float:
    """The p99 of small writes that are synced one by one, in ms, from their intended times."""
    path, found = folder / "synced", list[float]()
    with path.open("w+b", buffering=0) as file:
        file.write(bytes(SYNCED_BYTES))
        os.fdatasync(file.fileno())
        began = time.perf_counter()
        for number in range(int(seconds * RATE_PER_S)):
            due = began + number / RATE_PER_S
            time.sleep(max(0.0, due - time.perf_counter()))
            os.pwrite(file.fileno(), bytes(100), number * 100)
            os.fdatasync(file.fileno())
            found.append((time.perf_counter() - due) * 1_000)
    path.unlink()
    return percentiles(found)["p99"]


def live(bench: Workbench, url: str, path: str) -> None:
    """The p99 of durable sends."""
    with Actor(send, url, "live", RATE_PER_S, bench.seconds, WARM_S).placed(
        SENDERS, fine_timers=True
    ) as sender:
        go(sender)
        found = percentiles(sender.result())
    bench.tell(path, found["p99"], "ms", size_bytes=100, durable=True, note=f"{RATE_PER_S:.0f}/s")


class Reader(threading.Thread):
    """Reads all of a folder's logs by ``lap``, over and over, and makes them cold before each time.

    A context manager; what it found is there at its end. ``lap`` tells bytes, and seconds.
    """

    def __init__(self, folder: Path, lap: Callable[[], tuple[int, float]]) -> None:
        super().__init__()
        self._folder, self._lap = folder, lap
        self._over = threading.Event()
        self.size_bytes, self.seconds = 0, 0.0

    def run(self) -> None:
        while not self._over.is_set():
            forget(self._folder)
            size, took_s = self._lap()
            self.size_bytes += size
            self.seconds += took_s

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self.join()

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.seconds


def measure(bench: Workbench, size_bytes: int) -> None:
    with bench.broker(touch_bytes=size_bytes) as broker:
        anyio.run(create, broker.url, ["live"], 1, "fsync")
        anyio.run(create, broker.url, ["cold"], 1, "os")
        with Wire(broker.url) as wire:
            topic = wire.topic("cold")
            batch = batch_of(topic, 0, RECORDS, SIZE_BYTES)
            touch_memory(bench.folder, size_bytes)
            count, _ = wire.produce([batch], size_bytes=size_bytes)
            (folder,) = broker.data_dir.rglob(f"{topic.topic_id.hex()}-0")
            say(f"cold: {forget(folder) >> 20} MiB of files")

            def lap() -> tuple[int, float]:
                return wire.read(batch, count, bytes_max=FETCH_BYTES, laps=1)

            def disk() -> None:
                with Reader(folder, partial(read_at_once, folder)) as reader:
                    time.sleep(bench.seconds)
                bench.tell("disk-read", reader.bytes_per_s, "bytes/s", system="machine")

            def through_the_broker() -> None:
                with Reader(folder, lap) as reader:
                    live(bench, broker.url, "live-p99-beside-cold")
                bench.tell("cold-read", reader.bytes_per_s, "bytes/s", size_bytes=SIZE_BYTES)

            for number in range(TURNS):
                live(bench, broker.url, "live-p99")
                # Whoever reads first after the files were written may find them on the disk alone,
                # and who reads later in memory of the host.
                both = (disk, through_the_broker)
                for read in both if (number + bench.round) % 2 else reversed(both):
                    read()
        alone(bench, folder)


def alone(bench: Workbench, folder: Path) -> None:
    """What the device does to whoever syncs, without a broker."""
    bench.tell("sync-p99", sync(bench.folder, bench.seconds), "ms", system="machine")
    for name, lap in (
        ("read", partial(read_at_once, folder)),
        ("slow-read", partial(read_files, folder, SLOW_BYTES_PER_S)),
    ):
        with Reader(folder, lap):
            found = sync(bench.folder, bench.seconds)
        bench.tell(f"sync-p99-beside-{name}", found, "ms", system="machine")


def main() -> None:
    made = parser(__doc__ or "", seconds=2.0)
    made.add_argument("--size", default="512MiB", help="of the cold topic")
    given = made.parse_args()
    with workbench(given) as bench:
        measure(bench, parse_size_bytes(given.size) or 0)


if __name__ == "__main__":
    main()
