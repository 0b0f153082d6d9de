"""Members of groups for tests: each on a client of its own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import tailrace
from tailrace.client.records import Record
from tailrace.testing import Broker

Records = Sequence[Record[Any, Any]]


def values(records: Records) -> list[int]:
    return sorted(int(record.value or b"") for record in records)


@asynccontextmanager
async def member(
    broker: Broker, topic: str, name: str = "a", **options: Any
) -> AsyncIterator[tailrace.Consumer[Any, Any]]:
    """A consumer of group ``g-<topic>``, on a client of its own."""
    given: dict[str, Any] = {"group": f"g-{topic}", "close_timeout": 2.0, "commit_interval": 60.0}
    async with tailrace.connect(broker.url, client_id=name) as client:
        async with client.consumer(topic, **given | options) as consumer:
            yield consumer


async def rest(broker: Broker, topic: str) -> list[int]:
    """The offsets that the group reads next, of a topic with one partition."""
    async with member(broker, topic, stop_at_end=True, commit="manual") as consumer:
        return [record.offset async for record in consumer]


async def take(consumer: tailrace.Consumer[Any, Any], count: int) -> list[Record[Any, Any]]:
    """So many records, the last one of them in hand."""
    records = consumer.__aiter__()
    return [await records.__anext__() for _ in range(count)]
