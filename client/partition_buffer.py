"""What is at hand of one partition between the fetcher and whoever reads: pure state.

Entries come in as the bytes of an answer, are verified at once and opened one at a time, when
they are reached. Invariants:

- ``position`` is the offset of the next record to be handed out, never above ``fetch_offset``;
- only bytes whose header check (seeded with topic and partition) and payload checksum hold are
  kept; the first that do not become ``failure``, behind everything that was good (S2, R24);
- an answer to a question asked before a ``seek`` or ``pause`` is recognised by ``generation``;
- ``Budget.used`` is the sum of all entries that wait, over all partitions of a consumer (C5).
"""

from collections import deque
from typing import TYPE_CHECKING, Any

from tailrace.client.codecs import BoundCodec, Undecodable, decode_into
from tailrace.client.commits import CommitPoint
from tailrace.client.records import Record, Slice, StoredBatch
from tailrace.client.served_by import ServedBy
from tailrace.protocol import texts
from tailrace.protocol.batch import (
    BadBatch,
    BatchError,
    BatchHeader,
    EndOfLog,
    decode_columns,
    header_seed,
    scan_one,
)
from tailrace.protocol.errors import CorruptBatch, TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.reading import Source

_REASONS = {
    "magic": "no batch begins there",
    "version": "unknown layout version",
    "format": "unknown payload format",
    "header": "the header check does not match",
    "torn": "the batch is cut short",
    "payload": "the payload checksum does not match",
    "malformed": "its header is malformed",
}


class Budget:
    """How many bytes a consumer may hold, and does."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.used = 0  # entries that wait
        self.reserved = 0  # asked for, not there yet

    def next_fetch_bytes(self) -> int:
        """How much the next answer may bring; 0: nothing for now.

        Half of what is free: two fetches are prefetched, and long polls of quiet partitions,
        which hold their share for seconds, never take all of it.
        """
        free = self.limit - self.used - self.reserved
        if free <= 0 or (free < self.limit // 16 and self.used):
            return 0
        return max(1, free // 2)


class Codecs:
    """How a consumer's keys and values are decoded."""

    __slots__ = ("key", "value")

    def __init__(self, key: BoundCodec[Any], value: BoundCodec[Any]) -> None:
        self.key = key
        self.value = value


def point_behind(stored: StoredBatch[Any, Any], index: int, offset: int) -> CommitPoint:
    """``offset`` as a place to go on from, where the record at ``index`` is the one before it."""
    deltas = stored.timestamp_deltas
    return CommitPoint(
        offset=offset,
        leader_epoch=stored.leader_epoch,
        timestamp=stored.base_timestamp + (0 if deltas is None else deltas[index]),
        append_time=stored.append_time,
    )


def point_after(record: Record[Any, Any], offset: int) -> CommitPoint:
    """``offset`` as a place to go on from, where ``record`` is the one before it."""
    stored, index, _ = record.as_slice()
    return point_behind(stored, index, offset)


