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
# What is held is 256 KiB of every 2 MiB. Memory goes back to a host in free pieces of 2 MiB and
# more (Linux, free page reporting), and no piece that is free next to one that is held is as large.
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
    is called again or the process ends.

    Memory that was only taken and given back is gone again within two seconds where the host takes
    back what is free: on one such machine a ``pwrite`` into a new file ran at 5.8 GB/s, and at 0.4
    GB/s from then on. So a part of it stays taken, which keeps the rest from going. It is taken by
    files, as the kernel looks for the page cache's memory in other places than for a process's own.
    At most half of what is available is taken.
    """
    release_memory()
    wanted = min(size_bytes, available_bytes() // 2)
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
