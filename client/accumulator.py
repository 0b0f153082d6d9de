"""Records on their way out, as columns: batches, and the lane of each partition. Pure.

A record that was accepted lies in exactly one ``PendingBatch`` of one ``Lane`` until its outcome
is known. Invariants:

- a batch's records are in the order in which they were accepted, and so are a lane's batches:
  ``in_flight``, then ``returned``, then ``waiting`` is the order in which they reach the log (C2);
- nothing leaves a lane while a batch that came back waits for those in flight behind it;
- a sequence number under an identity belongs to one batch for ever. Batches are renumbered only
  under a new identity, and only when no copy of them can still be written (C3); of a topic that
  another took the place of, or seemed to (a broker that is late names an older one), they are kept;
- at most ``window`` batches of a lane have an open outcome: the broker remembers as many (R35).

What is decided here takes ``now`` as an argument; ``sender.py`` acts on it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tailrace.client.retry import Backoff
from tailrace.protocol.batch import (
    Compression,
    RecordHeaders,
    encode_batch,
    header_seed,
    is_compressed,
)
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import TopicMetadata
from tailrace.protocol.routing import Router
from tailrace.protocol.texts import partition_not_found

RECORD_OVERHEAD_BYTES = 16  # what a record costs beside its key, value and headers, at most
# What a batch may grow to while all slots to its leader are taken. With 1 MiB what encoding moves
# does not fit into a processor's cache any more: 100 B records without syncs lose a quarter.
GROWN_BYTES = 512 << 10
SKIPPED_MAX = 32  # batches that are not compressed after those that did not shrink
AGE_MAX_S = 0.1  # a batch takes no record that is so much younger than its first
WINDOW = 5  # batches of one producer whose sequences a partition remembers
SEQUENCES = 1 << 31
LEFT_MAX = 16  # topics of one name whose sequences are kept; more than brokers are late by

SEQUENCE_LOST = frozenset({"T038", "T039"})


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a retry recognisable."""

    producer_id: int
    epoch: int


class Settable(Protocol):
    """An event somebody waits for."""

    def set(self) -> None:
        """Wake them."""
        ...


class Shrinking:
    """Whether compressing is worth trying: what did not shrink is let be for a while.

    After each attempt in vain twice as many batches go as they are, 32 at most; one that shrinks
    ends that. Random or compressed values then cost next to nothing, and a producer whose values
    change is at most 32 batches late.
    """

    __slots__ = ("_left", "_pause")

    def __init__(self) -> None:
        self._pause = 0
        self._left = 0

    def due(self) -> bool:
        """Whether this batch is to be compressed; say ``tried`` then what became of it."""
        if self._left:
            self._left -= 1
            return False
        return True

    def tried(self, shrunk: bool) -> None:
        """A batch was compressed, or no smaller for it."""
        self._pause = 0 if shrunk else min(self._pause * 2 or 1, SKIPPED_MAX)
        self._left = self._pause


