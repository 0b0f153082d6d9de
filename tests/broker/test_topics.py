"""Topics: created, altered, deleted, and every way to be refused."""

import errno
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tailrace.broker.catalog import Deletion, Topic
from tailrace.broker.metadata import Entry, MetadataStore
from tailrace.broker.world import World
from tailrace.protocol import texts
from tailrace.protocol.errors import (
    ConfigError,
    ConnectError,
    InvalidName,
    MetadataUnavailable,
    StorageFull,
    TopicExists,
    TopicNotFound,
)
from tailrace.protocol.messages import (
    AlterTopicRequest,
    ConfigChange,
    ConfigItem,
    CreateTopicRequest,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    MetadataRequest,
    MetadataResponse,
    TopicDescription,
    TopicResponse,
)
from tailrace.storage.disk import File, OsDisk, OsFile
from tailrace.storage.opening import Unopened
from tests.broker.harness import Client, connected, run, serving


async def create(
    client: Client,
    name: str,
    partitions: int | None = None,
    replicas: int | None = None,
    exist_ok: bool = False,
    **settings: str,
) -> TopicDescription:
    items = tuple(ConfigItem(key, value) for key, value in settings.items())
    request = CreateTopicRequest(name, partitions, replicas, items, exist_ok)
    return (await client.ask(request, TopicResponse))[0].topic


async def alter(client: Client, name: str, **settings: str | None) -> TopicDescription:
    changes = tuple(ConfigChange(key, value) for key, value in settings.items())
    return (await client.ask(AlterTopicRequest(name, changes), TopicResponse))[0].topic


def setting(topic: TopicDescription, key: str) -> tuple[str, str]:
    [entry] = [entry for entry in topic.config if entry.key == key]
    return entry.value, entry.source


