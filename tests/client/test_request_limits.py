"""Whoever asks for more than one request may name asks in several: a broker refuses it (T121)."""

import math
from collections.abc import Mapping, Sequence

import pytest

from tailrace.broker import limits
from tailrace.client.commits import CommitPoint, Commits, fetch_committed
from tailrace.client.coordinator import Coordinator
from tailrace.client.membership import Assignment
from tailrace.client.offsets import list_offsets
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import RequestTimeout, TailraceError
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX, TOPICS_PER_REQUEST_MAX, pieces
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitResult,
    CommittedOffset,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    ListOffsetsRequest,
    MetadataRequest,
    Request,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_broker import FakeConnection
from tests.client.fetch_broker import FetchBroker, FetchWorld
from tests.client.world import Run, World

MOST = 3  # instead of 1,000
ID = b"t" * 16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("outlet", "offsets", "commits"):
        monkeypatch.setattr(f"tailrace.client.{module}.PARTITIONS_PER_REQUEST_MAX", MOST)
    monkeypatch.setattr("tailrace.client.cluster.TOPICS_PER_REQUEST_MAX", MOST)


class Asked(FetchBroker):
    """It counts the partitions whose offsets it is asked for, request by request."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        if isinstance(request.message, ListOffsetsRequest):
            self.asked.append(len(request.message.partitions))
        super().serve(connection, request)


def test_limits_are_those_of_the_broker() -> None:
    assert limits.PARTITIONS_PER_REQUEST_MAX == PARTITIONS_PER_REQUEST_MAX == 1_000
    assert limits.TOPICS_PER_REQUEST_MAX == TOPICS_PER_REQUEST_MAX == 1_000


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])]
)
def test_pieces_hold_everything_once_and_in_order(count: int, sizes: Sequence[int]) -> None:
    cut = list(pieces(range(count), MOST))
    assert [len(piece) for piece in cut] == sizes
    assert [item for piece in cut for item in piece] == list(range(count))


def test_batches_of_many_partitions_go_in_several_requests(run: Run, world: World) -> None:
    topics = [world.broker.create(name, 4) for name in ("a", "b")]

    async def main() -> None:
        async with world.client() as client, client.producer() as producer:
            for topic in topics:
                await producer.send(topic.name, b"", partition=0)
            deliveries = [
                producer.enqueue_nowait(topic.name, b"", partition=number)
                for topic in topics
                for number in range(4)
            ]
            for delivery in deliveries:
                await delivery

    run(main)
    sizes = [len(request.partitions) for request in world.broker.produced]
    assert max(sizes) == MOST
    assert sum(sizes) == 2 + 8


def test_offsets_of_many_partitions_are_asked_for_in_several_requests(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Asked()
    here = FetchWorld(monkeypatch, broker)
    broker.append(broker.create("orders", 7), [b"0"], 5)

    async def main() -> None:
        async with here.client() as client:
            partitions = [TopicPartition("orders", number) for number in range(7)]
            found = await list_offsets(client, partitions, "latest")
            assert found == {at: int(at.partition == 5) for at in partitions}

    run(main)
    assert broker.asked == [3, 3, 1]


def test_topics_are_asked_for_again_in_several_requests(run: Run, world: World) -> None:
    names = [f"t{number}" for number in range(7)]
    for name in names:
        world.broker.create(name)

    async def main() -> None:
        async with world.client() as client:
            for name in names:
                await client.cluster.topic(name)
            world.broker.requests.clear()
            await client.cluster.refresh(timeout=1.0)
            asked = [one.message for one in world.broker.requests]
            assert [len(one.topics or ()) for one in asked if isinstance(one, MetadataRequest)] == [
                3,
                3,
                1,
            ]

    run(main)


class Counting(Coordinator):
    """It stores what it is sent, and knows 7 of every partition."""

    def __init__(self, world: World, failures: Mapping[int, TailraceError] | None = None) -> None:
        super().__init__(world.client(), "g")
        self.asked: list[int] = []  # partitions, request by request
        self._failures = failures or {}  # by request

    async def request(self, message: Request, *, timeout: float) -> Response:
        if isinstance(message, CommitOffsetsRequest):
            self.asked.append(len(message.partitions))
            if (failure := self._failures.get(len(self.asked))) is not None:
                raise failure
            return CommitOffsetsResponse(
                tuple(
                    CommitResult(one.topic_id, one.partition, None, one.offset)
                    for one in message.partitions
                )
            )
        assert isinstance(message, FetchOffsetsRequest)
        asked = message.partitions or ()
        places = [(one.topic_id, number) for one in asked for number in one.partitions]
        self.asked.append(len(places))
        return FetchOffsetsResponse(
            tuple(CommittedOffset(*place, 7, 1, 2, 3, 4, "") for place in places)
        )


def points() -> dict[Assignment, CommitPoint]:
    return {
        Assignment("orders", ID, number, 1, added_later=False): CommitPoint(number)
        for number in range(7)
    }


def test_commit_of_many_partitions_goes_in_several_requests(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Counting(world)
        commits = Commits(world.client(), coordinator, "m1")
        outcome = await commits.store(points(), timeout=math.inf)
        assert outcome.stored == {one: one.partition for one in points()}
        assert coordinator.asked == [3, 3, 1]

    run(main)


def test_commit_that_is_refused_in_the_middle_stores_the_rest(run: Run, world: World) -> None:
    async def main() -> None:
        refused = {2: texts_group.group_fenced("g", "m1", reason="it is over")}
        commits = Commits(world.client(), Counting(world, refused), "m1")
        outcome = await commits.store(points(), timeout=math.inf)
        assert [one.partition for one in outcome.stored] == [0, 1, 2, 6]
        assert [one.partition for one in outcome.refused] == [3, 4, 5]
        assert "it is over" in outcome.reason

    run(main)


def test_commit_that_ends_in_the_middle_sends_only_the_rest_again(run: Run, world: World) -> None:
    async def main() -> None:
        late = texts_client.request_timeout("commit offsets", address="n1", waited_s=1.0)
        coordinator = Counting(world, {2: late})
        commits = Commits(world.client(), coordinator, "m1")
        with pytest.raises(RequestTimeout):
            await commits.store(points(), timeout=math.inf)
        await commits.store(points(), timeout=math.inf)
        assert coordinator.asked == [3, 3, 3, 1]

    run(main)


def test_commits_of_many_partitions_are_read_in_several_requests(run: Run, world: World) -> None:
    async def main() -> None:
        coordinator = Counting(world)
        places = {TopicPartition("orders", number): ID for number in range(7)}
        found = await fetch_committed(coordinator, places, timeout=1.0)
        assert list(found) == list(places)
        assert all(one is not None and one.offset == 7 for one in found.values())
        assert coordinator.asked == [3, 3, 1]

    run(main)