class PendingBatch:
    """Records of one partition that leave together, and later what became of them."""

    __slots__ = (
        *("accepted_at", "append_time", "attempts", "awaited", "base_offset", "claimed", "count"),
        *("done", "encoded", "error", "event", "headers", "keys", "lane", "last_error", "limit"),
        *("number", "out_of_sequence", "sequence", "size", "timestamps", "uncertain", "urgent"),
        "values",
    )

    def __init__(self, lane: "Lane", number: int, accepted_at: float, limit: int) -> None:
        self.lane = lane
        self.number = number  # rises with acceptance over all lanes
        self.accepted_at = accepted_at  # of the first record, the client's monotonic clock
        self.limit = limit  # bytes at which somebody must decide what next
        self.size = 0  # bytes, uncompressed, overhead included
        self.count = 0  # set when the batch is closed
        self.values: list[bytes | None] = []
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] | None = None  # None while no record has one
        self.headers: list[RecordHeaders | None] | None = None
        self.urgent = False  # does not wait for company
        self.attempts = 0
        self.sequence = -1  # of the first record, under the lane's identity; -1: none yet
        self.encoded: bytes | None = None
        self.uncertain = False  # an attempt ended without an answer: it may have been written
        self.last_error: TailraceError | None = None
        self.out_of_sequence = False  # the last attempt ended with T038 or T039
        self.done = False
        self.error: TailraceError | None = None
        self.base_offset = -1
        self.append_time = -1
        self.event: Settable | None = None
        self.claimed = 0  # records whose outcome a send or send_many reports
        self.awaited: set[int] = set()  # records whose Delivery was awaited

    def add(
        self,
        value: bytes | None,
        key: bytes | None,
        timestamp: int,
        headers: RecordHeaders,
        size: int,
    ) -> int:
        """Append one record; its index. ``size`` counts the overhead too."""
        values = self.values
        index = len(values)
        values.append(value)
        self.timestamps.append(timestamp)
        self.size += size
        if key is not None or self.keys is not None:
            keys = self.keys
            if keys is None:
                keys = self.keys = _nothing(index)
            keys.append(key)
        if headers or self.headers is not None:
            column = self.headers
            if column is None:
                column = self.headers = _nothing(index)
            column.append(headers or None)
        return index

    def extend(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None,
        timestamps: Sequence[int],
        headers: Sequence[RecordHeaders] | None,
        size: int,
    ) -> int:
        """Append columns of equal length; the index of their first record."""
        first = len(self.values)
        self.values += values
        self.timestamps += timestamps
        self.size += size
        if keys is not None or self.keys is not None:
            self.keys = _nothing(first) if self.keys is None else self.keys
            self.keys += _nothing(len(values)) if keys is None else keys
        if headers is not None or self.headers is not None:
            self.headers = _nothing(first) if self.headers is None else self.headers
            self.headers += _nothing(len(values)) if headers is None else headers
        return first

    def encode(self, compression: Compression) -> bytes:
        """The bytes of the entry; kept for further attempts."""
        if self.encoded is None:
            identity, shrinking = self.lane.identity, self.lane.shrinking
            wanted = compression != "none" and shrinking.due()
            self.encoded = encode_batch(
                self.lane.seed,
                values=self.values,
                keys=self.keys,
                timestamps=self.timestamps,
                headers=self.headers,
                producer_id=-1 if identity is None else identity.producer_id,
                producer_epoch=-1 if identity is None else identity.epoch,
                base_sequence=self.sequence if identity is not None else -1,
                compression=compression if wanted else "none",
            )
            if wanted:
                shrinking.tried(is_compressed(self.encoded))
        return self.encoded

    def finish(self, base_offset: int, append_time: int, error: TailraceError | None) -> None:
        """The outcome; wakes whoever waits, and lets go of the bytes."""
        assert not self.done
        self.count = len(self.values)
        self.done = True
        self.base_offset = base_offset
        self.append_time = append_time
        self.error = error
        self.values, self.keys, self.headers, self.encoded = [], None, None, None
        if self.event is not None:
            self.event.set()

    @property
    def unheard(self) -> int:
        """Records whose outcome nobody asked for."""
        return self.count - self.claimed - len(self.awaited)


@dataclass(frozen=True, slots=True)
class Left:
    """How far a lane was in a topic, when it heard of another of that name."""

    identity: Identity
    next_sequence: int
    sequences: dict[PendingBatch, int]  # of what waits to be sent again
    numbered: dict[PendingBatch, bool]
    gave_up_uncertain: bool


