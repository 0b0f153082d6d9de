"""What is remembered beside the log, made up to date from its batches: producers and epochs.

``Replay`` takes in each batch once, in order. ``Walk`` gives it those of a stretch that was durable
when it was last written to (below the flushed mark) and so is taken on trust: it goes from header
to header, verifies the header check and that each continues the one before, and reads no payload.
What only the payload checksum covers (which producer, which sequence) is believed until then. A
batch that is found damaged later is quarantined and lost all the same; believing it meanwhile may
refuse a producer's next batch (T038), never accept one twice.
"""

import struct

from xxhash import xxh32_intdigest

from tailrace.protocol.batch import BATCH_LENGTH_MAX, HEADER_BYTES
from tailrace.storage.epochs import EpochHistory
from tailrace.storage.producers import SEQUENCES, ProducerTable, Sent
from tailrace.storage.scan import Counter, Source
from tailrace.storage.segment import Segment

WINDOW_BYTES = 32 * 1024  # read at once where batches are small
SMALL_BYTES = WINDOW_BYTES // 8  # larger ones are not worth reading beyond their header
# header check, …, append time, base offset, batch length, leader epoch, …, last offset delta, …,
# producer id, producer epoch, base sequence, record count
_FIELDS = struct.Struct(">I12xqqii7xi16xqhii")
_CHECKED = slice(4, 45)
_LENGTH_FROM = 36


class Replay:
    """Two tables, each of which takes batches from an offset of its own on."""

    def __init__(self, producers: ProducerTable, producers_from: int, epochs: EpochHistory) -> None:
        self.producers = producers
        self.producers_from = producers_from  # offset of the snapshot
        self.epochs = epochs
        self.offset = producers_from  # batches below are not wanted

    def from_the_start(self) -> None:
        """The epochs have to be found in the log: all of it is needed."""
        self.offset = 0

    def take(
        self,
        base_offset: int,
        next_offset: int,
        append_time: int,
        leader_epoch: int,
        producer_id: int,
        producer_epoch: int,
        base_sequence: int,
    ) -> None:
        """Take in a batch, unless that was done."""
        if base_offset < self.offset:
            return
        self.offset = next_offset
        if leader_epoch > self.epochs.latest:
            self.epochs.begin(leader_epoch, base_offset)
        if producer_id >= 0 and base_sequence >= 0 and base_offset >= self.producers_from:
            last = (base_sequence + next_offset - base_offset - 1) % SEQUENCES
            sent = Sent(base_sequence, last, base_offset, next_offset, append_time)
            self.producers.replay(producer_id, producer_epoch, sent)


class Walk:
    """Goes along the headers of one segment. Fields say where it stands."""

    def __init__(
        self,
        source: Source,
        seed: int,
        counter: Counter,
        *,
        position: int,
        offset: int,
        epoch: int,
        time: int,
    ) -> None:
        self.position: int = position
        self.offset: int = offset  # the batch here begins with it
        self.leader_epoch = epoch  # of the batch before
        self.append_time = time
        self._source = source
        self._counter = counter
        self._seed = seed

    def run(self, end: int, replay: Replay, segment: Segment | None, interval: int) -> bool:
        """Go on to a position; False: something that does not belong there stands before it.

        ``segment``: add the batches to it as well.
        """
        data, start, size = b"", self.position, 0
        seed, unpack = self._seed, _FIELDS.unpack_from
        position, offset = self.position, self.offset
        while position < end:
            at = position - start
            if at + HEADER_BYTES > len(data):
                data, start, at = self._read(position, end, size), position, 0
                if len(data) < HEADER_BYTES:
                    return False
            check, time, base, length, epoch, delta, producer, producer_epoch, sequence, records = (
                unpack(data, at)
            )
            if (
                base != offset
                or xxh32_intdigest(data[at + _CHECKED.start : at + _CHECKED.stop], seed) != check
                or not HEADER_BYTES - _LENGTH_FROM <= length <= BATCH_LENGTH_MAX
                or delta < 0
                or epoch < self.leader_epoch
                or time < self.append_time
            ):
                return False
            following = base + delta + 1
            self.leader_epoch, self.append_time = epoch, time
            size = _LENGTH_FROM + length
            if segment is not None:
                segment.add(size, base, following, time, records, interval)
            replay.take(base, following, time, epoch, producer, producer_epoch, sequence)
            position += size
            offset = following
            self.position, self.offset = position, offset
        return position == end

    def _read(self, position: int, end: int, size_bytes: int) -> bytes:
        """``size_bytes``: of the batch before, as the next one will be about as large."""
        wanted = WINDOW_BYTES if size_bytes <= SMALL_BYTES else HEADER_BYTES
        data = self._source.read(min(wanted, max(HEADER_BYTES, end - position)), position)
        self._counter.read_bytes += len(data)
        return data
