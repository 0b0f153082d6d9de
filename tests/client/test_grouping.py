"""Groups through ``client.admin``, against a real broker."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import tailrace
from tailrace.client.admin import Admin
from tailrace.client.coordinator import Coordinator
from tailrace.client.grouping import To
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import (
    ConfigError,
    GroupNotFound,
    OffsetOutOfRange,
    PartitionNotFound,
    TailraceError,
    TopicNotFound,
)
from tailrace.protocol.messages import DeleteGroupRequest, FindCoordinatorResponse
from tailrace.protocol.messages_group import (
    CommitOffsetsRequest,
    CommitPartition,
    FindCoordinatorRequest,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.texts import not_leader
from tailrace.protocol.texts_group import group_not_found
from tailrace.testing import Broker
from tests.client.fake_broker import FakeConnection
from tests.client.fetch_broker import FetchBroker, FetchWorld
from tests.client.world import Run


async def committed(
    client: tailrace.Client, group: str, topic: str, offsets: dict[int, int]
) -> None:
    """Commit from outside the group."""
    metadata = await client.cluster.topic(topic)
    parts = tuple(
        CommitPartition(metadata.topic_id, number, offset, -1, -1, -1, -1, "by hand")
        for number, offset in offsets.items()
    )
    await Coordinator(client, group).request(CommitOffsetsRequest(group, "", parts), timeout=5.0)


async def offsets(admin: Admin, group: str) -> list[int | None]:
    return [one.committed for one in (await admin.group_lag(group)).partition_list]


def test_group_is_listed_described_and_its_lag_told(run: Run, broker: Broker) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.create_topic(topic, partitions=2)
    broker.seed(topic, [b"x"] * 10)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            ends = [p.log_end for p in (await client.admin.describe_topic(topic)).partition_list]
            await committed(client, group, topic, {0: ends[0]})
            (info,) = [one for one in await client.admin.list_groups() if one.name == group]
            assert (info.state, info.members, info.topics) == ("empty", 0, [topic])
            assert (info.lag_records, info.verdict, info.coordinator) == (ends[1], "ok", "n1")
            detail = await client.admin.describe_group(group)
            assert (detail.name, detail.member_list) == (group, [])
            one, other = detail.partition_list
            assert (one.committed, one.lag_records, one.metadata) == (ends[0], 0, "by hand")
            assert (one.lag_seconds, one.margin_seconds, one.member_id) == (0.0, None, None)
            assert (other.committed, other.lag_records) == (None, ends[1])
            lag = await client.admin.group_lag(group)
            assert (lag.group, lag.lag_records, lag.verdict) == (group, ends[1], "ok")
            assert (await client.admin.describe_topic(topic)).groups == [group]

    run(main)


def test_reset_goes_where_it_is_told(run: Run, broker: Broker) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.seed(topic, [b"x"] * 10)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            await committed(client, group, topic, {0: 4})
            admin = client.admin

            async def moved(to: To) -> tuple[int | None, int, int]:
                (change,) = await admin.reset_group(group, to=to)
                assert await offsets(admin, group) == [change.after]
                return change.before, change.after, change.records

            assert await moved("latest") == (4, 10, -6)
            assert await moved("earliest") == (10, 0, 10)
            assert await moved(7) == (0, 7, -7)
            assert await moved({at(topic): 3}) == (7, 3, 4)
            assert await moved(timedelta(hours=1)) == (3, 0, 3)
            assert await moved(datetime.now(UTC) + timedelta(hours=1)) == (0, 10, -10)
            assert await moved(timedelta()) == (10, 10, 0)
            (change,) = await admin.reset_group(group, to="earliest", dry_run=True)
            assert (change.before, change.after, change.records) == (10, 0, 10)
            assert await offsets(admin, group) == [10]

    run(main)


def test_reset_is_about_all_partitions_or_those_named(run: Run, broker: Broker) -> None:
    topic, other, group = broker.name("orders"), broker.name("other"), broker.name("billing")
    broker.create_topic(topic, partitions=3)
    broker.create_topic(other)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            await committed(client, group, topic, {0: 0, 1: 0})
            admin = client.admin

            async def places(**about: Any) -> list[tuple[str, int]]:
                changes = await admin.reset_group(group, to="latest", dry_run=True, **about)
                return [(change.topic, change.partition) for change in changes]

            assert await places() == [(topic, 0), (topic, 1), (topic, 2)]
            assert await places(topics=[other]) == [(other, 0)]
            assert await places(partitions=[TopicPartition(topic, 2)]) == [(topic, 2)]

    run(main)


def at(topic: str, number: int = 0) -> TopicPartition:
    return TopicPartition(topic, number)


REFUSED: list[tuple[Callable[[str], dict[str, Any]], type[Exception]]] = [
    (lambda topic: {"to": 5}, ConfigError),
    (lambda topic: {"to": -1, "partitions": [at(topic)]}, ConfigError),
    (lambda topic: {"to": True, "partitions": [at(topic)]}, ConfigError),
    (lambda topic: {"to": 99, "partitions": [at(topic)]}, OffsetOutOfRange),
    (lambda topic: {"to": "middle"}, ConfigError),
    (lambda topic: {"to": datetime(2026, 1, 1)}, ConfigError),
    (lambda topic: {"to": timedelta(seconds=-1)}, ConfigError),
    (lambda topic: {"to": {at(topic): 1}, "topics": [topic]}, ConfigError),
    (lambda topic: {"to": {at(topic): "end"}}, ConfigError),
    (lambda topic: {"to": {at(topic, 9): 1}}, PartitionNotFound),
    (
        lambda topic: {"to": "latest", "topics": [topic], "partitions": [at(topic)]},
        ConfigError,
    ),
    (lambda topic: {"to": "latest", "topics": [f"{topic}x"]}, TopicNotFound),
]


@pytest.mark.parametrize(("arguments", "error"), REFUSED)
def test_reset_that_cannot_be_is_refused_and_changes_nothing(
    run: Run, broker: Broker, arguments: Callable[[str], dict[str, Any]], error: type[Exception]
) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.create_topic(topic, partitions=2)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            await committed(client, group, topic, {0: 0})
            with pytest.raises(error):
                await client.admin.reset_group(group, **arguments(topic))
            assert await offsets(client.admin, group) == [0, None]

    run(main)


def test_group_is_deleted_and_missing_ones_are_told_of(run: Run, broker: Broker) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.create_topic(topic)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            await committed(client, group, topic, {0: 0})
            with pytest.raises(GroupNotFound, match=r"T043: .* Similar: ") as caught:
                await client.admin.describe_group(f"{group}x")
            assert group in caught.value.similar
            await client.admin.delete_group(group)
            with pytest.raises(GroupNotFound):
                await client.admin.group_lag(group)
            with pytest.raises(GroupNotFound):
                await client.admin.delete_group(group)
            with pytest.raises(GroupNotFound):
                await client.admin.reset_group(group, to="earliest")
            await client.admin.delete_group(group, missing_ok=True)

    run(main)


def test_the_same_without_an_event_loop(broker: Broker) -> None:
    topic, group = broker.name("orders"), broker.name("billing")
    broker.seed(topic, [b"x"] * 3)
    with broker.client() as client:
        with client.consumer(topic, group=group, stop_at_end=True) as consumer:
            assert len(list(consumer)) == 3
        assert client.admin.group_lag(group).lag_records == 0
        (change,) = client.admin.reset_group(group, to="earliest")
        assert change.records == 3
        assert client.admin.describe_group(group).lag_records == 3
        assert group in [one.name for one in client.admin.list_groups()]
        client.admin.delete_group(group)
        client.admin.delete_group(group, missing_ok=True)


class StrayBroker(FetchBroker):
    """Sends whoever asks about a group away first, to itself; then loses an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        self.asked.append(type(message).__name__.removesuffix("Request"))
        if isinstance(message, FindCoordinatorRequest):
            connection.respond(request, FindCoordinatorResponse(self.broker_id, 0))
        elif isinstance(message, DeleteGroupRequest):
            match self.asked.count("DeleteGroup"):
                case 1:
                    error: TailraceError = not_leader("__offsets", 3, broker=self.broker_id)
                    connection.put(connection.protocol.refuse(request, error))
                case 2:
                    connection.break_off()
                case _:
                    error = group_not_found(message.group)
                    connection.put(connection.protocol.refuse(request, error))
        else:
            super().serve(connection, request)


def test_coordinator_is_looked_for_and_a_lost_answer_counts_as_done(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = FetchWorld(monkeypatch, broker := StrayBroker())

    async def main() -> None:
        async with here.client() as client:
            await client.admin.delete_group("billing")
            about = [one for one in broker.asked if one in ("DeleteGroup", "FindCoordinator")]
            assert about == ["DeleteGroup", "FindCoordinator", "DeleteGroup", "DeleteGroup"]
            with pytest.raises(GroupNotFound):
                await client.admin.delete_group("billing")

    run(main)
