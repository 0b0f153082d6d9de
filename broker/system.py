"""The real world: what a ``World`` is made of in production."""

import os
import random
import time

import trio

from tailrace.broker.heavy import ProcessHeavy
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metadata_embedded import EmbeddedStore
from tailrace.broker.net import TrioNet
from tailrace.broker.threads import ThreadOffload
from tailrace.broker.world import World
from tailrace.storage.disk import OsDisk

# Of metadata, checkpoints and indexes: what a broker writes on a full disk. Compaction needs more.
BALLAST_BYTES_MAX = 4 * 1024 * 1024


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


def system_world() -> World:
    """The world of a production broker; one per broker."""
    clock = SystemClock()
    offload = ThreadOffload()

    async def open_metadata(directory: str, _: trio.Nursery) -> MetadataStore:
        return await EmbeddedStore.open(f"{directory}/metadata.sqlite", offload, clock)

    def rng(name: str) -> random.Random:
        return random.SystemRandom()

    return World(
        clock=clock,
        net=TrioNet(offload),
        disk=OsDisk(),
        offload=offload,
        heavy=ProcessHeavy(),
        open_metadata=open_metadata,
        rng=rng,
        pid=os.getpid(),
        ballast_bytes_max=BALLAST_BYTES_MAX,
    )
