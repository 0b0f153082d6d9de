"""Reading records for those who want them as JSON: HTTP's pages and tails.

- A batch is fetched whole, through the leader's own fetch, so that nothing is shown that a
  consumer would not be shown; its bytes are fetched each time, so that a record that was erased
  is gone at once. What is kept for the next reader are its decoded columns, found again by the
  payload's checksum: who pages through a batch of 10,000 records opens it once.
- JSON is written a few records at a time (``CHUNK_RECORDS``, ``CHUNK_BYTES``); whoever writes more
  than one chunk yields to the event loop between them.
- Offsets may have gaps: a chunk says where to go on behind it, also where it has no records.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tailrace.protocol import texts
from tailrace.protocol.batch import BatchHeader, Columns, decode_columns, parse_header
from tailrace.protocol.columns import BatchError
from tailrace.protocol.errors import from_wire
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    OFFSET_LATEST,
    READ_COMMITTED,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetQuery,
)
from tailrace.protocol.positions import Position
from tailrace.protocol.record_json import Decode
from tailrace.protocol.record_lines import RecordLines

if TYPE_CHECKING:
    from tailrace.broker.gateway import Gateway

CHUNK_RECORDS = 50  # some 0.2 ms of JSON
CHUNK_BYTES = 32_768  # of keys, values and headers; one larger record goes alone
FETCH_BYTES = 262_144  # of batches; one larger batch comes whole
OPEN_BYTES_MAX = 4 * 1024 * 1024  # of columns that are kept opened
OPEN_HERE_BYTES_MAX = 131_072  # a larger batch is opened in a thread
_ELEMENT_BYTES = 100  # of memory, for each record beside its bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A partition that records are read from."""

    topic: str
    topic_id: bytes
    partition: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Whole batches as they are stored; the first may begin below the offset asked for."""

    batches: list[tuple[BatchHeader, memoryview]]
    next_offset: int
    log_start: int
    high_watermark: int


@dataclass(slots=True, eq=False)
class Chunk:
    """Some records of one partition as JSON, in order; shared by whoever sends them."""

    partition: int
    lines: list[bytes]
    behind: list[int]  # of each record: its offset + 1
    next_offset: int  # where to go on; beyond the last record where records were removed
    size_bytes: int
    events: list[bytes] = field(default_factory=list[bytes])  # for tails of this partition alone
    joined: bytes = b""  # all of these together

    def add(self, following: "Chunk") -> bool:
        """Take in what follows, unless that makes it too large. Before anybody has it only."""
        if len(self.lines) + len(following.lines) > CHUNK_RECORDS:
            return False
        if self.lines and self.size_bytes + following.size_bytes > CHUNK_BYTES:
            return False
        self.lines += following.lines
        self.behind += following.behind
        self.next_offset = following.next_offset
        self.size_bytes += following.size_bytes
        return True


class Cursor:
    """The records of one batch from an offset on."""

    def __init__(self, place: Place, header: BatchHeader, columns: Columns, decode: Decode) -> None:
        self.next_offset = header.next_offset
        self._partition = place.partition
        self._lines = RecordLines(place.topic, place.partition, header, columns, decode)
        self._index = 0

    def seek(self, offset: int) -> "Cursor":
        """Leave out what lies below."""
        lines, low, high = self._lines, 0, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if lines.offset(middle) < offset else (low, middle)
        self._index = low
        return self

    @property
    def left(self) -> int:
        """Records."""
        return len(self._lines) - self._index

    @property
    def ahead_bytes(self) -> int:
        """What the next record takes once it is written out, if that is much; else 0."""
        if not self.left or self._lines.size_bytes(self._index) <= CHUNK_BYTES:
            return 0
        return self._lines.text_bytes(self._index)

    def take(self, records_max: int) -> Chunk:
        """The next few; of a batch that is used up an empty chunk that says where to go on."""
        lines: list[bytes] = []
        behind: list[int] = []
        size_bytes, source, index = 0, self._lines, self._index
        stop = min(len(source), index + min(records_max, CHUNK_RECORDS))
        while index < stop:
            size = source.size_bytes(index)
            if lines and size_bytes + size > CHUNK_BYTES:
                break
            line = source.line(index)
            lines.append(line)
            behind.append(source.offset(index) + 1)
            size_bytes += max(len(line), size)
            index += 1
        self._index = index
        at_end = index == len(source)
        following = self.next_offset if at_end else behind[-1] if behind else source.offset(index)
        return Chunk(self._partition, lines, behind, following, size_bytes)


class RecordReader:
    """What the readers of one broker share."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._opened: OrderedDict[tuple[bytes, int, int, int], tuple[Columns, int]] = OrderedDict()
        self._opened_bytes = 0

    async def resolve(self, place: Place, position: Position) -> int:
        """A position as an offset; an offset of the log that is none is T041, as for a consumer."""
        if position.kind == "time":
            return await self._offset(place, position.time_ms)
        if position.kind == "end":
            return await self._offset(place, OFFSET_LATEST)
        start = await self._offset(place, OFFSET_EARLIEST)
        if position.kind == "start":
            return start
        end = await self._offset(place, OFFSET_LATEST)
        if position.kind == "back":
            return max(start, end - position.number)
        if not start <= position.number <= end:
            raise texts.offset_out_of_range(
                place.topic, place.partition, requested=position.number, start=start, end=end
            )
        return position.number

    async def _offset(self, place: Place, time_ms: int) -> int:
        query = OffsetQuery(place.topic_id, place.partition, time_ms)
        request = ListOffsetsRequest(READ_COMMITTED, (query,))
        response, _ = await self._gateway.ask_leader(
            place.topic, place.partition, request, ListOffsetsResponse
        )
        found = response.results[0]
        if found.error is not None:
            raise from_wire(found.error)
        return found.offset

    async def fetch(self, place: Place, offset: int, *, wait_ms: int = 0) -> Fetched:
        """Batches from the one that holds ``offset`` on, if there are any within ``wait_ms``.

        Raises T041, T035, T033, T010 and whatever else a consumer would get.
        """
        wanted = FetchPartition(place.topic_id, place.partition, offset, FETCH_BYTES, -1, -1, -1)
        request = FetchRequest(wait_ms, 1, FETCH_BYTES, READ_COMMITTED, None, -1, (wanted,))
        response, data = await self._gateway.ask_leader(
            place.topic, place.partition, request, FetchResponse
        )
        result = response.results[0]
        if result.error is not None:
            raise from_wire(result.error)
        await breathe()  # others have their turn: up to here it took a step of the usual length
        batches = self._split(place, memoryview(data), offset)
        next_offset = batches[-1][0].next_offset if batches else offset
        return Fetched(batches, next_offset, result.log_start, result.last_stable_offset)

    async def wait(self, place: Place, offset: int, wait_s: float) -> bool:
        """Until there is something at an offset, so long at most; False if the broker stops."""
        with self._gateway.patience():
            await self.fetch(place, offset, wait_ms=int(wait_s * 1000))
        return not self._gateway.stopping.is_set()

    def _split(
        self, place: Place, data: memoryview, offset: int
    ) -> list[tuple[BatchHeader, memoryview]]:
        batches: list[tuple[BatchHeader, memoryview]] = []
        at = 0
        while at < len(data):
            try:
                header = parse_header(data[at:])
            except BatchError as error:
                raise self._corrupt(place, offset, error.reason) from error
            if header.next_offset > offset:
                batches.append((header, data[at : at + header.size_bytes]))
            at += header.size_bytes
        return batches

    async def open(
        self, place: Place, header: BatchHeader, entry: memoryview, decode: Decode
    ) -> Cursor | None:
        """Its records; None if it has none to be shown. T035 if its columns cannot be read."""
        if header.is_control or header.record_count == 0:
            return None
        key = (place.topic_id, place.partition, header.base_offset, header.payload_checksum)
        kept = self._opened.get(key)
        if kept is not None:
            self._opened.move_to_end(key)
            return Cursor(place, header, kept[0], decode)
        try:
            if header.size_bytes <= OPEN_HERE_BYTES_MAX:
                columns = decode_columns(entry, header)
            else:
                offload = self._gateway.node.world.offload
                columns = await offload.run(decode_columns, entry, header)
        except BatchError as error:
            raise self._corrupt(place, header.base_offset, error.reason) from error
        self._keep(key, columns)
        return Cursor(place, header, columns, decode)

    def _keep(self, key: tuple[bytes, int, int, int], columns: Columns) -> None:
        if len(columns.values) <= CHUNK_RECORDS:
            return  # taken at once, and nobody will ask for the rest of it
        size_bytes = _memory_bytes(columns)
        if size_bytes > OPEN_BYTES_MAX or key in self._opened:
            return
        self._opened[key] = (columns, size_bytes)
        self._opened_bytes += size_bytes
        while self._opened_bytes > OPEN_BYTES_MAX:
            _, (_, dropped_bytes) = self._opened.popitem(last=False)
            self._opened_bytes -= dropped_bytes

    def _corrupt(self, place: Place, offset: int, reason: str) -> Exception:
        broker = self._gateway.node.broker_id
        return texts.corrupt_batch(
            place.topic, place.partition, offset=offset, broker=broker, reason=reason
        )


def _memory_bytes(columns: Columns) -> int:
    columns_of_bytes: Sequence[Sequence[bytes | None]] = (columns.values, columns.keys or ())
    size = sum(len(one) for column in columns_of_bytes for one in column if one is not None)
    headers = [pair for some in columns.headers or () if some for pair in some]
    size += sum(len(name) + len(data or b"") + 3 * _ELEMENT_BYTES for name, data in headers)
    return size + len(columns.values) * _ELEMENT_BYTES


async def breathe() -> None:
    """Let others run between two chunks."""
    await trio.lowlevel.checkpoint()
