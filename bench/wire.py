"""A client that does next to nothing: batches encoded before, answers counted and thrown away.

It measures the broker alone (P8, P10, P14). Blocking calls on one socket; the SDK is what people
use, this is what is left when its own work is taken away.
"""

import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tailrace.bench.workload import make_values
from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.protocol.connection import Answer, ClientConnection
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    ACKS_ALL,
    FetchPartition,
    FetchRequest,
    MetadataRequest,
    MetadataResponse,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    Request,
    TopicMetadata,
)

RECEIVE_BYTES = 1 << 18
IN_FLIGHT = 8
FETCHES_IN_FLIGHT = 2  # as the SDK has it
FRAME_HEAD = 20  # bytes of a frame before its head
TIMEOUT_MS = 30_000


@dataclass(frozen=True)
class Batch:
    """A batch, ready to be sent as often as one likes: it belongs to no producer."""

    topic_id: bytes
    partition: int
    entry: bytes
    records: int


def batch_of(topic: TopicMetadata, partition: int, records: int, size_bytes: int) -> Batch:
    """So many records of random bytes for a partition."""
    values: list[bytes | None] = [*make_values(records, size_bytes)]
    seed = header_seed(topic.topic_id, partition)
    now_ms = int(time.time() * 1_000)
    entry = encode_batch(seed, values=values, timestamps=now_ms)
    return Batch(topic.topic_id, partition, entry, records)


class Wire:
    """One connection that has said hello. A context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = ClientConnection("bench", "tailrace-bench/1")
        self.answers = deque[Answer]()
        self.socket.sendall(self.connection.open())
        self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def answer(self) -> Answer:
        """The next one; raises what the broker refuses with."""
        while not self.answers:
            data = self.socket.recv(RECEIVE_BYTES)
            assert data, "the broker closed the connection"
            self.answers.extend(self.connection.feed(data))
        found = self.answers.popleft()
        if isinstance(found.message, TailraceError):
            raise found.message
        return found

    def ask(self, request: Request) -> Answer:
        """One question, and its answer."""
        self.socket.sendall(self.connection.request(request)[1])
        return self.answer()

    def topic(self, name: str) -> TopicMetadata:
        found = self.ask(MetadataRequest((name,), False)).message
        assert isinstance(found, MetadataResponse)
        (topic,) = found.topics
        assert topic.error is None, topic.error
        return topic

    def produce(
        self,
        batches: Sequence[Batch],
        *,
        seconds: float = 1e9,
        size_bytes: int = 1 << 60,
        acks: int = ACKS_ALL,
    ) -> tuple[int, float]:
        """Send one batch a request in turn, ``IN_FLIGHT`` under way, until so many seconds or bytes
        are over. Batches acknowledged, and seconds it took."""
        began = time.perf_counter()
        done, waiting, sent_bytes = 0, 0, 0
        for batch in cycle(batches):
            self._send(batch, acks)
            waiting += 1
            sent_bytes += len(batch.entry)
            while waiting == IN_FLIGHT:
                done, waiting = done + 1, waiting - 1
                self._acknowledged()
            if sent_bytes >= size_bytes or time.perf_counter() - began >= seconds:
                break
        for _ in range(waiting):
            self._acknowledged()
        return done + waiting, time.perf_counter() - began

    def _send(self, batch: Batch, acks: int) -> None:
        part = ProducePartition(batch.topic_id, batch.partition, len(batch.entry))
        request = ProduceRequest(acks, TIMEOUT_MS, (part,))
        head = self.connection.request(request, len(batch.entry))[1]
        sent = self.socket.sendmsg((head, batch.entry))
        if sent < len(head) + len(batch.entry):
            self.socket.sendall(memoryview(head + batch.entry)[sent:])

    def _acknowledged(self) -> None:
        found = self.answer().message
        assert isinstance(found, ProduceResponse)
        assert found.results[0].error is None, found.results[0].error

    def read(
        self, batch: Batch, count: int, *, bytes_max: int, seconds: float = 1e9, laps: int = 1 << 30
    ) -> tuple[int, float]:
        """Read a partition of ``count`` such batches over and over, ``FETCHES_IN_FLIGHT`` under
        way. Bytes of batches that came, and seconds it took.

        Nothing is decoded: how many batches came follows from an answer's length.
        """
        buffer = bytearray(bytes_max + (1 << 20))
        per_fetch = max(1, bytes_max // len(batch.entry))
        began = time.perf_counter()
        received = waiting = 0
        for at in self._positions(count, per_fetch, laps):
            self.socket.sendall(self._fetch(batch, at * batch.records, bytes_max))
            waiting += 1
            if waiting == FETCHES_IN_FLIGHT:
                received, waiting = received + self._drop_answer(buffer), waiting - 1
                if time.perf_counter() - began >= seconds:
                    break
        for _ in range(waiting):
            received += self._drop_answer(buffer)
        return received, time.perf_counter() - began

    def _positions(self, count: int, step: int, laps: int) -> Iterator[int]:
        for _ in range(laps):
            yield from range(0, count, step)

    def _fetch(self, batch: Batch, offset: int, bytes_max: int) -> bytes:
        part = FetchPartition(batch.topic_id, batch.partition, offset, bytes_max, -1, -1, -1)
        request = FetchRequest(1_000, 1, bytes_max, 0, None, -1, (part,))
        return self.connection.request(request)[1]

    def _drop_answer(self, buffer: bytearray) -> int:
        """Receive a fetch answer into a buffer; bytes of batches in it."""
        view = memoryview(buffer)
        self._receive(view[:FRAME_HEAD])
        left = int.from_bytes(view[:4]) + 4 - FRAME_HEAD
        head_bytes = int.from_bytes(view[12:16])
        assert int.from_bytes(view[4:6]) == 3, "no fetch answer"
        self._receive(view[:left])
        assert left > head_bytes, "an answer without batches"
        return left - head_bytes

    def _receive(self, view: memoryview) -> None:
        while view:
            count = self.socket.recv_into(view)
            assert count, "the broker closed the connection"
            view = view[count:]
