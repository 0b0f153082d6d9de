"""What reading as a member of a group costs, beside reading without one.

    python -m tailrace.bench.grouped [--records N] [--rounds N]

Starts a broker of its own with a topic of four partitions (100 B values, keyed) and reads it, round
by round, in each way without and with a group (A B A B …), committing every second as by default.
Figures are records per second of the consumer's CPU time, which a busy machine disturbs less than
the wall clock; ``run`` gets a twenty-fifth of the records and a handler that does nothing.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tailrace
import tailrace.sync
from tailrace.bench.processes import BrokerProcess

PARTITIONS = 4
CHUNK = 1_000
KEYS = 97
TOPIC = "grouped"
SHORT = "grouped-short"  # for ``run``


def options() -> dict[str, Any]:
    """Of a member of a new group."""
    return {"group": f"bench-{uuid.uuid4().hex}"}


async def read(url: str, way: str, group: dict[str, Any]) -> float:
    """Records per second of CPU time."""
    count = 0

    async def handle(record: tailrace.Record[Any, Any]) -> None:
        nonlocal count
        count += 1

    topic = SHORT if way == "run" else TOPIC
    async with tailrace.connect(url) as client:
        async with client.consumer(topic, stop_at_end=True, **group) as consumer:
            began = time.process_time()
            if way == "async for":
                async for _ in consumer:
                    count += 1
            elif way == "batches":
                async for batch in consumer.batches(max_records=CHUNK):
                    count += len(batch.values)
            else:
                await consumer.run(handle, signals=False)
            return count / (time.process_time() - began)


def read_sync(url: str, group: dict[str, Any]) -> float:
    """The same by ``tailrace.sync``."""
    with tailrace.sync.connect(url) as client:
        with client.consumer(TOPIC, stop_at_end=True, **group) as consumer:
            began = time.process_time()
            count = sum(1 for _ in consumer)
            return count / (time.process_time() - began)


def ways(url: str) -> dict[str, Callable[[dict[str, Any]], float]]:
    """What is measured, by name."""

    def by(way: str) -> Callable[[dict[str, Any]], float]:
        return lambda group: asyncio.run(read(url, way, group))

    found = {way: by(way) for way in ("async for", "batches", "run")}
    found["tailrace.sync"] = partial(read_sync, url)
    return found


def fill(url: str, records: int) -> None:
    """Both topics."""
    keys = [b"%d" % (number % KEYS) for number in range(CHUNK)]
    with tailrace.sync.connect(url) as client, client.producer() as producer:
        for topic, count in ((TOPIC, records), (SHORT, max(CHUNK, records // 25))):
            client.admin.create_topic(topic, partitions=PARTITIONS)
            for _ in range(count // CHUNK):
                producer.send_many(topic, [b"x" * 100] * CHUNK, keys=keys)


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading with and without a group.")
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        with BrokerProcess(Path(directory)) as broker:
            fill(broker.url, chosen.records)
            for name, measure in ways(broker.url).items():
                plain: list[float] = []
                grouped: list[float] = []
                for _ in range(chosen.rounds):
                    plain.append(measure({}))
                    grouped.append(measure(options()))
                a, b = statistics.median(plain), statistics.median(grouped)
                print(f"{name:14} {a:11,.0f} without, {b:11,.0f} with a group, {b / a - 1:+.0%}")


if __name__ == "__main__":
    main()
