"""Producers and consumers of a real cluster, and the judge of what they saw.

    python -m tests.proofs.cluster_load --url URL --out FILE [--producers 5] [--consumers 5]

Each producer sends numbered records (idempotent, acks=all) at a steady rate to all partitions of
one topic and notes when each was sent and acknowledged, and where it stands. Each consumer reads
every partition from its beginning, by ``assign``, and notes what it saw. Meanwhile brokers are
asked whether they lead. It ends on SIGTERM, and what was seen is a JSON document then (``Seen``).
``judge`` holds it against the log that is left:

- every acknowledged record stands where its producer was told, unchanged (S2);
- no record stands twice (S15), and those of one producer stand in the order they were sent (S16);
- every consumer was handed each offset once, in order, as it still stands (S12, S25);
- what was acknowledged before another was sent has the lower offset (S14).
"""

import argparse
import asyncio
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import tailrace
from tailrace import TopicPartition
from tests.proofs.leader_watch import Gap, Leaders, watch

TOPIC = "proof"
IN_FLIGHT_MAX = 500  # of one producer: sent, and not yet settled
SEND_TIMEOUT_S = 120.0
SETTLE_S = 90.0  # after the last record, for what is still in flight
VALUE = "{producer}:{number}"
Handed = tuple[int, int, str]  # partition, offset, value


@dataclass
class Sent:
    """One record of a producer. Times are ``time.monotonic``."""

    producer: int
    number: int
    partition: int
    sent_at: float
    settled_at: float
    offset: int = -1  # -1: it was not acknowledged
    error: str = ""


@dataclass
class Seen:
    """What all of them saw."""

    sent: list[Sent] = field(default_factory=list[Sent])
    handed: list[list[Handed]] = field(default_factory=list[list[Handed]])  # by consumer
    troubles: list[str] = field(default_factory=list[str])  # errors a consumer raised
    leaderless: list[Gap] = field(default_factory=list[Gap])


async def produce(url: str, me: int, partitions: int, rate: float, stop: asyncio.Event) -> Seen:
    """Send until told to stop; every record goes to ``number % partitions``."""
    seen = Seen()
    room = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def settle(one: Sent, delivery: tailrace.Delivery) -> None:
        try:
            one.offset = (await delivery).offset
        except tailrace.TailraceError as error:
            one.error = str(error)
        finally:
            one.settled_at = time.monotonic()
            room.release()

    async with tailrace.connect(url, connect_timeout=30) as client:
        async with client.producer(timeout=SEND_TIMEOUT_S) as producer:
            async with asyncio.TaskGroup() as tasks:
                began, number = time.monotonic(), 0
                while not stop.is_set():
                    await room.acquire()
                    now = time.monotonic()
                    one = Sent(me, number, number % partitions, now, 0.0)
                    value = VALUE.format(producer=me, number=number).encode()
                    delivery = await producer.enqueue(TOPIC, value, partition=one.partition)
                    seen.sent.append(one)
                    tasks.create_task(settle(one, delivery))
                    number += 1
                    await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    return seen


async def consume(url: str, partitions: int, handed: list[Handed], stop: asyncio.Event) -> Seen:
    """Read everything, until told to stop. An error of the client is noted; then it goes on."""
    seen = Seen(handed=[handed])
    places = [TopicPartition(TOPIC, number) for number in range(partitions)]

    async def read() -> None:
        async with tailrace.connect(url, connect_timeout=30) as client:
            async with client.consumer(partitions=places, start="earliest") as consumer:
                for place in places:
                    mine = [
                        offset for partition, offset, _ in handed if partition == place.partition
                    ]
                    if mine:
                        await consumer.seek(place, mine[-1] + 1)
                async for record in consumer:
                    value = (record.value or b"").decode()
                    handed.append((record.partition, record.offset, value))

    while not stop.is_set():
        reading, stopping = asyncio.create_task(read()), asyncio.create_task(stop.wait())
        await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (reading, stopping):
            task.cancel()
        outcome, _ = await asyncio.gather(reading, stopping, return_exceptions=True)
        if isinstance(outcome, tailrace.TailraceError):
            seen.troubles.append(str(outcome))
            await asyncio.sleep(0.2)
        elif isinstance(outcome, Exception):
            raise outcome
    return seen


async def read_all(url: str, partitions: int) -> list[list[str]]:
    """The log as it is now: values by partition and offset."""
    found: list[list[str]] = [[] for _ in range(partitions)]
    async with tailrace.connect(url, connect_timeout=30) as client:
        async with client.consumer(TOPIC, start="earliest", stop_at_end=True) as consumer:
            async for record in consumer:
                log = found[record.partition]
                assert record.offset == len(log), f"offset {record.offset} after {len(log) - 1}"
                log.append((record.value or b"").decode())
    return found


