"""What a consumer asks of one broker: named once, it stands until the broker tells of it (KIP-227).

So thousands of quiet partitions cost no more than a few. A broker may tell of all that a request
has named, also without news, and then nothing of it stands. Pure state; invariants:

- as of its present generation a buffer is in at most one of ``_fresh`` and ``_asked``;
- what a broker tells counts if the request it answers, or one before it, named the buffer last;
- ``life`` counts how often all was given up, to be asked anew: answers from before count no more.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from tailrace.client.channel import Channel
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.protocol.messages import FetchResult


class FetchSession:
    """See the module. ``number`` is another one for each session of a client."""

    def __init__(self, number: int, broker: str, rack: str | None) -> None:
        self.number = number
        self.broker = broker
        self.rack = rack  # None: the broker is not to name a follower
        self.life = 0
        self.under_way = 0  # requests
        self.began = 0.0  # when the first of this life was sent
        self.topics: set[str] = set()
        self.sequence = 0  # of the next request in this life
        self.channel: Channel | None = None  # that the last request went over
        self._fresh: dict[PartitionBuffer, int] = {}  # to be named, with the generation
        # What stands: with the generation, and the request that named it.
        self._asked: dict[tuple[bytes, int], tuple[PartitionBuffer, int, int]] = {}

    @property
    def idle(self) -> bool:
        """Whether something is to be asked for, or stands, and no request is under way."""
        return not self.under_way and bool(self._asked or self._fresh)

    @property
    def wanted(self) -> bool:
        """Whether somebody still wants some of it."""
        return any(True for _ in self._live())

    def add(self, buffers: Iterable[PartitionBuffer]) -> None:
        """Name these with the next request."""
        for buffer in buffers:
            buffer.in_flight = True
            self._fresh[buffer] = buffer.generation
            self.topics.add(buffer.at.topic)

    def broken(self, channel: Channel) -> bool:
        """Whether what stood went with another connection than this one."""
        return self.sequence > 0 and channel is not self.channel

    def name(self, channel: Channel, now: float) -> tuple[int, list[PartitionBuffer]]:
        """What the request that leaves now names, and which one of this life it is."""
        self.channel = channel
        if self.sequence == 0:
            self.began = now
        number, self.sequence = self.sequence, self.sequence + 1
        chosen = list(islice(self._fresh.items(), PARTITIONS_PER_REQUEST_MAX))
        named = list[PartitionBuffer]()
        for buffer, generation in chosen:
            del self._fresh[buffer]
            if buffer.generation == generation:
                self._asked[buffer.topic_id, buffer.at.partition] = buffer, generation, number
                named.append(buffer)
        return number, named

    def told(self, result: FetchResult, number: int) -> PartitionBuffer | None:
        """Whose result that is, in answer to request ``number``; None: nobody's any more."""
        key = result.topic_id, result.partition
        found = self._asked.get(key)
        if found is None or found[2] > number:
            return None
        del self._asked[key]
        buffer, generation, _ = found
        return buffer if buffer.generation == generation else None

    def give_up(self) -> list[PartitionBuffer]:
        """Begin anew; those that were asked for, or about to be."""
        live = list(self._live())
        self.life, self.sequence = self.life + 1, 0
        self._fresh.clear()
        self._asked.clear()
        return live

    def _live(self) -> Iterator[PartitionBuffer]:
        for buffer, generation, _ in self._asked.values():
            if buffer.generation == generation:
                yield buffer
        for buffer, generation in self._fresh.items():
            if buffer.generation == generation:
                yield buffer
