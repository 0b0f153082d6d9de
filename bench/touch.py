"""Disk and memory are touched before anything is timed.

A virtual machine may have neither yet: the first write to a block of its disk, and the first touch
of a page since its host took it back, cost more than any broker.
"""

import os
import tempfile
from pathlib import Path
from typing import IO

BLOCK_BYTES = 1 << 20
WRITTEN_BYTES_PER_S = 1_000_000_000  # by producers of a fast machine
# Of every 2 MiB 256 KiB are held: Linux hands free memory back to a host by pieces (free page
# reporting, by its parameter ``page_reporting_order``: 2 MiB), and free runs between held ones are
# smaller.
RUN_BYTES = 256 << 10
RUNS = 8

_held: list[IO[bytes]] = []


def touch_disk(folder: Path, size_bytes: int) -> None:
    """Write and free so many bytes: the first touch of a virtual disk's blocks costs half."""
    block = os.urandom(BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(-(-size_bytes // BLOCK_BYTES)):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())


def touch_memory(folder: Path | None, size_bytes: int) -> None:
    """Have so much memory at hand for what is measured, most of all for the page cache, until this
    is called again or the process ends; at most half of what is available is taken for it.

    Memory that was only taken and given back is gone again within two seconds where the host takes
    back what is free: on one such machine a ``pwrite`` into a new file ran at 5.8 GB/s, and at 0.4
    GB/s from then on. So an eighth of it stays taken, which keeps the rest from going. It is taken
    by files, as what a process takes for itself did not help the page cache there. They are not
    synced but for what stays, so that the disk has little of it to write.
    """
    release_memory()
    wanted = min(size_bytes, available_bytes() // 2 * (RUNS - 1) // RUNS)
    block = bytes(RUN_BYTES)
    held = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (outlives this call)
    _held.append(held)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as given_back:
        for _ in range(-(-wanted // ((RUNS - 1) * RUN_BYTES))):
            held.write(block)
            for _ in range(RUNS - 1):
                given_back.write(block)
    os.fdatasync(held.fileno())  # now, not while something is timed


def release_memory() -> None:
    """What is held of touched memory may go."""
    while _held:
        _held.pop().close()


def available_bytes() -> int:
    """Memory that can be had without anybody swapping."""
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) * 1024
