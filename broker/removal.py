"""Taking closed segments out of a partition's log, off the event loop (storage/maintenance.py).

Whoever calls holds ``partition.maintenance``; the partition may go offline at any await.
"""

import logging
from collections.abc import Sequence

import trio

from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.world import Offload
from tailrace.protocol.units import format_size
from tailrace.storage.retention import SegmentFacts

log = logging.getLogger("tailrace.broker.removal")

TURN_S = 5.0  # to wait for whoever rewrites segments: that gives way between two of them


async def take_turn(partition: Partition) -> bool:
    """Take ``partition.maintenance``, which the caller releases; False: not in so short a time.

    Not to be had at once it must be waited for: it is handed on to those who wait, and who only
    asks now and then never finds it free while a large log is rewritten.
    """
    with trio.move_on_after(TURN_S) as waiting:
        await partition.maintenance.acquire()
    return not waiting.cancelled_caught


class Removal:
    def __init__(self, offload: Offload, flusher: Flusher) -> None:
        self._offload = offload
        self._flusher = flusher

    async def drop(self, partition: Partition, gone: Sequence[SegmentFacts], why: str) -> int:
        """Remove these segments, the first ones of the log; how many bytes went.

        A segment may go once what it says of producers is saved elsewhere (R35), which a sync
        round sees to. What cannot go now stays for the next time. Raises ``OSError``, after which
        it may be tried again, and BrokerError T093.
        """
        offset = gone[-1].next_offset
        size_bytes = await self._trim(partition, offset)
        wanted_bytes = sum(one.size_bytes for one in gone)
        if size_bytes < wanted_bytes and partition.serving and partition.log.needs_sync:
            await self._flusher.flush([partition])
            if partition.serving:
                size_bytes += await self._trim(partition, offset)
        if size_bytes:
            partition.metrics.retention_deleted_bytes.inc(size_bytes)
            log.info(
                "%s[%d]: %s %s; it starts at offset %d",
                *(partition.topic, partition.number, format_size(size_bytes), why),
                partition.log.start,
                extra={"event": "retention.deleted", "code": None, "bytes": size_bytes},
            )
        return size_bytes

    async def follow(self, partition: Partition, offset: int) -> int:
        """Let a follower's log begin where its leader's does; how many bytes went. As ``drop``."""
        if offset <= partition.log.start:
            return 0
        return await self._trim(partition, offset, exact=True)

    async def _trim(self, partition: Partition, offset: int, *, exact: bool = False) -> int:
        job = partition.log.trim(offset, exact=exact)
        if job is None:
            return 0
        size_bytes = job.size_bytes
        await self._offload.run(job.publish)
        partition.log.trimmed(job)
        await self._offload.run(job.finish)
        return size_bytes
