"""Who leads the partitions that a consumer reads: asked for where it is not known, and followed.

A partition whose leader has moved is asked for there at once (``Asker.led_anew``).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import anyio

from tailrace.client.errands import Errands
from tailrace.client.metrics import instruments
from tailrace.client.offsets import partition_of
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.client.retry import LEADER_LIMIT_S, Backoff
from tailrace.protocol import texts
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import TopicMetadata

if TYPE_CHECKING:
    from tailrace.client.client import Client


class Asker(Protocol):
    """The fetcher."""

    failure: TailraceError | None
    trouble: str | None

    def led_anew(self, buffer: PartitionBuffer) -> None:
        """Ask whoever leads it now."""
        ...

    def pump(self) -> None:
        """Ask for what is wanted."""
        ...

    def fail(self, error: TailraceError) -> None:
        """Nothing more can be read."""
        ...


class Leaders:
    """See the module; until ``close``."""

    def __init__(self, client: "Client", errands: Errands, asker: Asker) -> None:
        self._client = client
        self._errands = errands
        self._asker = asker
        self._buffers: dict[str, list[PartitionBuffer]] = {}  # by topic
        self._locating: set[str] = set()
        self._seen: dict[str, TopicMetadata] = {}  # by topic, as ``_learnt`` has taken it in
        client.cluster.watch(self._learnt)

    def add(self, buffer: PartitionBuffer) -> None:
        """Follow this one too."""
        self._buffers.setdefault(buffer.at.topic, []).append(buffer)

    def remove(self, buffer: PartitionBuffer) -> None:
        """No more."""
        self._buffers[buffer.at.topic].remove(buffer)

    def buffers(self) -> Iterator[PartitionBuffer]:
        """All that are followed."""
        for buffers in self._buffers.values():
            yield from buffers

    def close(self) -> None:
        """Follow none any more."""
        self._client.cluster.unwatch(self._learnt)

    def doubt(self, buffer: PartitionBuffer, *, locate: bool = True) -> None:
        """Another one leads it, perhaps."""
        buffer.served_by.forget()
        self._client.cluster.misled(buffer.at.topic)
        if locate:
            self.locate(buffer.at.topic)

    def locate(self, topic: str) -> None:
        """Find out who leads those partitions of a topic of which it is not known."""
        if topic not in self._locating:
            self._locating.add(topic)
            self._errands.start(self._find, topic)

    async def _find(self, topic: str) -> None:
        asker, several = self._asker, self._client.cluster.several
        backoff = Backoff(self._client.random, LEADER_LIMIT_S if several else None)
        try:
            while lost := [b for b in self._buffers[topic] if b.served_by.leader is None]:
                try:
                    metadata = await self._client.cluster.topic(topic)
                    self._found(lost, metadata)
                except TailraceError as error:
                    if not error.retriable or error.code == "T005":
                        asker.fail(error)
                        return
                    asker.trouble = error.message
                    instruments.retried(error.code)
                if all(buffer.served_by.leader is not None for buffer in lost):
                    break
                self._client.cluster.misled(topic)
                await anyio.sleep(backoff.next_leader() if several else backoff.next())
        finally:
            self._locating.discard(topic)
        asker.pump()

    def _found(self, buffers: Sequence[PartitionBuffer], metadata: TopicMetadata) -> None:
        """Whoever leads now is asked at once if it is another one than before, or leads anew."""
        told = {one.partition: one for one in metadata.partitions}
        for buffer in buffers:
            if buffer.topic_id != metadata.topic_id:
                broker = self._client.cluster.cluster_id
                raise texts.topic_id_not_found(buffer.topic_id, broker=broker)
            partition = buffer.at.partition
            one = told.get(partition) or partition_of(metadata, partition)
            if buffer.served_by.led_by(one.leader, one.leader_epoch):
                self._asker.led_anew(buffer)

    def _learnt(self) -> None:
        """The cluster told us something: a leader may have moved away from who is being asked."""
        if self._asker.failure is not None:
            return
        for topic, buffers in self._buffers.items():
            known = self._client.cluster.known(topic)
            if known is not None and known is not self._seen.get(topic):
                self._seen[topic] = known
                led = [buffer for buffer in buffers if buffer.served_by.leader is not None]
                self._found([b for b in led if b.topic_id == known.topic_id], known)
        self._asker.pump()