def judge(seen: Seen, logs: Sequence[Sequence[str]]) -> list[str]:
    """What is wrong, one line each."""
    wrong: list[str] = []
    acked = [one for one in seen.sent if one.offset >= 0]
    for one in acked:
        log, value = logs[one.partition], VALUE.format(producer=one.producer, number=one.number)
        if one.offset >= len(log) or log[one.offset] != value:
            there = log[one.offset] if one.offset < len(log) else "nothing"
            wrong.append(f"lost: {value} was acked at {one.partition}@{one.offset}; there: {there}")
    for partition, log in enumerate(logs):
        if len(set(log)) < len(log):
            wrong.append(f"partition {partition}: {len(log) - len(set(log))} records stand twice")
        last: dict[str, int] = {}
        for offset, value in enumerate(log):
            producer, _, number = value.partition(":")
            if int(number) <= last.get(producer, -1):
                wrong.append(f"partition {partition}: {value} at {offset} is out of order")
            last[producer] = int(number)
    for reader, handed in enumerate(seen.handed):
        wrong += [f"consumer {reader}: {text}" for text in _misread(handed, logs)]
    return wrong + _against_real_time(acked)


def _misread(handed: Sequence[Handed], logs: Sequence[Sequence[str]]) -> list[str]:
    wrong: list[str] = []
    following: dict[int, int] = {}
    for partition, offset, value in handed:
        if offset != following.get(partition, 0):
            expected = following.get(partition, 0)
            wrong.append(f"was handed {partition}@{offset} instead of {expected}")
        if offset >= len(logs[partition]) or logs[partition][offset] != value:
            wrong.append(f"was handed {value} at {partition}@{offset}, which is no more there")
        following[partition] = offset + 1
    for partition, log in enumerate(logs):
        if following.get(partition, 0) != len(log):
            seen = following.get(partition, 0)
            wrong.append(f"saw {seen} of {len(log)} records of partition {partition}")
    return wrong


def _against_real_time(acked: Sequence[Sent]) -> list[str]:
    """Pairs of a partition whose offsets contradict the clock (S14): one walk over sorted times."""
    wrong: list[str] = []
    for partition in {one.partition for one in acked}:
        mine = [one for one in acked if one.partition == partition]
        settled = sorted(mine, key=lambda one: one.settled_at)
        highest, at = -1, 0
        for one in sorted(mine, key=lambda one: one.sent_at):
            while at < len(settled) and settled[at].settled_at < one.sent_at:
                highest = max(highest, settled[at].offset)
                at += 1
            if one.offset < highest:
                wrong.append(f"{partition}@{one.offset} was sent after {highest} was acked")
    return wrong


def waits(seen: Seen) -> list[float]:
    """How long each acknowledged record took, in seconds."""
    return [one.settled_at - one.sent_at for one in seen.sent if one.offset >= 0]


def failed(seen: Seen) -> list[str]:
    """What the sends were told that were not acknowledged."""
    return [one.error for one in seen.sent if one.offset < 0]


def silences(seen: Seen, longer_than: float) -> list[Gap]:
    """Stretches in which a partition acknowledged nothing: partition, from when, how long."""
    found: list[Gap] = []
    for partition in sorted({one.partition for one in seen.sent}):
        times = sorted(
            one.settled_at for one in seen.sent if one.partition == partition and one.offset >= 0
        )
        found += [(partition, a, b - a) for a, b in pairwise(times) if b - a > longer_than]
    return found


async def run(
    url: str, producers: int, consumers: int, partitions: int, rate: float, stop: asyncio.Event
) -> Seen:
    """All of them; consumers stop when they have seen what is there once producers are through."""
    done = asyncio.Event()
    leaders = Leaders()
    watching = asyncio.create_task(watch(url, TOPIC, leaders))
    all_handed: list[list[Handed]] = [[] for _ in range(consumers)]
    reading = [asyncio.create_task(consume(url, partitions, one, done)) for one in all_handed]
    parts = await asyncio.gather(
        *(produce(url, me, partitions, rate, stop) for me in range(producers))
    )
    watching.cancel()
    leaders.end(time.monotonic())
    assert len(leaders.led) == partitions, f"only {leaders.led} were heard to have a leader"
    logs = await read_all(url, partitions)
    total = sum(map(len, logs))
    for _ in range(int(SETTLE_S * 10)):
        if all(len(handed) >= total for handed in all_handed):
            break
        await asyncio.sleep(0.1)
    done.set()
    read = await asyncio.gather(*reading)
    return Seen(
        [one for part in parts for one in part.sent],
        [handed for part in read for handed in part.handed],
        [trouble for part in read for trouble in part.troubles],
        leaders.gaps,
    )


def load(path: Path) -> Seen:
    """What ``main`` wrote."""
    document = json.loads(path.read_text())
    return Seen(
        [Sent(**one) for one in document["sent"]],
        [[(p, o, v) for p, o, v in handed] for handed in document["handed"]],
        document["troubles"],
        [(partition, at, length) for partition, at, length in document["leaderless"]],
    )


async def serve(options: argparse.Namespace) -> Seen:
    """Until SIGTERM; what was seen."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("loading", flush=True)
    return await run(
        *(options.url, options.producers, options.consumers, options.partitions),
        *(options.rate, stop),
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--producers", type=int, default=5)
    parser.add_argument("--consumers", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--rate", type=float, default=100.0, help="records per second of each")
    options = parser.parse_args()
    seen = asyncio.run(serve(options))
    Path(options.out).write_text(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
