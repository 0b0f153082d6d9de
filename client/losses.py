"""What a consumer lost before it was committed, until somebody was told (T040, once each).

Whoever reads next is told, or whoever commits; ``run`` has nobody to raise to and logs it. With
``commit="manual"`` only a commit is told: a loop that never commits has lost nothing.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tailrace.client.consumer_options import GroupOptions
from tailrace.client.holding import Holding
from tailrace.client.progress import Loss
from tailrace.client.reading import Source
from tailrace.protocol import texts_group
from tailrace.protocol.errors import PartitionLost
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.feed import Feed

_log = logging.getLogger("tailrace.client")


class Losses:
    """See the module."""

    def __init__(self, feed: "Feed", options: GroupOptions) -> None:
        self._feed = feed
        self._options = options
        self._owed: dict[TopicPartition, Loss] = {}  # for the next commit by hand
        self._by_source: dict[Source, None] = {}  # which have some (``Source.lost``)

    def note(self, holding: Holding, committed: int, reason: str) -> None:
        """It went away when so much was committed."""
        source, point = holding.buffer.source, holding.processed
        handed_out = holding.buffer.position
        if holding.told or source is None or point is None or handed_out <= committed:
            return
        at, loss = holding.buffer.at, Loss(handed_out, point.offset > committed, reason)
        if self._options.commit == "manual":
            self._owed[at] = loss
        elif self._feed.read_by == "run()":
            error = self.error({at: loss})
            _log.warning("%s", error, extra={"event": "consumer.lost", "code": error.code})
        else:
            source.lost[at] = loss
            self._by_source[source] = None

    def take(
        self, partitions: Iterable[TopicPartition] | None = None, *, processed: bool = False
    ) -> PartitionLost | None:
        """T040 for what was not told yet, of some partitions or of all; it is told now.

        ``processed``: what was only in hand does not count.
        """
        chosen = None if partitions is None else set(partitions)
        owed = [at for at in self._owed if chosen is None or at in chosen]
        found = {at: self._owed.pop(at) for at in owed}
        for source in list(self._by_source):
            for at in list(source.lost):
                if chosen is None or at in chosen:
                    found[at] = source.lost.pop(at)
            if not source.lost:
                del self._by_source[source]
        found = {at: loss for at, loss in found.items() if loss.processed or not processed}
        return self.error(found) if found else None

    def error(self, losses: Mapping[TopicPartition, Loss]) -> PartitionLost:
        """T040."""
        offsets = {at: loss.offset for at, loss in losses.items()}
        reason = next(iter(losses.values())).reason
        return texts_group.partition_lost(offsets, group=self._options.name, reason=reason)
