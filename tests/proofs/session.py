"""What a client does to a broker that may die or fail at any call, and what it may rely on.

One ``Ledger`` outlives many brokers on one data directory. Each ``session`` first reads everything
back and holds it against the ledger (S2, S12, S15, S32), then goes on. What a session did not get
an answer for is sent again by the next one, with the same sequence: it must be there once.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import trio

from tailrace.protocol.batch import decode_columns, parse_header
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import ProduceResponse, ProduceResult
from tests.broker.harness import Client, batch, produce_request

TOPIC = "kept"
PARTITIONS = 2
RECORDS = 14  # of one session
SIZES = (10, 400, 3000)
REFUSED_MAX = 3  # times in a row: what a fault of one call can do
SECONDS_MAX = 20.0
UNREADABLE = 33

Place = tuple[int, int]  # partition, offset
Gone = (trio.BrokenResourceError, trio.ClosedResourceError, trio.EndOfChannel, OSError)


class Unreadable(Exception):
    """A partition is offline, and stays so."""


@dataclass
class Ack:
    """One record that a broker promised to keep."""

    value: bytes
    sent_at: float  # of the wall clock, s
    acked_at: float


@dataclass
class Ledger:
    """What one producer knows."""

    acked: dict[Place, Ack] = field(default_factory=dict[Place, Ack])
    open: dict[int, bytes] = field(default_factory=dict[int, bytes])  # sent, but not answered
    sequences: Counter[int] = field(default_factory=Counter[int])
    refusals: Counter[str] = field(default_factory=Counter[str])
    sessions: int = 0
    unreadable: int = 0  # sessions that found a partition offline
    read: int = 0

    def check(self, found: dict[Place, bytes]) -> None:
        """AssertionError with what is wrong."""
        self.read += len(found)
        lost = [at for at, ack in self.acked.items() if found.get(at) != ack.value]
        assert not lost, f"{len(lost)} acknowledged records are lost or changed: {lost[:3]}"
        places: dict[bytes, Place] = {}
        for place, value in found.items():
            assert value not in places, f"{value[:20]!r} is at {place} and at {places[value]}"
            places[value] = place
        known = {ack.value for ack in self.acked.values()} | set(self.open.values())
        strange = [place for place, value in found.items() if value not in known]
        assert not strange, f"nobody sent what is at {strange[:3]}"
        for partition in range(PARTITIONS):
            offsets = sorted(offset for number, offset in found if number == partition)
            assert offsets == list(range(len(offsets))), f"offsets of {partition} have gaps"


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Client]:
    """A client that has said hello."""
    host, _, port = url.removeprefix("tailrace://").rpartition(":")
    client = Client(await trio.open_tcp_stream(host, int(port)))
    async with client.stream:
        await client.hello()
        yield client


async def session(url: str, ledger: Ledger) -> bool:
    """Read back, then write; whether the broker was there to the end."""
    ledger.sessions += 1
    try:
        with trio.fail_after(SECONDS_MAX):
            async with connected(url) as client:
                return await _use(client, ledger)
    except Gone:
        return False
    except Unreadable:
        ledger.unreadable += 1
        return True


async def read_back(url: str, ledger: Ledger) -> None:
    """The last word: all that was acknowledged is there."""
    async with connected(url) as client:
        topic = await _topic(client, ledger)
        assert topic is not None
        ledger.check(await _read_all(client, topic))


async def _use(client: Client, ledger: Ledger) -> bool:
    topic = await _topic(client, ledger)
    if topic is None:
        return True
    ledger.check(await _read_all(client, topic))
    rng = Random(ledger.sessions)
    for number in range(RECORDS):
        partition = number % PARTITIONS
        if partition not in ledger.open:
            size = rng.choice(SIZES)
            ledger.open[partition] = b"%d-%d-" % (ledger.sessions, number) + b"x" * size
        for _ in range(REFUSED_MAX):
            if await _send(client, topic, partition, ledger):
                break
        if number == RECORDS // 2:
            await _change_topics(client, ledger)
    return True


async def _send(client: Client, topic: bytes, partition: int, ledger: Ledger) -> bool:
    """Send what is open for a partition; whether it was acknowledged."""
    value, sequence = ledger.open[partition], ledger.sequences[partition]
    entry = batch(
        topic, [value], partition, producer_id=7, producer_epoch=0, base_sequence=sequence
    )
    sent_at = time.time()
    answer, _ = await client.ask(produce_request(topic, [entry], partition), ProduceResponse, entry)
    result: ProduceResult = answer.results[0]
    if result.error is not None:
        ledger.refusals[f"T{result.error.code:03}"] += 1
        return False
    ledger.acked[partition, result.base_offset] = Ack(value, sent_at, time.time())
    del ledger.open[partition]
    ledger.sequences[partition] += 1
    return True


async def _change_topics(client: Client, ledger: Ledger) -> None:
    """Create, fill and delete one, whatever an earlier session left of it."""
    for attempt in (client.delete, client.create, client.delete):
        try:
            made = await attempt("brief")
            if attempt == client.create:
                await client.produce(made, [b"x" * 3000] * 5)
        except TailraceError as error:
            ledger.refusals[error.code] += 1


async def _topic(client: Client, ledger: Ledger) -> bytes | None:
    """The id of the topic, made if it is not there; None: the broker cannot make it now."""
    for _ in range(REFUSED_MAX):
        try:
            for topic in (await client.metadata()).topics:
                if topic.name == TOPIC:
                    return topic.topic_id
            assert not ledger.acked, "the topic is gone"
            return await client.create(TOPIC, PARTITIONS)
        except TailraceError as error:
            ledger.refusals[error.code] += 1
    return None


async def _read_all(client: Client, topic: bytes) -> dict[Place, bytes]:
    found: dict[Place, bytes] = {}
    for partition in range(PARTITIONS):
        at, refused = 0, 0
        while True:
            answer, body = await client.fetch(topic, at, partition)
            error = answer.results[0].error
            if error is not None:  # the file could not be opened, say: it can be the next time
                refused += 1
                assert error.code == UNREADABLE, error
                if refused == REFUSED_MAX:
                    raise Unreadable(error)
                continue
            if not body:
                break
            for offset, value in records_in(bytes(body)):
                found[partition, offset], at = value, offset + 1
    return found


def records_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and value of everything in the body of a fetch."""
    while data:
        header = parse_header(data)
        for offset, value in enumerate(decode_columns(data, header).values, header.base_offset):
            assert value is not None
            yield offset, value
        data = data[header.size_bytes :]