def test_a_topic_is_created_with_its_settings_and_described(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic = await create(client, "orders", partitions=3, retention="1h", max_record="2MiB")
            assert (topic.name, len(topic.topic_id), len(topic.partitions)) == ("orders", 16, 3)
            assert setting(topic, "retention") == ("1h", "topic")
            assert setting(topic, "durability") == ("fsync", "default")
            assert (topic.replicas, topic.min_isr) == (1, 1)
            assert [one.status for one in topic.partitions] == ["ok"] * 3
            assert [one.leader for one in topic.partitions] == ["n1"] * 3
            request = DescribeTopicsRequest(("orders",), False)
            [again] = (await client.ask(request, DescribeTopicsResponse))[0].topics
            assert again == topic
            [known] = (await client.metadata()).topics
            assert (known.name, known.record_bytes_max, known.created) == ("orders", 2 << 20, False)

    run(main)


REFUSED: dict[str, tuple[type[Exception], str, dict[str, object]]] = {
    "slash": (InvalidName, "T013", {"name": "a/b"}),
    "reserved": (InvalidName, "T013", {"name": "__mine"}),
    "twin": (InvalidName, "T013", {"name": "ORDERS"}),
    "taken": (TopicExists, "T012", {"name": "orders"}),
    "unknown key": (ConfigError, "T080", {"name": "a", "retentoin": "1h"}),
    "bad value": (ConfigError, "T082", {"name": "a", "retention": "soon"}),
    "min_isr": (ConfigError, "T081", {"name": "a", "min_isr": "2"}),
    "alone": (ConfigError, "T083", {"name": "a", "durability": "replicated"}),
    "replicas": (ConfigError, "T082", {"name": "a", "replicas": 3}),
    "no partition": (ConfigError, "T082", {"name": "a", "partitions": 0}),
    "many partitions": (ConfigError, "T082", {"name": "a", "partitions": 11}),
    "record": (ConfigError, "T082", {"name": "a", "max_record": "16MiB"}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_topic_is_refused(tmp_path: Path, why: str) -> None:
    kind, code, how = REFUSED[why]

    async def main() -> None:
        limits: dict[str, str | int | float | bool] = {"limits.partitions_per_topic": 10}
        async with serving(tmp_path, limits) as (_, ready), connected(ready) as client:
            await create(client, "orders")
            with pytest.raises(kind, match=code):
                await create(client, **how)  # type: ignore[arg-type]
            assert [topic.name for topic in (await client.metadata()).topics] == ["orders"]

    run(main)


def test_the_broker_has_room_for_so_many_partitions(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path, {"limits.partitions_per_broker": 5}) as (_, ready),
            connected(ready) as client,
        ):
            await create(client, "a", partitions=3)
            with pytest.raises(ConfigError, match="partitions_per_broker"):
                await create(client, "b", partitions=3)
            await create(client, "b", partitions=2)

    run(main)


def test_exist_ok_returns_the_topic_unless_a_given_value_differs(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            first = await create(client, "orders", partitions=2, retention="60m")
            assert await create(client, "orders", exist_ok=True) == first
            same = await create(client, "orders", 2, exist_ok=True, retention="1h")
            assert same.topic_id == first.topic_id
            with pytest.raises(TopicExists, match="partitions is 2, not 3"):
                await create(client, "orders", 3, exist_ok=True)
            with pytest.raises(TopicExists, match="retention is 1h, not 2h"):
                await create(client, "orders", exist_ok=True, retention="2h")

    run(main)


def test_settings_change_all_or_none_and_survive_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await create(client, "orders", retention="1h")
            topic = await alter(client, "orders", retention=None, segment_size="64KiB")
            assert setting(topic, "retention") == ("7d", "default")
            assert setting(topic, "segment_size") == ("64KiB", "topic")
            with pytest.raises(ConfigError, match="T082"):
                await alter(client, "orders", retention="2h", segment_size="tiny")
            with pytest.raises(ConfigError, match="T080"):
                await alter(client, "orders", partitions="3")
            with pytest.raises(TopicNotFound, match="T010"):
                await alter(client, "order", retention="2h")
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            request = DescribeTopicsRequest(None, False)
            [topic] = (await client.ask(request, DescribeTopicsResponse))[0].topics
            assert setting(topic, "segment_size") == ("64KiB", "topic")
            assert setting(topic, "retention") == ("7d", "default")

    run(main)


def test_a_deleted_name_can_be_used_at_once_for_another_topic(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            first = (await create(client, "orders", partitions=2)).topic_id
            await client.produce(first, [b"a"])
            assert await client.delete("orders") == first
            with pytest.raises(TopicNotFound):
                await client.delete("orders")
            second = (await create(client, "Orders")).topic_id
            assert second != first
            assert (await client.produce(second, [b"b"])).base_offset == 0
            old = await client.produce(first, [b"c"])
            assert old.error is not None
            assert old.error.code == 10
            names = [path.name for path in (tmp_path / "data" / "topics").iterdir()]
            assert names == [f"{second.hex()}-0"]
            assert ("orders",) not in server.metrics.topic_bytes_in.series

    run(main)


def test_a_deletion_that_a_crash_stopped_is_finished_by_the_next_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await create(client, "gone")
            kept = (await create(client, "kept")).topic_id
        database = sqlite3.connect(tmp_path / "data" / "metadata.sqlite")
        [(value,)] = database.execute("SELECT value FROM entries WHERE key = 'topics/gone'")
        gone = Topic.from_json(value, 1)
        deletion = Deletion(gone.topic_id, "gone", 1, ("n1",))
        database.execute("DELETE FROM entries WHERE key = 'topics/gone'")
        database.execute(
            "INSERT INTO entries VALUES (?, ?, 99, NULL)", (deletion.key, deletion.to_json())
        )
        database.commit()
        database.close()
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            assert [topic.name for topic in (await client.metadata()).topics] == ["kept"]
            names = [path.name for path in (tmp_path / "data" / "topics").iterdir()]
            assert names == [f"{kept.hex()}-0"]
        database = sqlite3.connect(tmp_path / "data" / "metadata.sqlite")
        rows = database.execute("SELECT key FROM entries ORDER BY key").fetchall()
        database.close()
        assert [key for (key,) in rows] == [
            "cluster",
            "format",
            f"partitions/{kept.hex()}/0",
            "topics/kept",
        ]

    run(main)


def test_a_directory_the_store_does_not_know_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            pass
        stranger = tmp_path / "data" / "topics" / f"{'ab' * 16}-0"
        stranger.mkdir()
        async with serving(tmp_path):
            pass
        assert stranger.exists()

    run(main)
    assert "belongs to no topic" in caplog.text


def test_only_a_producer_creates_a_topic_by_asking_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path, {"broker.auto_create": True}) as (_, ready),
            connected(ready) as client,
        ):
            [missing] = (await client.metadata("orders")).topics
            assert missing.error is not None
            assert missing.error.code == 10
            made, bad = (await client.metadata("orders", "a/b", auto_create=True)).topics
            assert (made.created, made.error, len(made.partitions)) == (True, None, 1)
            assert bad.error is not None
            assert bad.error.code == 13
            [again] = (await client.metadata("orders", auto_create=True)).topics
            assert (again.created, again.topic_id) == (False, made.topic_id)

    run(main)


def test_without_auto_create_a_producer_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await create(client, "orders")
            [missing] = (await client.metadata("order", auto_create=True)).topics
            assert missing.error is not None
            assert "auto-create is off" in missing.error.message
            assert missing.error.details["similar"] == ["orders"]

    run(main)


def test_a_topic_is_named_once_in_a_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            for request in (
                MetadataRequest(("orders", "orders"), False),
                DescribeTopicsRequest(("orders", "orders"), False),
            ):
                async with connected(ready) as client:
                    with pytest.raises(ConnectError, match="T121"):
                        await client.ask(request, MetadataResponse)

    run(main)


def test_only_the_first_of_many_missing_topics_get_similar_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await create(client, "orders")
            missing = (await client.metadata(*(f"order-{n}" for n in range(100)))).topics
            told = [one.error.details["similar"] for one in missing if one.error is not None]
            assert told == [["orders"]] * 10 + [[]] * 90

    run(main)


def test_many_who_create_the_same_topic_get_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            ids: set[bytes] = set()

            async def ask() -> None:
                async with connected(ready) as client:
                    ids.add((await create(client, "orders", exist_ok=True)).topic_id)

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(ask)
            assert len(ids) == 1

    run(main)


def test_a_large_topic_takes_several_transactions(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic = await create(client, "wide", partitions=230, segment_size="4KiB")
            assert {one.leader_epoch for one in topic.partitions} == {1}
            await client.delete("wide")
        database = sqlite3.connect(tmp_path / "data" / "metadata.sqlite")
        rows = database.execute("SELECT key FROM entries ORDER BY key").fetchall()
        database.close()
        assert [key for (key,) in rows] == ["cluster", "format"]

    run(main)


class LosesReplies:
    """A store that applies a transaction and then fails, for some keys."""

    def __init__(self, inner: MetadataStore) -> None:
        self._inner = inner
        self.lose: list[str] = []
        self.fail_all = False

    async def get(self, key: str) -> Entry | None:
        self._check()
        return await self._inner.get(key)

    async def list(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        self._check()
        return await self._inner.list(prefix, since)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def txn(self, *args: object, **kwargs: object) -> int | None:
        self._check()
        revision = await self._inner.txn(*args, **kwargs)  # type: ignore[arg-type]
        touched = json.dumps([str(arg) for arg in args])
        for prefix in self.lose:
            if prefix in touched:
                self.lose.remove(prefix)
                raise texts.metadata_failed("here", reason="planted")
        return revision

    def _check(self) -> None:
        if self.fail_all:  # reads, too: one that comes through says that the store is back
            raise texts.metadata_failed("here", reason="planted")


def test_a_lost_reply_of_the_store_is_no_failure(tmp_path: Path) -> None:
    stores: list[LosesReplies] = []

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: losing(world, stores)) as (_, ready),
            connected(ready) as client,
        ):
            stores[0].lose = ["topics/", "partitions/"]
            topic = await create(client, "orders")
            assert stores[0].lose == []
            stores[0].lose = ["topics/"]
            assert await client.delete("orders") == topic.topic_id

    run(main)


def test_a_change_that_failed_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.registry.RETRY_FIRST_S", 0.0001)
    stores: list[LosesReplies] = []

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: losing(world, stores)) as (server, ready),
            connected(ready) as client,
        ):
            await create(client, "orders")
            stores[0].fail_all = True
            with pytest.raises(MetadataUnavailable, match="T100"):
                await create(client, "more")
            assert server.health.metadata_error
            with pytest.raises(MetadataUnavailable, match="T100"):
                await client.delete("orders")
            stores[0].fail_all = False
            await create(client, "more")
            assert [one.name for one in (await client.metadata()).topics] == ["more", "orders"]
            await client.delete("orders")

    run(main)


