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

from tailrace.protocol.batch import decode_columns, encode_batch, header_seed, parse_header
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import ProduceResponse, ProduceResult, Request
from tailrace.protocol.messages_admin import EraseRequest, ErasureResponse, GetErasureRequest
from tests.broker.harness import NOW_MS, Client, batch, produce_request

TOPIC, PEOPLE = "kept", "people"
PARTITIONS = 2
RECORDS = 14  # of one session
SIZES = (10, 400, 3000)
REFUSED_MAX = 3  # times in a row: what a fault of one call can do
SECONDS_MAX = 20.0
UNREADABLE = 33
FULL = 31
LOOK_S = 0.1  # how often a partition that waits for room is asked for
ERASED_MS_MAX = 10_000

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
    erasing: bool = False  # sessions have records erased, too
    keys: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # of values acknowledged
    asked: set[bytes] = field(default_factory=set[bytes])  # keys that may be erased
    erased: set[bytes] = field(default_factory=set[bytes])  # keys of which none may be left
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
    if ledger.erasing:
        await _erase(client, ledger)
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


async def _erase(client: Client, ledger: Ledger) -> None:
    """Hold a topic against what was erased of it, add to it, and have one more key erased."""
    topic = await _find(client, PEOPLE, ledger)
    if topic is None:
        return
    there = set((await _read(client, topic, 0)).values())
    for value, key in ledger.keys.items():
        assert value not in there or key not in ledger.erased, f"{key!r} was erased"
        assert value in there or key in ledger.asked, f"{value[:20]!r} is gone"
    keys = [b"%d.%d" % (ledger.sessions, number) for number in range(3)]
    values = [b"%s of %s " % (PEOPLE.encode(), key) + b"x" * 1000 for key in keys]
    entry = encode_batch(header_seed(topic, 0), values=[*values], keys=[*keys], timestamps=NOW_MS)
    request = produce_request(topic, [entry])
    answer, _ = await client.ask(request, ProduceResponse, entry)
    if answer.results[0].error is not None:
        return
    ledger.keys.update(zip(values, keys, strict=True))
    ledger.asked.add(keys[0])
    erasure_id = Random(ledger.sessions).randbytes(16)
    asking: Request = EraseRequest(erasure_id, PEOPLE, (keys[0],), ())
    for _ in range(REFUSED_MAX):
        try:
            receipt, _ = await client.ask(asking, ErasureResponse)
        except TailraceError as error:
            ledger.refusals[error.code] += 1
            continue
        if receipt.completed_at is not None:
            ledger.erased.add(keys[0])
            return
        asking = GetErasureRequest(PEOPLE, erasure_id, ERASED_MS_MAX)


async def _topic(client: Client, ledger: Ledger) -> bytes | None:
    """The id of the topic; None: the broker cannot make it now."""
    topic = await _find(client, TOPIC, ledger, PARTITIONS)
    assert topic is not None or not ledger.acked, "the topic is gone"
    return topic


async def _find(client: Client, name: str, ledger: Ledger, partitions: int = 1) -> bytes | None:
    """The id of a topic, made if it is not there; None: the broker cannot make it now."""
    for _ in range(REFUSED_MAX):
        try:
            for topic in (await client.metadata()).topics:
                if topic.name == name:
                    return topic.topic_id
            assert name != TOPIC or not ledger.acked, "the topic is gone"
            return await client.create(name, partitions)
        except TailraceError as error:
            ledger.refusals[error.code] += 1
    return None


async def _read_all(client: Client, topic: bytes) -> dict[Place, bytes]:
    found: dict[Place, bytes] = {}
    for partition in range(PARTITIONS):
        there = await _read(client, topic, partition)
        found.update({(partition, offset): value for offset, value in there.items()})
    return found


async def _read(client: Client, topic: bytes, partition: int) -> dict[int, bytes]:
    """Everything of one partition, or ``Unreadable``."""
    found: dict[int, bytes] = {}
    at, refused = 0, 0
    while True:
        answer, body = await client.fetch(topic, at, partition)
        error = answer.results[0].error
        if error is not None:  # the file could not be opened, say: it can be the next time
            if error.code == FULL:  # it is opened as soon as there is room
                await trio.sleep(LOOK_S)
                continue
            refused += 1
            assert error.code == UNREADABLE, error
            if refused == REFUSED_MAX:
                raise Unreadable(error)
            continue
        if not body:
            return found
        found.update(records_in(bytes(body)))
        at = end_of(bytes(body))


def records_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and value of everything in the body of a fetch."""
    while data:
        header = parse_header(data)
        columns = decode_columns(data, header)
        deltas = columns.offsets if columns.offsets is not None else range(len(columns.values))
        for delta, value in zip(deltas, columns.values, strict=True):
            assert value is not None
            yield header.base_offset + delta, value
        data = data[header.size_bytes :]


def end_of(data: bytes) -> int:
    """The offset behind the last batch in the body of a fetch, which may hold no record."""
    while True:
        header = parse_header(data)
        data = data[header.size_bytes :]
        if not data:
            return header.next_offset
