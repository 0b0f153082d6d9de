"""A broker from start to stop, on real sockets and files."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tailrace.broker.metadata import MetadataStore
from tailrace.broker.server import Server
from tailrace.broker.system import system_world
from tailrace.broker.world import World
from tailrace.protocol import texts_storage
from tailrace.protocol.errors import BrokerError, ConfigError
from tailrace.protocol.messages import (
    DescribeClusterRequest,
    DescribeClusterResponse,
    InitProducerIdRequest,
    InitProducerIdResponse,
)
from tailrace.storage.disk import File, OsDisk
from tailrace.storage.log import Log
from tests.broker.harness import (
    NOW_MS,
    batch,
    config,
    connected,
    fetch_request,
    produce_request,
    run,
    serving,
)


def test_what_was_produced_is_there_after_a_graceful_stop(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=2)
            assert (await client.produce(topic_id, [b"a", b"b"], 1)).base_offset == 0
            [topic] = (await client.metadata("orders")).topics
            assert [one.leader_epoch for one in topic.partitions] == [1, 1]
        assert (tmp_path / "data" / "clean").exists()
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            assert not (tmp_path / "data" / "clean").exists()
            assert server.health.status == "ok"
            [topic] = (await client.metadata("orders")).topics
            assert topic.topic_id == topic_id
            assert [one.leader_epoch for one in topic.partitions] == [2, 2]
            answer, body = await client.fetch(topic_id, partition=1)
            assert answer.results[0].high_watermark == 2
            assert len(body) == answer.results[0].length > 0
            assert (await client.produce(topic_id, [b"c"], 1)).base_offset == 2

    run(main)


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            assert (await client.produce(topic_id, [b"a"])).error is None
            server.kill()
        assert not (tmp_path / "data" / "clean").exists()
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            answer, _ = await client.fetch(topic_id)
            assert answer.results[0].high_watermark == 1

    run(main)


def test_a_producer_id_is_never_given_out_twice(tmp_path: Path) -> None:
    async def main() -> None:
        given: list[int] = []
        for _ in range(2):
            async with serving(tmp_path) as (_, ready), connected(ready) as client:
                for _ in range(3):
                    request = InitProducerIdRequest(None)
                    answer, _ = await client.ask(request, InitProducerIdResponse)
                    given.append(answer.producer_id)
        assert len(set(given)) == 6
        assert given[3] >= 1_000

    run(main)


def test_requests_in_hand_are_answered_before_the_broker_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            poll = await client.send(fetch_request(topic_id, wait_ms=20_000))
            entry = batch(topic_id, [b"a"])
            produce = await client.send(produce_request(topic_id, [entry]), entry)
            other = await client.wait(poll)  # the record wakes the long poll
            assert other.body
            assert (await client.wait(produce)).message
            parked = await client.send(fetch_request(topic_id, offset=1, wait_ms=20_000))
            while "fetch" not in "".join(server.open_requests()):
                await trio.lowlevel.checkpoint()
            server.stop()
            assert len((await client.wait(parked)).body) == 0
            with pytest.raises(trio.EndOfChannel):
                await client.receive()

    run(main)
    stages = [getattr(record, "stage", None) for record in caplog.records]
    assert [stage for stage in stages if stage] == [
        "drain",
        "handover",
        "finish",
        "flush",
        "release",
    ]


def test_the_data_directory_is_ours_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            with pytest.raises(BrokerError, match="T090"):
                await Server(system_world(), config(tmp_path)).run()
        with pytest.raises(BrokerError, match="T091"):
            await Server(system_world(), config(tmp_path, {"broker.id": "n2"})).run()

    run(main)


def test_an_address_in_use_is_a_configuration_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            host, port = ready.addresses["client"]
            settings = {"listeners.client.bind": f"{host}:{port}"}
            with pytest.raises(ConfigError, match="cannot be bound"):
                await Server(system_world(), config(tmp_path / "other", dict(settings))).run()

    run(main)


class FailingSync(OsDisk):
    """Syncs fail from when it is told to."""

    failing = False
    failed = False  # one has
    only = ""  # files with this in their path, and directories where their path ends so

    def sync(self, files: Sequence[File]) -> None:
        if self.failing and any(self.only in file.path for file in files):
            self._fail()
        super().sync(files)

    def sync_directory(self, path: str) -> None:
        if self.failing and self.only and path.endswith(self.only):
            self._fail()
        super().sync_directory(path)

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        self.sync(files)
        for path in directories:
            self.sync_directory(path)

    def _fail(self) -> None:
        self.failed = True
        raise OSError(5, "planted")


class LateReplies:
    """A store whose broker hears of a changed topic by its watch first, and has met the failure."""

    def __init__(self, inner: MetadataStore, disk: FailingSync) -> None:
        self._inner = inner
        self._disk = disk

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        revision = await self._inner.txn(compare, puts, deletes, lease)
        if self._disk.failing and any(key.startswith("topics/") for key in (*puts, *deletes)):
            while not self._disk.failed:  # noqa: ASYNC110 (a thread sets it)
                await trio.sleep(0.001)
            self._disk.failing = False  # one has: whoever tried again would not hear of it
            await trio.testing.wait_all_tasks_blocked(0.05)
        return revision


def test_a_failed_sync_tells_who_waits_marks_the_directory_and_ends_the_broker(
    tmp_path: Path,
) -> None:
    disk = FailingSync()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async def main() -> None:
        async def fail() -> None:
            async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
                topics.append(await client.create("orders"))
                assert (await client.produce(topics[0], [b"a"])).error is None
                disk.failing = True
                with trio.CancelScope(shield=True):
                    result = await client.produce(topics[0], [b"b"])
                told.append(None if result.error is None else result.error.code)
                await trio.sleep_forever()

        topics: list[bytes] = []
        told: list[int | None] = []
        with pytest.raises(BaseExceptionGroup) as raised:  # the test's own nursery wraps it
            await fail()
        assert raised.group_contains(BrokerError, match="T093")
        assert told == [93]
        assert (tmp_path / "data" / "suspect").exists()
        disk.failing = False
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            assert not (tmp_path / "data" / "suspect").exists()
            answer, _ = await client.fetch(topics[0])
            assert answer.results[0].high_watermark >= 1

    run(main)


@pytest.mark.parametrize("only", ["/topics/", "/data", "/data/topics"])
def test_a_sync_that_fails_at_the_start_ends_it_until_one_succeeds(
    tmp_path: Path, only: str
) -> None:
    disk = FailingSync()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            assert (await client.produce(topic_id, [b"a"])).error is None
            server.kill()
        disk.only = f"{tmp_path}{only}" if only == "/data" else only
        disk.failing = True
        for _ in range(2):  # each time: a suspect directory is no other one
            with pytest.raises(BrokerError, match="T093"):
                await Server(change(system_world()), config(tmp_path)).run()
            assert (tmp_path / "data" / "suspect").exists()
        disk.failing = False
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            assert not (tmp_path / "data" / "suspect").exists()
            assert (await client.produce(topic_id, [b"b"])).base_offset == 1

    run(main)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("what", "only"), [("create", "/topics/"), ("delete", "/data/topics")])
def test_a_sync_that_fails_as_topics_come_and_go_is_told_and_ends_the_broker(
    tmp_path: Path, what: str, only: str, late: bool
) -> None:
    disk = FailingSync()
    disk.only = only

    def change(world: World) -> World:
        async def open_metadata(directory: str, nursery: trio.Nursery) -> MetadataStore:
            store = await world.open_metadata(directory, nursery)
            return cast("MetadataStore", LateReplies(store, disk)) if late else store

        return replace(world, disk=disk, open_metadata=open_metadata)

    async def fail() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            await client.create("orders")
            disk.failing = True
            with trio.CancelScope(shield=True), pytest.raises(BrokerError, match="T093"):
                await (client.create("more") if what == "create" else client.delete("orders"))
            told.append(what)
            await trio.sleep_forever()

    told: list[str] = []

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await fail()
        assert raised.group_contains(BrokerError, match="T093")
        assert told == [what]
        assert (tmp_path / "data" / "suspect").exists()
        disk.failing = False
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            assert not (tmp_path / "data" / "suspect").exists()
            left = {topic.name for topic in (await client.metadata()).topics}
            assert left == ({"orders", "more"} if what == "create" else set())

    run(main)


def test_housekeeping_that_meets_a_failed_sync_marks_the_directory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expire(self: Log, now_ms: int) -> int:
        raise texts_storage.sync_failed(self.path, reason="planted")

    monkeypatch.setattr(Log, "expire_producers", expire)

    async def meet() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            await client.create("orders")
            server.clean_now()
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await meet()
        assert raised.group_contains(BrokerError, match="T093")
        assert (tmp_path / "data" / "suspect").exists()

    run(main)


def test_a_missing_partition_directory_is_told_and_never_started_empty(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=2)
            await client.produce(topic_id, [b"a"], 0)
        [gone] = (tmp_path / "data" / "topics").glob("*-0")
        gone.rename(tmp_path / "elsewhere")
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            result = await client.produce(topic_id, [b"b"], 0)
            assert result.error is not None
            assert result.error.code == 33
            assert "missing" in result.error.message
            assert (await client.produce(topic_id, [b"b"], 1)).error is None
            assert server.metrics.data_loss_possible.value == 1
            assert not gone.exists()

    run(main)


def test_the_cluster_describes_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await client.create("orders", partitions=3)
            answer, _ = await client.ask(DescribeClusterRequest(), DescribeClusterResponse)
            [broker] = answer.brokers
            meta = json.loads((tmp_path / "data" / "meta.json").read_text())
            assert answer.cluster_id == ready.cluster_id == meta["cluster_id"]
            assert (answer.topics, answer.partitions, answer.offline) == (1, 3, 0)
            assert (broker.broker_id, broker.state, broker.leaders) == ("n1", "running", 3)
            assert broker.broker_epoch > 0
            assert answer.problems == ()
            assert broker.last_seen > NOW_MS

    run(main)