class Lane:
    """One partition of one producer: what waits, what is in flight, what came back."""

    def __init__(
        self, topic: str, topic_id: bytes, partition: int, window: int, backoff: Backoff
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.latest_topic_id = topic_id
        self.partition = partition
        self.seed = header_seed(topic_id, partition)
        self.leader: str | None = None
        self.window = window
        self.backoff = backoff
        self.shrinking = Shrinking()
        self.not_before = 0.0  # pause after a refusal
        self.refusal: TailraceError | None = None  # which that is
        self.open: PendingBatch | None = None  # takes records; the last of ``waiting``
        self.waiting: deque[PendingBatch] = deque()
        self.in_flight: deque[PendingBatch] = deque()
        self.returned: list[PendingBatch] = []
        self.identity: Identity | None = None
        self.next_sequence = 0
        # Numbered batches from the first that may have to be sent again, with whether each has
        # its outcome. Never more than the window, as the broker remembers no more of a producer,
        # and answers may come out of order (R35).
        self._numbered: dict[PendingBatch, bool] = {}
        # A batch was given up that may have been written under this identity: then a later one
        # that may have been written too cannot be told from a lost one.
        self.gave_up_uncertain = False
        self._left: dict[bytes, Left] = {}  # by topic id, the last ones

    @property
    def pending(self) -> bool:
        """Whether anything has no outcome yet."""
        return bool(self.waiting or self.in_flight or self.returned)

    def batches(self) -> list[PendingBatch]:
        """All without an outcome, in order."""
        found = (*self.in_flight, *self.returned, *self.waiting)
        return sorted((b for b in found if not b.done), key=_number)

    def oldest(self) -> PendingBatch | None:
        """The first without an outcome."""
        if self.returned:  # none of which is done; those in flight lie before and behind them
            sent = [batch for batch in (*self.in_flight, *self.returned) if not batch.done]
            return min(sent, key=_number)
        for batch in self.in_flight:
            if not batch.done:
                return batch
        return self.waiting[0] if self.waiting else None

    def start_batch(self, number: int, now: float, limit: int) -> PendingBatch:
        """A new open batch at the end."""
        self.open = PendingBatch(self, number, now, limit)
        self.waiting.append(self.open)
        return self.open

    def ready(self, now: float, *, idle: bool, linger: float, batch_bytes: int) -> bool:
        """Whether the first waiting batch should leave. ``idle``: nothing else is under way."""
        if not self.waiting or self.returned or now < self.not_before:
            return False
        first = self.waiting[0]
        taken = len(self._numbered) if first.sequence < 0 else 0
        if max(len(self.in_flight), taken) >= self.window:
            return False
        return (
            idle
            or first is not self.open
            or first.urgent
            or first.size >= batch_bytes
            or now >= first.accepted_at + linger
        )

    def take(self) -> PendingBatch:
        """The first waiting batch, closed, numbered and in flight."""
        batch = self.waiting.popleft()
        if batch is self.open:
            self.open = None
        if self.identity is not None and batch.sequence < 0:
            batch.sequence = self.next_sequence
            self.next_sequence = (self.next_sequence + len(batch.values)) % SEQUENCES
            self._numbered[batch] = False
        batch.attempts += 1
        self.in_flight.append(batch)
        return batch

    def acknowledged(self, batch: PendingBatch) -> None:
        """It is in the log; also when its records were given up before the answer came."""
        self.in_flight.remove(batch)
        self._settle(batch)
        self.backoff.reset()

    def came_back(self, batch: PendingBatch, error: TailraceError, *, uncertain: bool) -> None:
        """An attempt failed. ``uncertain``: it may have been written all the same."""
        self.in_flight.remove(batch)
        batch.uncertain = batch.uncertain or uncertain
        batch.out_of_sequence = error.code in SEQUENCE_LOST
        if not batch.out_of_sequence or batch.last_error is None:
            batch.last_error = error  # T038 mostly echoes what befell the batch before
        if batch.done:
            self._given_up(batch)
        else:
            self.returned.append(batch)

    def give_up(self, batch: PendingBatch) -> None:
        """It got its outcome (a failure) without the log. In flight it stays until answered."""
        if batch in self.in_flight:
            return
        if batch in self.returned:
            self.returned.remove(batch)
        else:
            self.waiting.remove(batch)
        if batch is self.open:
            self.open = None
        self._given_up(batch)

    def _given_up(self, batch: PendingBatch) -> None:
        self._settle(batch)
        if batch.sequence >= 0 and batch.uncertain:
            self.gave_up_uncertain = True

    def _settle(self, batch: PendingBatch) -> None:
        """It will not be sent again."""
        if batch in self._numbered:
            self._numbered[batch] = True
        for first, settled in list(self._numbered.items()):
            if not settled:
                break
            del self._numbered[first]

    def line_up(self) -> PendingBatch | None:
        """Once nothing is in flight, what came back goes to the front again, in order.

        Returns the first of it, None if there is none or it is too early.
        """
        if self.in_flight or not self.returned:
            return None
        self.returned.sort(key=_number)
        self.waiting.extendleft(reversed(self.returned))
        self.returned = []
        return self.waiting[0]

    def may_renumber(self, first: PendingBatch) -> bool:
        """Whether no copy of ``first`` can be written any more, after T038 or T039 for it.

        Such an answer says that a batch before it is missing, so it was not written, nor can it
        be: unless the missing one was given up on the way and may still arrive.
        """
        return not (first.uncertain and self.gave_up_uncertain)

    def renumber(self) -> None:
        """Everything that waits gets new sequences, under the next identity."""
        assert not self.in_flight
        assert not self.returned
        self.identity = None
        self.next_sequence = 0
        self._numbered.clear()
        self.gave_up_uncertain = False
        for batch in self.waiting:
            batch.sequence = -1
            batch.encoded = None

    def follow_topic(self) -> bool:
        """Move to the topic that now has the name, if it was made again; False: not yet."""
        if self.topic_id != self.latest_topic_id:
            if self.in_flight or self.returned:
                return False
            self._leave()
            self.topic_id = self.latest_topic_id
            self.seed = header_seed(self.topic_id, self.partition)
            self._go_on()
        return True

    def _leave(self) -> None:
        if self.identity is not None:
            self._left[self.topic_id] = Left(
                self.identity,
                self.next_sequence,
                {batch: batch.sequence for batch in self.waiting if batch.sequence >= 0},
                dict(self._numbered),
                self.gave_up_uncertain,
            )
            if len(self._left) > LEFT_MAX:
                del self._left[next(iter(self._left))]
        self.renumber()

    def _go_on(self) -> None:
        """Where this lane was in this topic before: its numbers were given there already, and the
        broker would take others that bear them for repeats (S2)."""
        left = self._left.pop(self.topic_id, None)
        if left is None:
            return
        self.identity, self.next_sequence = left.identity, left.next_sequence
        self.gave_up_uncertain = left.gave_up_uncertain
        for batch in self.waiting:
            batch.sequence = left.sequences.get(batch, -1)
        self._numbered = left.numbered
        for batch in [one for one, settled in left.numbered.items() if one.done and not settled]:
            self.gave_up_uncertain |= batch.uncertain
            self._settle(batch)


def _nothing(count: int) -> list[Any]:
    return [None] * count


def _number(batch: PendingBatch) -> int:
    return batch.number


class TopicRoute:
    """Where the records of a topic go."""

    def __init__(self, topic: TopicMetadata, new_lane: Callable[[int], Lane]) -> None:
        self.name = topic.name
        self.lanes: list[Lane] = []
        self._new_lane = new_lane
        self.update(topic)
        self.sticky: Lane = self.lanes[0]  # where keyless records go until its batch leaves

    def update(self, topic: TopicMetadata) -> None:
        """Take in newer metadata: leaders, more partitions, another topic under the name."""
        self.metadata = topic
        self.record_bytes_max = topic.record_bytes_max
        partitions = sorted(topic.partitions, key=lambda told: told.partition)
        for number, told in enumerate(partitions):
            assert told.partition == number, "partitions are numbered from 0"
            if number == len(self.lanes):
                self.lanes.append(self._new_lane(number))
        for lane in self.lanes:
            known = lane.partition < len(partitions)
            lane.leader = partitions[lane.partition].leader if known else None
            lane.latest_topic_id = topic.topic_id
        self.partition_count = len(partitions)
        self.router = Router([told.key_first for told in partitions])

    def lane(self, partition: int | None, key: bytes | None) -> Lane:
        """Where a record goes. Raises PartitionNotFound T011."""
        if partition is not None:
            if not 0 <= partition < self.partition_count:
                raise partition_not_found(self.name, partition, partitions=self.partition_count)
            return self.lanes[partition]
        return self.sticky if key is None else self.lanes[self.router.partition(key)]

    def turn(self, left: Lane) -> None:
        """A batch left ``left``: keyless records go to the next partition that has a leader."""
        if left is not self.sticky:
            return
        number = left.partition + 1
        self.sticky = self.lanes[number % self.partition_count]  # if nobody has a leader
        for place in range(number, number + self.partition_count):
            lane = self.lanes[place % self.partition_count]
            if lane.leader is not None:
                self.sticky = lane
                return
