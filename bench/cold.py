"""Catching up from the disk beside a live producer (P11).

    python -m tailrace.bench.cold [--size 512MiB]

A topic of that size is written, synced, and thrown out of the page cache file by file
(``posix_fadvise``). Paths: ``cold-read`` (the consumer's bytes per second, through the broker, by
fetches of 1 MiB of which nothing is decoded) and ``disk-read`` (the same files, read in one stream
without a broker); ``live-p99`` and ``live-p99-beside-cold``: durable sends to another topic at
200/s, from their intended times, before and while the cold topic is read, again and again.
"""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from tailrace.bench.actors import Actor, go
from tailrace.bench.cpus import SENDERS
from tailrace.bench.latency import send
from tailrace.bench.streams import create
from tailrace.bench.wire import Batch, Wire, batch_of
from tailrace.bench.workbench import BLOCK, Workbench, parser, say, workbench
from tailrace.bench.workload import percentiles
from tailrace.protocol.units import parse_size_bytes

SIZE_BYTES = 1_000
RECORDS = 256
RATE_PER_S = 200.0
FETCH_BYTES = 1 << 20


def forget(folder: Path) -> int:
    """Sync all logs below a folder and drop them from the page cache; their bytes."""
    total = 0
    for path in sorted(folder.rglob("*.log")):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(number).st_size
        finally:
            os.close(number)
    return total


def read_files(folder: Path) -> float:
    """Bytes per second of all logs below a folder, one after the other."""
    forget(folder)
    buffer, total = bytearray(BLOCK), 0
    began = time.perf_counter()
    for path in sorted(folder.rglob("*.log")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - began)


def live(bench: Workbench, url: str, path: str) -> None:
    """The p99 of durable sends."""
    with Actor(send, url, "live", RATE_PER_S, bench.seconds).placed(
        SENDERS, fine_timers=True
    ) as sender:
        go(sender)
        found = percentiles(sender.result())
    bench.tell(path, found["p99"], "ms", size_bytes=100, durable=True, note=f"{RATE_PER_S:.0f}/s")


class Reader(threading.Thread):
    """Reads the cold topic from start to end, over and over, and makes it cold before each time.

    A context manager; what it found is there at its end.
    """

    def __init__(self, url: str, batch: Batch, count: int, folder: Path) -> None:
        super().__init__()
        self._url, self._batch, self._count, self._folder = url, batch, count, folder
        self._over = threading.Event()
        self.size_bytes, self.seconds = 0, 0.0

    def run(self) -> None:
        with Wire(self._url) as wire:
            while not self._over.is_set():
                forget(self._folder)
                size, took_s = wire.read(self._batch, self._count, bytes_max=FETCH_BYTES, laps=1)
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


def measure(bench: Workbench, size_bytes: int) -> None:
    with bench.broker(touch_bytes=size_bytes) as broker:
        anyio.run(create, broker.url, ["live"], 1, "fsync")
        anyio.run(create, broker.url, ["cold"], 1, "os")
        with Wire(broker.url) as wire:
            batch = batch_of(wire.topic("cold"), 0, RECORDS, SIZE_BYTES)
            count, _ = wire.produce([batch], size_bytes=size_bytes)
        say(f"cold: {forget(broker.data_dir) >> 20} MiB of files")
        bench.tell("disk-read", read_files(broker.data_dir), "bytes/s", system="machine")
        live(bench, broker.url, "live-p99")
        with Reader(broker.url, batch, count, broker.data_dir) as reader:
            live(bench, broker.url, "live-p99-beside-cold")
        bytes_per_s = reader.size_bytes / reader.seconds
        bench.tell("cold-read", bytes_per_s, "bytes/s", size_bytes=SIZE_BYTES)


def main() -> None:
    made = parser(__doc__ or "", seconds=3.0)
    made.add_argument("--size", default="512MiB", help="of the cold topic")
    given = made.parse_args()
    with workbench(given) as bench:
        measure(bench, parse_size_bytes(given.size) or 0)


if __name__ == "__main__":
    main()
