"""A broker in memory that fails on command: one process, no sockets, under any event loop.

It speaks through ``protocol.connection.ServerConnection`` and keeps the promises of a real one
(sequences with a window of five batches, offsets, long polls are not served). ``script`` says what
happens to the next produce requests; what is not in the script goes well.
"""

import errno
import itertools
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import anyio
import anyio.lowlevel

from tailrace.protocol import texts
from tailrace.protocol.batch import decode_columns, header_seed, verify_produced
from tailrace.protocol.connection import Incoming, ServerConnection
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    VERSIONS,
    ApiRange,
    BrokerAddress,
    HelloRequest,
    HelloResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
    MetadataRequest,
    MetadataResponse,
    PartitionMetadata,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
    Response,
    TopicMetadata,
)
from tailrace.protocol.routing import even_ranges
from tailrace.protocol.seams import Buffer

APPEND_TIME = 1_763_690_000_000
WINDOW = 5
FAR_MS = 1 << 60


class Do(Enum):
    """What happens to a produce request."""

    SERVE = "append and answer"
    LOSE_ANSWER = "append, then break the connection"
    LOSE_REQUEST = "break the connection"
    HOLD = "append, answer on release()"
    DELAY = "append and answer on release()"
    SWALLOW = "neither append nor answer"


Step = Do | TailraceError


@dataclass
class Topic:
    """One topic and its logs."""

    name: str
    topic_id: bytes
    partitions: int
    record_bytes_max: int = 1 << 20
    leaderless: bool = False
    replicas: tuple[str, ...] = ("n1",)
    logs: list[list[bytes]] = field(default_factory=list[list[bytes]])  # values by partition
    keys: list[list[bytes | None]] = field(default_factory=list[list[bytes | None]])
    batches: list[list[int]] = field(default_factory=list[list[int]])  # sizes in records

    def __post_init__(self) -> None:
        self.logs = [[] for _ in range(self.partitions)]
        self.keys = [[] for _ in range(self.partitions)]
        self.batches = [[] for _ in range(self.partitions)]


@dataclass
class Known:
    """What a partition remembers of a producer: the last batches, oldest first."""

    batches: deque[tuple[int, int, int]]  # first sequence, next sequence, base offset


