"""Topics of the broker's own: nobody else writes to them or takes them away."""

from pathlib import Path

import pytest

from tailrace.protocol.errors import InvalidName
from tailrace.protocol.messages import (
    AlterTopicRequest,
    ConfigChange,
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    EraseRequest,
    ErasureResponse,
    TopicResponse,
)
from tests.broker.harness import Settings, connected, run, serving
from tests.broker.members import find


def test_clients_neither_write_to_them_nor_take_anything_away(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await find(client)
            (topic,) = (await client.metadata("__offsets")).topics
            refused = await client.produce(topic.topic_id, [b"forged"])
            assert refused.error is not None
            assert refused.error.code == 13
            with pytest.raises(InvalidName):
                await client.delete("__offsets")
            with pytest.raises(InvalidName):
                await client.ask(DeleteRecordsRequest("__offsets", ()), DeleteRecordsResponse)
            erase = EraseRequest(bytes(16), "__offsets", (b"g",), ())
            with pytest.raises(InvalidName):
                await client.ask(erase, ErasureResponse)
            alter = AlterTopicRequest("__offsets", (ConfigChange("cleanup", "delete"),))
            with pytest.raises(InvalidName):
                await client.ask(alter, TopicResponse)

    run(main)


def test_they_are_beyond_the_limits_and_the_topic_section(tmp_path: Path) -> None:
    async def main() -> None:
        settings: Settings = {
            "limits.partitions_per_topic": 2,
            "limits.request_size": "128KiB",
            "topic.max_record": "1KiB",
            "topic.on_full": "drop_oldest",
            "topic.durability": "os",
        }
        async with serving(tmp_path, settings) as (_, ready), connected(ready) as client:
            await find(client)
            (topic,) = (await client.metadata("__offsets")).topics
            assert len(topic.partitions) == 16
            assert (topic.durability, topic.record_bytes_max) == ("fsync", 16 << 20)

    run(main)