def losing(world: World, stores: list[LosesReplies]) -> World:
    async def open_metadata(directory: str, nursery: trio.Nursery) -> MetadataStore:
        stores.append(LosesReplies(await world.open_metadata(directory, nursery)))
        return stores[-1]  # type: ignore[return-value]

    return replace(world, open_metadata=open_metadata)


class NoRoom(OsDisk):
    full = ""  # what cannot be created: a part of its path

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if self.full and create and self.full in path:
            raise OSError(errno.ENOSPC, "planted")
        return super().open(path, create=create)


@pytest.mark.parametrize("full", ["/topics/", "/epochs"])
def test_a_topic_there_is_no_room_for_does_not_come_to_be(tmp_path: Path, full: str) -> None:
    disk = NoRoom()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready),
            connected(ready) as client,
        ):
            disk.full = full
            with pytest.raises(StorageFull, match="T031"):
                await create(client, "orders", partitions=2)
            assert (await client.metadata()).topics == ()
            disk.full = ""
            await create(client, "orders")

    run(main)


def test_what_a_failed_change_left_is_opened_as_if_a_sync_had_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.registry.RETRY_FIRST_S", 0.0001)
    stores: list[LosesReplies] = []
    opened: list[tuple[str, bool]] = []

    class NoSync(OsDisk):
        full = True

        def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
            if self.full and files:
                stores[0].fail_all = True  # nor can the topic be taken back
                raise OSError(errno.ENOSPC, "planted")
            super().sync_together(files, directories)

    class Watched(Unopened):
        def __init__(self, *given: Any, suspect: bool, topic: str, **more: Any) -> None:
            opened.append((topic, suspect))
            super().__init__(*given, suspect=suspect, topic=topic, **more)

    disk = NoSync()

    def change(world: World) -> World:
        return losing(replace(world, disk=disk), stores)

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            with pytest.raises(MetadataUnavailable, match="T100"):
                await create(client, "orders")
            monkeypatch.setattr("tailrace.broker.shelf.Unopened", Watched)
            disk.full = stores[0].fail_all = False
            await create(client, "more")
            assert set(opened) == {("orders", True), ("more", False)}
            found = {one.name: one for one in (await client.metadata()).topics}
            assert (await client.produce(found["orders"].topic_id, [b"a"])).error is None

    run(main)
