"""What is refused of requests about groups before any group is asked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tailrace.protocol.errors import ConfigError, ConnectError, InvalidName
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    DeleteGroupRequest,
    FetchOffsetsRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    OffsetTarget,
    OwnedPartitions,
    Request,
    ResetOffsetsRequest,
)
from tests.broker.harness import Client, connected, run, serving
from tests.broker.members import Member, committing

TOPIC_ID = bytes(range(16))


def beat(client: Client) -> HeartbeatRequest:
    return Member(client, "m1").request()


MALFORMED: dict[str, Callable[[Client], Request]] = {
    "no member id": lambda client: replace(beat(client), member_id=""),
    "a member id that cannot be printed": lambda client: replace(beat(client), member_id="a\0b"),
    "a long instance id": lambda client: replace(beat(client), instance_id="x" * 256),
    "topics out of order": lambda client: replace(beat(client), topics=("b", "a")),
    "a topic twice": lambda client: replace(beat(client), topics=("a", "a")),
    "too many commits": lambda client: CommitOffsetsRequest(
        "g", "", tuple(committing(TOPIC_ID, number, 1) for number in range(1_001))
    ),
    "a commit twice": lambda client: CommitOffsetsRequest(
        "g", "", (committing(TOPIC_ID, 0, 1), committing(TOPIC_ID, 0, 2))
    ),
    "too many offsets": lambda client: FetchOffsetsRequest(
        "g", (OwnedPartitions(TOPIC_ID, tuple(range(1_001))),)
    ),
    "a target twice": lambda client: ResetOffsetsRequest(
        "g", (OffsetTarget(TOPIC_ID, 0, 1), OffsetTarget(TOPIC_ID, 0, 2)), True
    ),
}


def test_requests_beyond_their_bounds_are_malformed(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            for make in MALFORMED.values():
                async with connected(ready) as client:
                    with pytest.raises(ConnectError, match="T121"):
                        await client.ask(make(client), CommitOffsetsResponse)

    run(main)


def test_a_subscription_beyond_its_bounds_is_told_as_what_it_is(tmp_path: Path) -> None:
    many = tuple(f"t{number:05}" for number in range(1_001))

    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            with pytest.raises(ConfigError, match=r"T082: consumer\(\): 1,001 topics must be at"):
                await client.ask(replace(beat(client), topics=many), HeartbeatResponse)
            with pytest.raises(InvalidName, match="T013: topic name 'aaaa"):
                await client.ask(replace(beat(client), topics=("a" * 250,)), HeartbeatResponse)
            member = Member(client, "m1")
            await member.join()
            with pytest.raises(ConfigError, match=r"T082: consumer\(\): 1,001 topics must be at"):
                await client.ask(replace(member.request(), topics=many), HeartbeatResponse)

    run(main)


def test_every_request_checks_the_name_of_the_group(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            for request in (
                replace(beat(client), group=""),
                CommitOffsetsRequest("a\0b", "", ()),
                FetchOffsetsRequest("x" * 256, None),
                ResetOffsetsRequest("", (), False),
                DeleteGroupRequest(""),
            ):
                with pytest.raises(InvalidName, match="T013"):
                    await client.ask(request, CommitOffsetsResponse)

    run(main)


def test_metadata_of_a_commit_is_at_most_4096_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", 2)
            most = replace(committing(topic_id, 0, 1), metadata="é" * 2_048)
            more = replace(committing(topic_id, 1, 1), metadata="é" * 2_049)
            request = CommitOffsetsRequest("g", "", (most, more))
            answer, _ = await client.ask(request, CommitOffsetsResponse)
            stored, refused = answer.results
            assert (stored.error, stored.offset) == (None, 1)
            assert refused.error is not None
            assert (refused.error.code, refused.offset) == (82, -1)

    run(main)
