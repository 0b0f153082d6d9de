"""The real world: what a ``World`` is made of in production."""

import os
import random
import time

import trio

from tailrace.broker.config import ClusterConfig
from tailrace.broker.heavy import ProcessHeavy
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metadata_embedded import EmbeddedStore
from tailrace.broker.net import TrioNet
from tailrace.broker.threads import ThreadOffload
from tailrace.broker.world import World
from tailrace.storage.disk import OsDisk

# Of metadata, checkpoints and indexes: what a broker writes on a full disk. Compaction needs more.
BALLAST_BYTES_MAX = 4 * 1024 * 1024


# Where there is no such clock (macOS), the monotonic one counts suspension.
BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    def now(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


def system_world(cluster: ClusterConfig | None = None) -> World:
    """The world of a production broker; one per broker. ``cluster``: where its metadata lives."""
    clock = SystemClock()
    offload = ThreadOffload()

    async def open_metadata(directory: str, nursery: trio.Nursery) -> MetadataStore:
        if cluster is not None and cluster.metadata == "etcd":
            # Here: an HTTP client is 60 ms of start that only clusters need.
            from tailrace.broker.metadata_etcd import open_etcd

            return await open_etcd(cluster, nursery, offload)
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
        boottime=lambda: time.clock_gettime(BOOTTIME),
        pid=os.getpid(),
        ballast_bytes_max=BALLAST_BYTES_MAX,
    )
