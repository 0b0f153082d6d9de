"""Topics and cluster, against a real broker; and what happens when an answer is lost."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

import tailrace
from tailrace.client.offsets import list_offsets
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import (
    ConfigError,
    InvalidName,
    PartitionOffline,
    RequestTimeout,
    TopicExists,
    TopicNotFound,
)
from tailrace.protocol.messages_admin import (
    CreateTopicRequest,
    DeleteTopicRequest,
    DeleteTopicResponse,
    TopicDescription,
    TopicResponse,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.texts import files_left, topic_exists, topic_not_found
from tailrace.testing import Broker
from tests.client.fake_broker import FakeConnection
from tests.client.fetch_broker import FetchBroker, FetchWorld
from tests.client.world import Run


def test_topic_is_created_described_altered_listed_and_deleted(run: Run, broker: Broker) -> None:
    name = broker.name("orders")

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            admin = client.admin
            assert admin is client.admin
            made = await admin.create_topic(name, partitions=3, config={"retention": "1d"})
            assert (made.name, made.partitions, made.internal) == (name, 3, False)
            assert (made.records, made.size_bytes, made.offline) == (0, 0, 0)
            assert [p.partition for p in made.partition_list] == [0, 1, 2]
            assert made.partition_list[0].key_range[0] == "0" * 16
            assert made.partition_list[2].key_range[1] == "f" * 16
            assert {p.status for p in made.partition_list} == {"ok"}
            settings = {entry.key: entry for entry in made.config}
            assert (settings["retention"].value, settings["retention"].source) == ("1d", "topic")
            assert await admin.describe_topic(name) == made
            async with client.producer() as producer:
                await producer.send_many(name, [b"a", b"b"])
            altered = await admin.alter_topic(
                name, config={"retention": 7_200, "max_record": 2 << 20}
            )
            settings = {entry.key: entry for entry in altered.config}
            assert (settings["retention"].value, settings["max_record"].value) == ("2h", "2MiB")
            back = await admin.alter_topic(name, config={"retention": None})
            assert {e.key: e.source for e in back.config}["retention"] == "default"
            (listed,) = [topic for topic in await admin.list_topics() if topic.name == name]
            assert (listed.records, listed.topic_id) == (2, made.topic_id)
            await admin.delete_topic(name)
            with pytest.raises(TopicNotFound, match="T010"):
                await admin.delete_topic(name)
            await admin.delete_topic(name, missing_ok=True)
            with pytest.raises(TopicNotFound):
                await admin.describe_topic(name)
            again = await admin.create_topic(name)
            assert again.topic_id != made.topic_id

    run(main)


def test_existing_topic_is_fine_unless_a_given_value_differs(run: Run, broker: Broker) -> None:
    name = broker.name("orders")

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            made = await client.admin.create_topic(name, partitions=2)
            with pytest.raises(TopicExists, match="T012"):
                await client.admin.create_topic(name)
            same = await client.admin.create_topic(name, partitions=2, exist_ok=True)
            assert same.topic_id == made.topic_id
            assert (await client.admin.create_topic(name, exist_ok=True)).partitions == 2
            with pytest.raises(TopicExists, match="partitions"):
                await client.admin.create_topic(name, partitions=3, exist_ok=True)

    run(main)


def test_what_the_broker_refuses_is_raised(run: Run, broker: Broker) -> None:
    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            with pytest.raises(InvalidName, match="T013"):
                await client.admin.create_topic("no/slash")
            with pytest.raises(ConfigError, match="T080"):
                await client.admin.create_topic("fine", config={"retentoin": "1d"})
            with pytest.raises(ConfigError, match="T082"):
                await client.admin.create_topic("fine", config={"retention": "soon"})
            with pytest.raises(ConfigError, match="T082"):
                await client.admin.create_topic("fine", config={"retention": math.inf})
            not_text: Any = ["compact", "delete"]
            with pytest.raises(ConfigError, match=r"T082: .*cleanup=.* must be text or a number"):
                await client.admin.create_topic("fine", config={"cleanup": not_text})

    run(main)


def test_cluster_is_described(run: Run, broker: Broker) -> None:
    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            cluster = await client.admin.describe_cluster()
            assert (cluster.cluster_id, cluster.healthy) == (client.cluster_id, True)
            (only,) = cluster.brokers
            assert (only.state, only.version) == ("running", tailrace.__version__)

    run(main)


def test_offsets_by_time(run: Run, broker: Broker) -> None:
    topic = broker.name("orders")
    broker.seed(topic, [b"a", b"b"], partitions=2)
    both = [TopicPartition(topic, 0), TopicPartition(topic, 1)]

    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            starts = await list_offsets(client, both, "earliest")
            ends = await list_offsets(client, both, "latest")
            assert sorted(starts) == both
            assert sum(ends.values()) - sum(starts.values()) == 2
            assert await list_offsets(client, both, 0) == starts
            assert await list_offsets(client, both, datetime.now(UTC)) == ends
            with pytest.raises(ConfigError, match="with a time zone"):
                await list_offsets(client, both, datetime(2026, 1, 1))

    run(main)


class LosesAnswers(FetchBroker):
    """Carries out changes of topics, but the first answer never arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        if isinstance(message, CreateTopicRequest | DeleteTopicRequest):
            there = message.name in self.topics
            if isinstance(message, CreateTopicRequest):
                if there and not message.exist_ok:
                    refusal = connection.protocol.refuse(request, topic_exists(message.name))
                    connection.put(refusal)
                    return
                topic = self.topics.get(message.name) or self.create(message.name)
                about = TopicDescription(
                    message.name, topic.topic_id, False, 1, 1, "delete", "fsync", (), (), ()
                )
                if self._loses(connection):
                    return
                connection.respond(request, TopicResponse(about))
            elif not there:
                connection.put(connection.protocol.refuse(request, topic_not_found(message.name)))
            else:
                topic = self.topics.pop(message.name)
                if not self._loses(connection):
                    connection.respond(request, DeleteTopicResponse(topic.topic_id))
        else:
            super().serve(connection, request)

    def _loses(self, connection: FakeConnection) -> bool:
        self.left -= 1
        if self.left >= 0:
            connection.break_off()
        return self.left >= 0