class FakeBroker:
    """See the module."""

    def __init__(self, *, broker_id: str = "n1", host: str = "broker", port: int = 7400) -> None:
        self.broker_id = broker_id
        self.host, self.port = host, port
        self.advertised = (host, port)
        self.topics: dict[str, Topic] = {}
        self.auto_create = False
        self.refusing: Exception | None = None  # what connecting fails with
        self.black_hole = False  # accepts, never answers
        self.request_bytes_max = 16 << 20
        self.script: deque[Step] = deque()
        self.metadata_script: deque[TailraceError] = deque()
        self.connections: list[FakeConnection] = []
        self.dialled = 0
        self.requests: list[Incoming] = []
        self.produced: list[ProduceRequest] = []
        self.producer_ids = 0
        self.known: dict[tuple[bytes, int, int], Known] = {}
        self.tls: list[ssl.SSLContext | None] = []
        self.foreign: bytes | None = None  # what it says instead of ours
        self._topic_ids = itertools.count(1)
        self._held: list[tuple[FakeConnection, Incoming, Response | None]] = []

    def create(
        self,
        name: str,
        partitions: int = 1,
        *,
        record_bytes_max: int = 1 << 20,
        leaderless: bool = False,
    ) -> Topic:
        """Make a topic, in place of one of that name."""
        topic_id = next(self._topic_ids).to_bytes(16)
        topic = Topic(name, topic_id, partitions, record_bytes_max, leaderless)
        self.topics[name] = topic
        return topic

    @property
    def held(self) -> int:
        """Answers that wait for ``release``."""
        return len(self._held)

    def release(self, order: Sequence[int] | None = None) -> None:
        """Send the answers that were held, in order or in the order given."""
        held, self._held = self._held, []
        for index in order if order is not None else range(len(held)):
            connection, request, response = held[index]
            if response is None:
                response = self._produce(request)
            connection.respond(request, response)

    def disconnect(self, error: OSError | None = None) -> None:
        """Break every connection."""
        for connection in list(self.connections):
            connection.break_off(error)

    def forget_producers(self) -> None:
        """As after data loss: sequences of producers are unknown."""
        self.known.clear()

    # ── serving ──────────────────────────────────────────────────────────────────────────────

    def serve(self, connection: "FakeConnection", request: Incoming) -> None:
        """Do what the script says."""
        self.requests.append(request)
        message = request.message
        if not isinstance(message, ProduceRequest):
            try:
                connection.respond(request, self._answer(message))
            except TailraceError as error:
                connection.put(connection.protocol.refuse(request, error))
            return
        self.produced.append(message)
        step = self.script.popleft() if self.script else Do.SERVE
        if isinstance(step, TailraceError):
            failed = ProduceResult(to_wire(step), -1, -1, 0)
            connection.respond(request, ProduceResponse((failed,) * len(message.partitions)))
        elif step is Do.LOSE_REQUEST:
            connection.break_off()
        elif step is Do.LOSE_ANSWER:
            self._produce(request)
            connection.break_off()
        elif step is Do.HOLD:
            self._held.append((connection, request, self._produce(request)))
        elif step is Do.DELAY:
            self._held.append((connection, request, None))
        elif step is Do.SERVE:
            response = self._produce(request)
            if message.acks == 0:
                connection.protocol.drop(request)
            else:
                connection.respond(request, response)

    def _answer(self, message: object) -> Response:
        if isinstance(message, HelloRequest):
            apis = tuple(ApiRange(api, *versions) for api, versions in VERSIONS.items())
            return HelloResponse(
                *(1, self.broker_id, "cluster", "fake/1", apis),
                *(self.request_bytes_max, 8 << 20, 16, 600_000),
            )
        if isinstance(message, InitProducerIdRequest):
            self.producer_ids += 1
            return InitProducerIdResponse(self.producer_ids, 0)
        assert isinstance(message, MetadataRequest)
        if self.metadata_script:
            raise self.metadata_script.popleft()
        names = tuple(self.topics) if message.topics is None else message.topics
        topics = tuple(self._metadata(name, message.auto_create) for name in names)
        address = BrokerAddress(self.broker_id, *self.advertised, None)
        return MetadataResponse("cluster", self.broker_id, (address,), topics)

    def _metadata(self, name: str, auto_create: bool) -> TopicMetadata:
        created = name not in self.topics and auto_create and self.auto_create
        if created:
            self.create(name)
        topic = self.topics.get(name)
        if topic is None:
            error = to_wire(texts.topic_not_found(name, auto_create_off=auto_create))
            return TopicMetadata(name, error, b"", False, False, 0, "fsync", ())
        leader = None if topic.leaderless else self.broker_id
        partitions = tuple(
            PartitionMetadata(p, leader, 1, topic.replicas, ("n1",), *key_range)
            for p, key_range in enumerate(even_ranges(topic.partitions))
        )
        return TopicMetadata(
            name,
            None,
            topic.topic_id,
            False,
            created,
            topic.record_bytes_max,
            "fsync",
            partitions,
        )

    def _produce(self, request: Incoming) -> ProduceResponse:
        message = request.message
        assert isinstance(message, ProduceRequest)
        results: list[ProduceResult] = []
        at = 0
        for part in message.partitions:
            entry = request.body[at : at + part.length]
            at += part.length
            try:
                base = self._append(part.topic_id, part.partition, entry)
                results.append(ProduceResult(None, base, APPEND_TIME, 0))
            except TailraceError as error:
                results.append(ProduceResult(to_wire(error), -1, -1, 0))
        return ProduceResponse(tuple(results))

    def _append(self, topic_id: bytes, partition: int, entry: memoryview) -> int:
        topic = next((t for t in self.topics.values() if t.topic_id == topic_id), None)
        if topic is None:
            raise texts.topic_id_not_found(topic_id, broker=self.broker_id)
        if not 0 <= partition < topic.partitions:
            raise texts.partition_not_found(topic.name, partition, partitions=topic.partitions)
        header = verify_produced(
            entry,
            header_seed(topic_id, partition),
            0,
            FAR_MS,
            topic=topic.name,
            partition=partition,
        )
        log = topic.logs[partition]
        if header.producer_id >= 0:
            place = (topic_id, partition, header.producer_id)
            known = self.known.get(place)
            if known is not None:
                for first, _, base in known.batches:
                    if first == header.base_sequence:
                        return base
            expected = 0 if known is None else known.batches[-1][1]
            if known is None and header.base_sequence:
                raise texts.unknown_producer(
                    topic.name, partition, producer_id=header.producer_id, epoch=0
                )
            if header.base_sequence != expected:
                raise texts.out_of_order_sequence(
                    topic.name,
                    partition,
                    producer_id=header.producer_id,
                    epoch=0,
                    sequence=header.base_sequence,
                    expected=expected,
                )
            batch = (header.base_sequence, header.base_sequence + header.record_count, len(log))
            known = self.known.setdefault(place, Known(deque(maxlen=WINDOW)))
            known.batches.append(batch)
        columns = decode_columns(entry, header)
        base = len(log)
        log += [b"" if value is None else value for value in columns.values]
        topic.keys[partition] += columns.keys or [None] * len(columns.values)
        topic.batches[partition].append(len(columns.values))
        return base


