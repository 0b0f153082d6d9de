"""The coordinator of consumer groups, over the wire."""

from pathlib import Path

import pytest
import trio

from tailrace.protocol.errors import InvalidName
from tailrace.protocol.messages import (
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
)
from tailrace.protocol.routing import Router, even_ranges
from tests.broker.harness import connected, run, serving


def test_the_first_use_makes_one_topic_however_many_ask(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            found: list[FindCoordinatorResponse] = []

            async def ask(group: str) -> None:
                async with connected(ready) as client:
                    request = FindCoordinatorRequest(group)
                    found.append((await client.ask(request, FindCoordinatorResponse))[0])

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask, "billing")
            assert len(set(found)) == 1
            starts = [first for first, _ in even_ranges(16)]
            partition = Router(starts).partition(b"billing")
            assert found[0] == FindCoordinatorResponse("n1", partition)
            async with connected(ready) as client:
                described, _ = await client.ask(
                    DescribeTopicsRequest(None, True), DescribeTopicsResponse
                )
            (topic,) = described.topics
            assert (topic.name, topic.internal) == ("__offsets", True)
            assert (topic.cleanup, topic.durability) == ("compact", "fsync")
            assert len(topic.partitions) == 16

    run(main)


def test_a_groups_name_has_1_to_255_printable_characters(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            for name in ("", "a\nb", "x" * 256):
                with pytest.raises(InvalidName, match="T013: group"):
                    await client.ask(FindCoordinatorRequest(name), FindCoordinatorResponse)

    run(main)
