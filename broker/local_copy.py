"""This broker's copy of one partition: its log, and what of it is damaged.

Who leads, who waits and what is committed is the ``Partition``'s, which it becomes.
"""

import logging
from collections.abc import Callable

import trio

from tailrace.broker.catalog import Topic
from tailrace.broker.config import TopicConfig
from tailrace.broker.metrics import TopicMetrics
from tailrace.broker.world import Offload
from tailrace.protocol import texts, texts_storage
from tailrace.protocol.errors import TailraceError
from tailrace.storage.log import Log
from tailrace.storage.segment import Quarantine

log = logging.getLogger("tailrace.broker.partition")


class LocalCopy:
    """``maintenance`` is held by whoever removes, rewrites or truncates parts of the log."""

    def __init__(
        self, topic: Topic, number: int, config: TopicConfig, log: Log, metrics: TopicMetrics
    ) -> None:
        self.topic = topic.name
        self.internal = topic.internal
        self.topic_id = topic.topic_id
        self.number = number
        self.copies = topic.copies(number)
        self.config = config
        self.log = log
        self.metrics = metrics
        self.offline: TailraceError | None = None
        self.maintenance = trio.Lock()
        self._verifying = trio.Lock()
        self.damaged: Callable[[], None] = lambda: None  # told of damage that was just found
        self._told: set[Quarantine] = set()

    def __repr__(self) -> str:
        return f"<Partition {self.topic}[{self.number}]>"

    @property
    def serving(self) -> bool:
        return self.offline is None

    @property
    def where(self) -> dict[str, object]:
        """The fields of a log line that say which it is."""
        return {"topic": self.topic, "partition": self.number}

    def tell_rolled(self) -> None:
        """Log that a new segment was begun."""
        log.info(
            "%s[%d]: new segment, %d in all",
            *(self.topic, self.number, self.log.segment_count),
            extra={"event": "segment.rolled", "code": None, **self.where},
        )

    def unreadable(self, error: OSError) -> TailraceError:
        """What a reader is told when a file could not be read; the partition stays online."""
        log.error(
            "%s[%d] cannot be read: %s",
            *(self.topic, self.number, error),
            extra={"event": "partition.unreadable", "code": "T033", "topic": self.topic},
        )
        return texts.partition_offline(self.topic, self.number, reason=str(error))

    async def verify(self, offset: int, offload: Offload) -> None:
        """Verify the segment that holds ``offset``, in a thread, if that was not done (R24)."""
        async with self._verifying:  # many may wait for the same segment: it is read once
            work = self.log.verify_pending(offset)
            if work is not None:
                await offload.run(work)
                self.tell_damage()

    async def doubt(self, offset: int, offload: Offload) -> None:
        """Somebody found damage in the segment that holds ``offset``: fence it in (R25)."""
        offset = max(offset, self.log.start)
        self.log.doubt(offset)
        if offset < self.log.end:
            await self.verify(offset, offload)

    def tell_damage(self) -> None:
        """Log and count every damaged range once, whenever it was found (R24, R25)."""
        found = [damage for damage in self.log.quarantined if damage not in self._told]
        for damage in found:
            self._told.add(damage)
            self.metrics.corrupt_batches.inc()
            error = texts_storage.corruption_found(
                damage.file,
                position=damage.position,
                reason=damage.reason,
                first_offset=damage.first_offset,
                next_offset=damage.next_offset,
            )
            log.error("%s", error, extra={"event": "log.corruption", "code": error.code})
        if found:
            self.damaged()

    def damage(self) -> list[str]:
        """Its damaged ranges, for people."""
        return [
            f"{texts.partition_name(self.topic, self.number)}: offsets {one.first_offset:,} to"
            f" {one.next_offset - 1:,} are damaged and not served"
            for one in self.log.quarantined
            if one.next_offset > self.log.start
        ]
