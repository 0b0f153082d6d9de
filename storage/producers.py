"""What each idempotent producer sent to one partition: duplicates, gaps, strangers (S15, S16, R35).

Per producer id: its epoch and its last five batches. A batch is, in this order,

- refused if its producer epoch is older than the known one;
- new, if it begins an epoch at sequence 0;
- refused as unknown (T039) if the producer is not known and its sequence is not 0;
- a duplicate, if it equals one of the last five: it gets its first offset, and is not written;
- new, if it follows the last one;
- refused as out of order (T038) otherwise.

Invariant: the table equals the replay of the log from any sound snapshot. It forgets a producer
only by age and number, never because retention dropped its records.
"""

import struct
from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from tailrace.protocol import texts
from tailrace.protocol.batch import BatchHeader
from tailrace.storage import checkpoint

WINDOW = 5  # batches; Kafka's, and the most a producer may have in flight (R35)
SEQUENCES = 1 << 31  # a sequence wraps to 0 here
PRODUCERS_MAX = 100_000  # then the longest silent one is forgotten
EXPIRY_MS = 24 * 3_600_000
_HEAD = struct.Struct(">qI")
_PRODUCER = struct.Struct(">qhB")
_SENT = struct.Struct(">iiqqq")


class Sent(NamedTuple):
    """One batch that was written."""

    base_sequence: int
    last_sequence: int
    base_offset: int
    next_offset: int
    append_time: int


class Producer(NamedTuple):
    """One producer's epoch and its last batches, oldest first, at least one."""

    epoch: int
    window: tuple[Sent, ...]


class ProducerTable:
    """The producers of one partition, the longest silent first."""

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._producers: dict[int, Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def __iter__(self) -> Iterator[tuple[int, Producer]]:
        return iter(self._producers.items())

    def get(self, producer_id: int) -> Producer | None:
        return self._producers.get(producer_id)

    def copy(self) -> "ProducerTable":
        """The table as it is now."""
        table = ProducerTable(self._topic, self._partition)
        table._producers = dict(self._producers)
        return table

    def plan(self) -> "ProducerPlan":
        """Checks against this table that change it only when committed."""
        return ProducerPlan(self, self._topic, self._partition)

    def replay(self, producer_id: int, epoch: int, sent: Sent) -> None:
        """Take in a batch that stands in the log."""
        self.put(producer_id, _followed(self._producers.get(producer_id), epoch, sent))

    def put(self, producer_id: int, producer: Producer) -> None:
        """Replace one producer, which thereby is the last to be forgotten."""
        self._producers.pop(producer_id, None)
        self._producers[producer_id] = producer
        if len(self._producers) > PRODUCERS_MAX:
            del self._producers[next(iter(self._producers))]

    def expire(self, now_ms: int) -> int:
        """Forget those silent for a day by append time; how many they were."""
        limit = now_ms - EXPIRY_MS
        silent = takewhile(  # append times never fall: the longest silent one comes first
            lambda entry: entry[1].window[-1].append_time < limit, self._producers.items()
        )
        gone = [producer_id for producer_id, _ in silent]
        for producer_id in gone:
            del self._producers[producer_id]
        return len(gone)


class ProducerPlan:
    """The sequence checks of one append, seeing its own earlier batches."""

    def __init__(self, table: ProducerTable, topic: str, partition: int) -> None:
        self._table = table
        self._topic = topic
        self._partition = partition
        self._changed: dict[int, Producer] = {}

    def check(self, header: BatchHeader) -> Sent | None:
        """The earlier write of a duplicate, or None if the batch is to be written.

        Raises BatchRefused, OutOfOrderSequence, UnknownProducer.
        """
        producer_id, epoch, sequence = (
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        )
        if producer_id < 0:
            return None
        known = self._changed.get(producer_id) or self._table.get(producer_id)
        if known is None:
            if sequence == 0:
                return None
            raise texts.unknown_producer(
                self._topic, self._partition, producer_id=producer_id, epoch=epoch
            )
        if epoch < known.epoch:
            reason = f"producer {producer_id} is in epoch {known.epoch}, the batch has {epoch}"
            raise texts.batch_refused(self._topic, self._partition, reason=reason)
        expected = 0
        if epoch == known.epoch:
            for sent in known.window:
                if sent.base_sequence == sequence and sent.last_sequence == header.last_sequence:
                    return sent
            expected = (known.window[-1].last_sequence + 1) % SEQUENCES
        if sequence != expected:
            raise texts.out_of_order_sequence(
                self._topic,
                self._partition,
                producer_id=producer_id,
                epoch=epoch,
                sequence=sequence,
                expected=expected,
            )
        return None

    def add(self, header: BatchHeader, base_offset: int, append_time: int) -> None:
        """A checked batch will be written there."""
        if header.producer_id >= 0:
            known = self._changed.get(header.producer_id) or self._table.get(header.producer_id)
            sent = _sent(header, base_offset, append_time)
            self._changed[header.producer_id] = _followed(known, header.producer_epoch, sent)

    def commit(self) -> None:
        """The batches were written."""
        for producer_id, producer in self._changed.items():
            self._table.put(producer_id, producer)


def _sent(header: BatchHeader, base_offset: int, append_time: int) -> Sent:
    next_offset = base_offset + header.last_offset_delta + 1
    return Sent(header.base_sequence, header.last_sequence, base_offset, next_offset, append_time)


def _followed(known: Producer | None, epoch: int, sent: Sent) -> Producer:
    if known is None or known.epoch != epoch:
        return Producer(epoch, (sent,))
    return Producer(epoch, (*known.window[1 - WINDOW :], sent))


def encode_producers(table: ProducerTable, offset: int) -> bytes:
    """A snapshot file: the table as the log up to ``offset`` makes it."""
    return checkpoint.encode(checkpoint.Kind.PRODUCERS, encode_table(table, offset))


def encode_table(table: ProducerTable, offset: int) -> bytes:
    """The body of that file."""
    parts = [_HEAD.pack(offset, len(table))]
    for producer_id, producer in table:
        parts.append(_PRODUCER.pack(producer_id, producer.epoch, len(producer.window)))
        parts += [_SENT.pack(*sent) for sent in producer.window]
    return b"".join(parts)


def decode_producers(
    body: memoryview, offset: int, topic: str, partition: int
) -> ProducerTable | None:
    """From the body of the snapshot taken at ``offset``, or None if it must be rebuilt."""
    table = ProducerTable(topic, partition)
    try:
        found_offset, count = _HEAD.unpack_from(body)
        if found_offset != offset:
            return None
        at = _HEAD.size
        for _ in range(count):
            producer_id, epoch, length = _PRODUCER.unpack_from(body, at)
            at += _PRODUCER.size
            rows = body[at : at + length * _SENT.size]
            if not 1 <= length <= WINDOW or len(rows) < length * _SENT.size:
                return None
            table.put(producer_id, Producer(epoch, tuple(map(Sent._make, _SENT.iter_unpack(rows)))))
            at += len(rows)
    except struct.error:
        return None
    return table if at == len(body) else None