class PartitionBuffer:
    """See the module."""

    def __init__(
        self, at: TopicPartition, topic_id: bytes, position: int, *, codecs: Codecs, budget: Budget
    ) -> None:
        self.at = at
        self.topic_id = topic_id
        self.source: Source | None = None  # who reads it, or did when it went
        self.served_by = ServedBy()
        self.generation = 0  # of questions that may still be answered
        self.in_flight = False  # one of them is asked, or a pause before asking again runs
        self.paused = False
        self._paused_by: set[object] = set()
        self.stop: int | None = None  # records from here on are not handed out
        self.given_up = False  # nothing more is asked for, whoever still has it in hand
        self.failure: TailraceError | None = None  # found at ``fetch_offset``
        self.stalled: TailraceError | None = None  # raised, and the position still stands there
        self.end: int | None = None  # readable end of the log, as of the last answer
        self.fetch_offset = position
        self.waiting_since = 0.0  # when the first record that waits came, by the client's clock
        self.index = 0  # in ``stored``: the next record to be handed out
        self.stored: StoredBatch[Any, Any] | None = None
        self._limit = 0  # in ``stored``: where to stop
        self._decoded = 0  # in ``stored``: values up to here are decoded
        self._behind = CommitPoint(position)  # behind the last record of the batch before
        self._position = position  # while ``stored`` is None
        self._entries: deque[tuple[BatchHeader, memoryview]] = deque()
        self._waiting_bytes = 0
        self._waiting_records = 0
        self._codecs = codecs
        self._budget = budget
        self._seed = header_seed(topic_id, at.partition)

    # ── where it stands ──────────────────────────────────────────────────────────────────────

    @property
    def position(self) -> int:
        """The offset of the next record to be handed out."""
        return self._position if self.stored is None else self.stored.offset(self.index)

    def point(self, offset: int) -> CommitPoint:
        """``offset`` as a place to go on from, with what is known of the record before it."""
        stored = self.stored
        if stored is not None and stored.base_offset < offset <= stored.next_offset:
            index = stored.index_of(offset)
            if index > 0:
                return point_behind(stored, index - 1, offset)
        if self._behind.offset <= offset <= self.position:
            return self._behind._replace(offset=offset)
        return CommitPoint(offset)

    @property
    def lag(self) -> int | None:
        """Records up to the readable end, as of the last answer; None before the first one."""
        return None if self.end is None else max(0, self.end - self.position)

    @property
    def finished(self) -> bool:
        """Whether everything below ``stop`` was handed out."""
        return self.stop is not None and self.position >= self.stop

    @property
    def available(self) -> int:
        """Records at hand; at most too many by those that turn out to lie below the position."""
        opened = 0 if self.stored is None else self._limit - self.index
        return opened + self._waiting_records

    def wants(self, waiting_bytes_max: int) -> bool:
        """Whether more should be asked for."""
        return not (
            self.in_flight
            or self.paused
            or self.given_up
            or self.failure is not None
            or self._waiting_bytes > waiting_bytes_max
            or (self.stop is not None and self.fetch_offset >= self.stop)
        )

    # ── for the fetcher ──────────────────────────────────────────────────────────────────────

    def take_answer(self, body: memoryview, *, end: int, broker: str, now: float) -> None:
        """Keep the batches of an answer; the first bad one becomes ``failure``."""
        self.end = end
        if not body:
            return
        if not self.available:
            self.waiting_since = now
        place, kept_from = 0, self.fetch_offset
        while place < len(body):
            header = scan_one(body, place, self._seed)
            if isinstance(header, BadBatch | EndOfLog):
                reason = _REASONS[header.reason if isinstance(header, BadBatch) else "torn"]
                self.failure = self._corrupt(self.fetch_offset, broker, reason)
                return
            if header.base_offset < self.fetch_offset and self.fetch_offset != kept_from:
                self.failure = self._corrupt(self.fetch_offset, broker, "offsets do not rise")
                return
            if header.next_offset > self.fetch_offset:
                self._keep(header, body[place : place + header.size_bytes])
            place += header.size_bytes
        if self.fetch_offset == kept_from:
            self.failure = self._corrupt(kept_from, broker, "only older records were served")

    def skip_to(self, offset: int) -> None:
        """Go on fetching there; what is at hand is still handed out first."""
        self.fetch_offset = offset
        if self.stored is None and not self._entries:
            self._position = offset

    def ask_anew(self) -> None:
        """Somebody else serves it: what is on its way no longer counts, what is at hand does."""
        self.generation += 1
        self.in_flight = False

    def _keep(self, header: BatchHeader, entry: memoryview) -> None:
        self._entries.append((header, entry))
        self.fetch_offset = header.next_offset
        self._waiting_bytes += header.size_bytes
        self._budget.used += header.size_bytes
        if not header.is_control:
            self._waiting_records += header.record_count

    def _corrupt(self, offset: int, broker: str, reason: str) -> CorruptBatch:
        topic, partition = self.at
        return texts.corrupt_batch(topic, partition, offset=offset, broker=broker, reason=reason)

    # ── for readers ──────────────────────────────────────────────────────────────────────────

    def load(self) -> bool:
        """Open the next batch if there is one to be opened; whether a record is at hand.

        Raises CorruptBatch T035 for columns that do not decode; asking again fetches again.
        """
        while True:
            stored = self.stored
            if stored is not None:
                if self.index < self._limit:
                    return True
                if self.finished:
                    return False
                self._position = stored.next_offset
                self._behind = point_behind(stored, stored.count - 1, stored.next_offset)
                self.stored = None
            if not self._entries or self.finished:
                return False
            self._open(*self._pop())

    def take(self, records_max: int) -> Slice | Undecodable:
        """Up to so many decoded records from ``index`` on, or why there is none.

        ``load`` must have returned True. The caller moves ``index`` on.
        """
        stored = self.stored
        assert stored is not None
        assert self.index < self._limit
        stop = min(self._limit, self.index + records_max)
        if self._decoded < stop:
            wrong = self._decode(stored, max(self.index, self._decoded), stop)
            if wrong is not None and self._decoded <= self.index:
                return wrong
        self.stalled = None
        return Slice(stored, self.index, min(stop, max(self._decoded, self.index)))

    def step_over(self) -> None:
        """Leave out the record at ``index``."""
        self.index += 1
        self._decoded = max(self._decoded, self.index)
        self.stalled = None

    def take_failure(self) -> TailraceError | None:
        """What stands in the way at the position, once all before it was handed out.

        The next fetch asks for the same offset again.
        """
        failure = self.failure
        if failure is None:
            return None
        self._refetch(self.position)
        self.stalled = failure
        return failure

    def seek(self, offset: int) -> None:
        """Go there; whatever is at hand or on its way is dropped."""
        self.stored = None
        self._position = offset
        self._behind = CommitPoint(offset)
        self.stalled = None
        self._refetch(offset)

    def rewind(self, offset: int, since: int) -> None:
        """Take back what was handed out from ``offset`` on, unless ``since`` is past."""
        if self.position != since:
            return  # somebody sought elsewhere meanwhile
        stored = self.stored
        if stored is not None and stored.offset(0) <= offset:
            self.index = stored.index_of(offset)
        else:
            self.seek(offset)

    def pause(self, by: object = None) -> None:
        """Hand out nothing until ``resume``. What was not opened yet is fetched again then.

        ``by``: who pauses it, None: the user. It goes on when nobody of them holds it any more.
        """
        self._paused_by.add(by)
        if not self.paused:
            self.paused = True
            self._refetch(self._position if self.stored is None else self.stored.next_offset)

    def resume(self, by: object = None) -> None:
        """Go on where it was paused, unless somebody else has paused it, too."""
        self._paused_by.discard(by)
        self.paused = bool(self._paused_by)

    def give_up(self) -> None:
        """It goes to somebody else: what is on its way is not for us any more."""
        self.given_up = True
        self._refetch(self.position)

    def forget(self) -> None:
        """Nothing of it will be handed out again; where it stood is kept."""
        self._position, self.stored = self.position, None

    def drop(self) -> None:
        """Give back the memory."""
        self._entries.clear()
        self._budget.used -= self._waiting_bytes
        self._waiting_bytes = self._waiting_records = 0

    def _refetch(self, offset: int) -> None:
        self.drop()
        self.generation += 1
        self.in_flight = False
        self.failure = None
        self.fetch_offset = offset

    def _pop(self) -> tuple[BatchHeader, memoryview]:
        header, entry = self._entries.popleft()
        self._waiting_bytes -= header.size_bytes
        self._budget.used -= header.size_bytes
        if not header.is_control:
            self._waiting_records -= header.record_count
        return header, entry

    def _open(self, header: BatchHeader, entry: memoryview) -> None:
        if header.is_control or header.record_count == 0:
            self._position = max(self._position, header.next_offset)
            return
        try:
            columns = decode_columns(entry, header)
        except BatchError as error:
            self._refetch(self._position)
            self.stalled = self._corrupt(self._position, self.served_by.leader or "?", error.reason)
            raise self.stalled from error
        codecs, count = self._codecs, len(columns.values)
        decode_keys = codecs.key.decode is not None and columns.keys is not None
        decode_values = codecs.value.decode is not None
        stored: StoredBatch[Any, Any] = StoredBatch(
            self.at.topic,
            self.at.partition,
            header,
            columns,
            keys=[None] * count if decode_keys else None,
            values=[None] * count if decode_values else None,
        )
        self.stored = stored
        self.index = stored.index_of(self._position)
        self._limit = count if self.stop is None else stored.index_of(self.stop)
        self._decoded = self.index if decode_keys or decode_values else count

    def _decode(self, stored: StoredBatch[Any, Any], start: int, stop: int) -> Undecodable | None:
        codecs, wrong = self._codecs, None
        if stored.raw_keys is not None and stored.keys is not None:
            stop, wrong = decode_into(codecs.key, stored.raw_keys, stored.keys, start, stop)
        end, wrong_value = decode_into(codecs.value, stored.raw_values, stored.values, start, stop)
        self._decoded = end
        return wrong_value or wrong