def test_topic_made_by_a_try_whose_answer_was_lost_counts_as_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = FetchWorld(monkeypatch, LosesAnswers())

    async def main() -> None:
        async with here.client() as client:
            assert (await client.admin.create_topic("orders")).name == "orders"
            with pytest.raises(TopicExists):
                await client.admin.create_topic("orders")

    run(main)


def test_topic_deleted_by_a_try_whose_answer_was_lost_counts_as_deleted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = FetchWorld(monkeypatch, LosesAnswers())
    here.fetch.create("orders")

    async def main() -> None:
        async with here.client() as client:
            await client.admin.delete_topic("orders")
            with pytest.raises(TopicNotFound):
                await client.admin.delete_topic("orders")

    run(main)


class KeepsFiles(FetchBroker):
    """Deletes topics, but not all of their files."""

    def serve(self, connection: FakeConnection, request: Incoming) -> None:
        message = request.message
        if not isinstance(message, DeleteTopicRequest):
            super().serve(connection, request)
        elif self.topics.pop(message.name, None) is None:
            connection.put(connection.protocol.refuse(request, topic_not_found(message.name)))
        else:
            stuck = files_left(message.name, 0, reason="No space left on device")
            connection.put(connection.protocol.refuse(request, stuck))


def test_topic_deleted_of_which_files_are_left_is_told_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = FetchWorld(monkeypatch, KeepsFiles())
    here.fetch.create("orders")

    async def main() -> None:
        async with here.client() as client:
            with pytest.raises(PartitionOffline, match="no longer kept here, but files"):
                await client.admin.delete_topic("orders", missing_ok=True)

    run(main)


def test_call_during_an_outage_ends_after_request_timeout(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = FetchWorld(monkeypatch)

    async def main() -> None:
        async with here.client(request_timeout=0.05) as client:
            here.fetch.refusing = ConnectionRefusedError()
            here.fetch.disconnect()
            with pytest.raises(RequestTimeout, match="T034"):
                await client.admin.list_topics()

    run(main)
