"""What clients do in a scenario: produce in every way there is, and read again and again.

Every value is unique and says who sent it. Whatever a call returned or raised goes into the
history; an error of the SDK ends the client, and the next one takes over.
"""

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Literal

import trio

from tailrace.client.client import Client
from tailrace.client.consumer import Consumer
from tailrace.client.producer import Producer
from tailrace.client.records import Record, RecordMetadata
from tailrace.protocol.errors import (
    CorruptBatch,
    OffsetOutOfRange,
    ProduceError,
    SendManyError,
    TailraceError,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.simulation.history import History, Read, Send
from tailrace.simulation.run import SimCluster

Way = Callable[[Producer[bytes, bytes], str], Awaitable[object]]

KEYS = [None, *(f"k{number}".encode() for number in range(8))]
LARGE = 4000


class Producing:
    """One producer after the other, under one name."""

    def __init__(
        self,
        cluster: SimCluster,
        history: History,
        topic: str,
        name: str,
        rng: Random,
        pace: float = 12.0,  # calls per second
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._topic = topic
        self._name = name
        self._rng = rng
        self._pace = pace
        self._lives = 0
        self._count = 0

    async def until(self, end: float) -> None:
        """Send until that moment of virtual time."""
        while trio.current_time() < end:
            self._lives += 1
            try:
                async with self._cluster.client(f"{self._name}.{self._lives}") as client:
                    await self._use(client, end)
            except TailraceError:
                await trio.sleep(self._rng.random())

    async def _use(self, client: Client, end: float) -> None:
        rng = self._rng
        compressions: tuple[Literal["none", "lz4", "zstd"], ...] = ("none", "lz4", "zstd")
        async with client.producer(
            linger=rng.choice((0.0, 0.005, 0.1)),
            timeout=rng.choice((3.0, 15.0)),
            max_in_flight=rng.choice((1, 5)),
            compression=rng.choice(compressions),
        ) as producer:
            # Before the partitions are known, calls of several tasks have no order.
            while not await self._send(producer, f"{self._name}.{self._lives}"):
                if trio.current_time() >= end:
                    return  # the topic is not there, say
            async with trio.open_nursery() as nursery:
                while trio.current_time() < end:
                    ways: tuple[Way, ...] = (self._send, self._enqueue, self._send_many)
                    how = rng.choices(ways, (2, 1, 1))[0]
                    nursery.start_soon(how, producer, f"{self._name}.{self._lives}")
                    await trio.sleep(rng.expovariate(self._pace))

    async def _send(self, producer: Producer[bytes, bytes], who: str) -> bool:
        """Whether it was acked."""
        [send] = self._begin(who, 1)
        try:
            made = await producer.send(self._topic, send.value, key=send.key)
        except TailraceError as error:
            _failed(send, error)
            return False
        send.acked(trio.current_time(), made.topic, made.partition, made.offset)
        return True

    async def _enqueue(self, producer: Producer[bytes, bytes], who: str) -> None:
        sends = self._begin(who, self._rng.randrange(1, 6))
        deliveries = [
            producer.enqueue_nowait(self._topic, send.value, key=send.key) for send in sends
        ]
        for send, delivery in zip(sends, deliveries, strict=True):
            try:
                made = await delivery
            except TailraceError as error:
                _failed(send, error)
            else:
                send.acked(trio.current_time(), made.topic, made.partition, made.offset)

    async def _send_many(self, producer: Producer[bytes, bytes], who: str) -> None:
        sends = self._begin(who, self._rng.randrange(1, 20))
        made: Sequence[RecordMetadata | None] = [None] * len(sends)
        failures: dict[int, TailraceError] = {}
        try:
            made = list(
                await producer.send_many(
                    self._topic, [s.value for s in sends], keys=[s.key for s in sends]
                )
            )
        except SendManyError as error:
            made, failures = error.metadata, error.failures
        except TailraceError as error:
            failures = dict.fromkeys(range(len(sends)), error)
        for index, send in enumerate(sends):
            found = made[index]
            if found is None:
                _failed(send, failures[index])
            else:
                send.acked(trio.current_time(), found.topic, found.partition, found.offset)

    def _begin(self, who: str, count: int) -> Sequence[Send]:
        rng = self._rng
        sends: list[Send] = []
        for _ in range(count):
            self._count += 1
            size = LARGE if rng.random() < 0.05 else rng.randrange(200)
            value = f"{self._name}-{self._count}-".encode() + b"x" * size
            sends.append(self._history.send(who, rng.choice(KEYS), value, trio.current_time()))
        return sends


class Reading:
    """One reader after the other, each from the beginning."""

    def __init__(
        self,
        cluster: SimCluster,
        history: History,
        topic: str,
        name: str,
        rng: Random,
        lives_s: tuple[float, float] = (2, 12),
        racks: Sequence[str | None] = (None,),  # a life stands in one of them
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._topic = topic
        self._name = name
        self._rng = rng
        self._lives_s = lives_s
        self._racks = racks

    async def for_ever(self) -> None:
        """Until cancelled."""
        lives = 0
        while True:
            lives += 1
            reader = f"{self._name}.{lives}"
            rack = self._racks[0] if len(self._racks) == 1 else self._rng.choice(self._racks)
            try:
                async with self._cluster.client(reader, rack) as client:
                    with trio.move_on_after(self._rng.uniform(*self._lives_s)):
                        await self._use(client, reader)
            except TailraceError:
                await trio.sleep(self._rng.random())

    async def _use(self, client: Client, reader: str) -> None:
        async with client.consumer(self._topic, fetch_wait=1.0) as consumer:
            if self._rng.random() < 0.5:
                async for record in consumer:
                    saw(self._history, reader, record)
            else:
                async for batch in consumer.batches(max_records=self._rng.choice((1, 7, 500))):
                    for record in batch:
                        saw(self._history, reader, record)


async def drain(
    cluster: SimCluster, history: History, topic: str, partitions: int, reader: str
) -> set[tuple[int, int]]:
    """Read all there is; (partition, offset) of what the broker says is damaged."""
    lost: set[tuple[int, int]] = set()
    async with cluster.client(reader) as client:
        for number in range(partitions):
            where = TopicPartition(topic, number)
            async with client.consumer(partitions=[where], stop_at_end=True) as consumer:
                while (error := await _read_on(history, reader, consumer)) is not None:
                    if isinstance(error, OffsetOutOfRange):  # expired since it was asked for
                        await consumer.seek(where, error.start)
                        continue
                    go_on = error.details.get("next_offset")
                    assert isinstance(go_on, int), error
                    lost |= {(number, offset) for offset in range(error.offset, go_on)}
                    await consumer.seek(where, go_on)
    return lost


async def _read_on(
    history: History, reader: str, consumer: Consumer[bytes, bytes]
) -> CorruptBatch | OffsetOutOfRange | None:
    try:
        async for record in consumer:
            saw(history, reader, record)
    except (CorruptBatch, OffsetOutOfRange) as error:
        return error
    return None


def saw(history: History, reader: str, record: Record[bytes, bytes]) -> None:
    """A consumer was handed this record."""
    value = record.raw_value
    assert value is not None
    at = trio.current_time()
    history.reads.append(
        Read(reader, record.topic, record.partition, record.offset, record.raw_key, value, at)
    )


def _failed(send: Send, error: TailraceError) -> None:
    maybe = error.maybe_written if isinstance(error, ProduceError) else True
    send.failed(trio.current_time(), maybe_written=maybe)