class FakeConnection:
    """The broker's side of one connection, and what is on its way to the client."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.protocol = ServerConnection("fake/1")
        self.inbox: deque[bytes] = deque()
        self.error: OSError | None = None
        self.ended = False
        self.closed = False
        self.event = anyio.Event()

    def take(self, data: bytes) -> None:
        """Bytes from the client."""
        if self.broker.black_hole or self.ended:
            return
        if self.broker.foreign is not None:
            self.put(self.broker.foreign)
            return
        for request in self.protocol.feed(data):
            self.broker.serve(self, request)
        while not self.protocol.full:
            waiting = list(self.protocol.resume())
            if not waiting:
                break
            for request in waiting:
                self.broker.serve(self, request)

    def respond(self, request: Incoming, response: Response) -> None:
        """Answer, unless the connection is gone."""
        if not self.ended:
            self.put(self.protocol.answer(request, response))

    def put(self, data: bytes) -> None:
        """Bytes to the client."""
        self.inbox.append(data)
        self.event.set()

    def break_off(self, error: OSError | None = None) -> None:
        """End it; what was sent before still arrives."""
        self.ended = True
        self.error = error
        self.event.set()
        if self in self.broker.connections:
            self.broker.connections.remove(self)


class FakeTransport:
    """The client's side (``seams.Transport``)."""

    def __init__(self, connection: FakeConnection, *, takes: int | None) -> None:
        self._connection = connection
        self._takes = takes  # bytes that send_nowait takes at most, None: all

    @property
    def peer(self) -> str:
        return "broker:7400"

    async def receive(self, max_bytes: int) -> bytes:
        connection = self._connection
        while not connection.inbox and not connection.ended and not connection.closed:
            connection.event = anyio.Event()
            await connection.event.wait()
        if connection.closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed here")
        if connection.inbox:
            data = connection.inbox.popleft()
            if len(data) > max_bytes:
                connection.inbox.appendleft(data[max_bytes:])
            return data[:max_bytes]
        if connection.error is not None:
            raise connection.error
        return b""

    async def send(self, buffers: Sequence[Buffer]) -> None:
        await anyio.lowlevel.checkpoint()
        for buffer in buffers:
            assert isinstance(buffer, bytes | bytearray | memoryview)
            self._pass_on(bytes(buffer))

    def send_nowait(self, data: bytes) -> int:
        taken = len(data) if self._takes is None else min(self._takes, len(data))
        if taken:
            self._pass_on(bytes(data[:taken]))
        return taken

    def close(self) -> None:
        self._connection.closed = True
        self._connection.break_off()

    def _pass_on(self, data: bytes) -> None:
        if self._connection.closed:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed here")
        self._connection.take(data)


class FakeNet:
    """The network of a client (``seams.ClientNet``): brokers by address."""

    def __init__(self, *brokers: FakeBroker) -> None:
        self.brokers = {(broker.host, broker.port): broker for broker in brokers}
        self.takes: int | None = None

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None) -> FakeTransport:
        await anyio.lowlevel.checkpoint()
        broker = self.brokers.get((host, port))
        if broker is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody there")
        broker.dialled += 1
        if broker.refusing is not None:
            raise broker.refusing
        broker.tls.append(tls)
        connection = FakeConnection(broker)
        broker.connections.append(connection)
        return FakeTransport(connection, takes=self.takes)
