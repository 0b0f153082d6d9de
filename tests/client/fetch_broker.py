"""The fake broker with logs that can be fetched: long polls are parked until there is something."""

from collections import deque
from collections.abc import Callable

import pytest

from tailrace.client import retry
from tailrace.protocol.batch import (
    encode_batch,
    encode_entry,
    header_seed,
    parse_header,
    patch,
)
from tailrace.protocol.columns import Columns
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    OFFSET_EARLIEST,
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetFound,
    OffsetQuery,
)
from tailrace.protocol.texts import offset_out_of_range
from tests.client.fake_broker import APPEND_TIME, FakeBroker, FakeConnection, FakeNet, Topic
from tests.client.world import World

CONTROL = 0x20
Refusal = Callable[[FetchPartition], TailraceError | None]


class FetchBroker(FakeBroker):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[FetchRequest] = []
        self.entries: dict[tuple[bytes, int], list[bytes]] = {}
        self.starts: dict[tuple[bytes, int], int] = {}
        self.refuse_with: deque[TailraceError] = deque()  # for the next partitions fetched
        self.silent = False  # fetches are neither parked nor answered
        self.eager = False  # an empty answer comes at once
        self.parked: list[tuple[FakeConnection, Incoming]] = []

    def append(
        self,
        topic: Topic,
        values: list[bytes | None],
        partition: int = 0,
        key: bytes | None = b"k",
    ) -> bytearray:
        """One batch behind the others; returns its bytes, for spoiling."""
        seed = header_seed(topic.topic_id, partition)
        entry = bytearray(
            encode_batch(seed, values=values, keys=[key] * len(values), timestamps=1_000)
        )
        return self._add(topic, partition, entry)

    def append_control(self, topic: Topic, partition: int = 0) -> bytearray:
        """A transaction's end, which takes an offset and is no record."""
        columns = Columns(1_000, None, None, [b"\0\0\0\1"], [b"\0\0\0\0\0\0"], None)
        seed = header_seed(topic.topic_id, partition)
        entry = encode_entry(seed, columns, attributes=CONTROL | 0x10, producer_id=1)
        return self._add(topic, partition, bytearray(entry))

    def end(self, place: tuple[bytes, int]) -> int:
        """The log end."""
        entries = self.entries.get(place)
        return parse_header(entries[-1]).next_offset if entries else 0

    def wake(self) -> None:
        """Look at the parked fetches again."""
        parked, self.parked = self.parked, []
        for connection, request in parked:
            self.serve(connection, request)

    def _add(self, topic: Topic, partition: int, entry: bytearray) -> bytearray:
        place = topic.topic_id, partition
        seed = header_seed(*place)
        patch(
            entry,
            seed=seed,
            base_offset=self.end(place),
            leader_epoch=3,
            append_time=APPEND_TIME,
        )
        self.entries.setdefault(place, []).append(bytes(entry))
        self.wake()
        return entry

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        if isinstance(message, ListOffsetsRequest):
            found = tuple(self._find(query) for query in message.partitions)
            connection.respond(request, ListOffsetsResponse(found))
        elif isinstance(message, FetchRequest):
            if message.partitions and not any(message is known for known in self.fetched):
                self.fetched.append(message)
            self._fetch(connection, request, message)
        else:
            super().serve(connection, request)

    def _find(self, query: OffsetQuery) -> OffsetFound:
        place = query.topic_id, query.partition
        offset = self.starts.get(place, 0) if query.time == OFFSET_EARLIEST else self.end(place)
        return OffsetFound(*place, None, offset, -1, 3)

    def _fetch(self, connection: FakeConnection, request: Incoming, message: FetchRequest) -> None:
        if connection.ended or self.silent:
            return
        bodies: list[bytes] = []
        results: list[FetchResult] = []
        for part in message.partitions:
            place = part.topic_id, part.partition
            error = self.refuse_with.popleft() if self.refuse_with else self._outside(part)
            room = message.bytes_max - sum(map(len, bodies))
            share = min(part.bytes_max, room)
            body = b"" if error or room <= 0 else self._read(place, part.offset, share)
            bodies.append(body)
            end = self.end(place)
            wire = to_wire(error) if error else None
            start = self.starts.get(place, 0)
            results.append(FetchResult(*place, wire, start, end, end, end, len(body)))
        answered = any(bodies) or any(result.error for result in results)
        if not answered and message.wait_ms and not self.eager:
            self.parked.append((connection, request))
            return
        body = b"".join(bodies)
        answer = connection.protocol.answer(request, FetchResponse(tuple(results)), len(body))
        connection.put(answer + body)

    def _outside(self, part: FetchPartition) -> TailraceError | None:
        place = part.topic_id, part.partition
        start, end = self.starts.get(place, 0), self.end(place)
        if start <= part.offset <= end:
            return None
        name = next(t.name for t in self.topics.values() if t.topic_id == part.topic_id)
        return offset_out_of_range(
            name, part.partition, requested=part.offset, start=start, end=end
        )

    def _read(self, place: tuple[bytes, int], offset: int, bytes_max: int) -> bytes:
        body = b""
        for entry in self.entries.get(place, []):
            if parse_header(entry).next_offset <= offset:
                continue
            if body and len(body) + len(entry) > bytes_max:
                break
            body += entry
        return body


class FetchWorld(World):
    """One broker to be fetched from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broker: FetchBroker | None = None) -> None:
        super().__init__()
        monkeypatch.setattr(retry, "FIRST_MAX_S", 0.002)
        monkeypatch.setattr(retry, "LIMIT_S", 0.01)
        self.fetch = broker or FetchBroker()
        self.broker = self.fetch
        self.net = FakeNet(self.fetch)
