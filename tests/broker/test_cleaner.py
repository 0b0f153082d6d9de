"""Compaction on a real broker: what stays, what is shown, what happens when it cannot be done."""

import errno
from pathlib import Path

import pytest
import trio

from tailrace.broker import cleaner as cleaner_module
from tailrace.broker.server import Server
from tailrace.broker.world import WorkerLost
from tailrace.protocol.errors import TopicNotFound
from tailrace.protocol.messages import (
    AlterTopicRequest,
    ConfigChange,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    TopicResponse,
)
from tailrace.storage.jobs import Job
from tailrace.storage.survey import SurveyJob
from tailrace.testing import Broker
from tests.broker.compacting import EAGER, SLOW, Place, fill, read, runs, status
from tests.broker.harness import run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_only_the_newest_of_each_key_is_served_and_that_outlives_a_restart(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            newest = await fill(client, topic_id)
            await server.clean()
            assert await read(client, topic_id) == newest
            shown = status(server)
            assert (shown.state, shown.clean_offset, shown.dirty_bytes) == ("idle", 12, 0)
            assert runs(server, "ok") >= 1
            ratios = server.metrics.compaction_dirty_ratio.read
            assert ratios is not None
            assert ratios() == {("orders",): 0.0}
        async with place.broker() as (server, client):
            assert await read(client, topic_id) == newest
            await server.clean()
            assert place.heavy.jobs == [], "it is remembered that all is clean"
            assert status(server).last_run_at == shown.last_run_at

    run(main)


def test_what_is_shown_comes_with_the_topic(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", cleanup="compact")
            await client.create("plain")
            await fill(client, topic_id, batches=3)
            await server.clean()
            asked = DescribeTopicsRequest(("orders", "plain"), False)
            answer, _ = await client.ask(asked, DescribeTopicsResponse)
            orders, plain = (topic.partitions[0].compaction for topic in answer.topics)
            assert plain is None
            assert orders is not None
            assert (orders.state, orders.dirty_bytes, orders.last_run_at) == ("idle", 0, None)
            assert orders.reason.startswith("no segment is closed yet; the open one (3.2 KiB) is")

    run(main)


def test_why_no_further_is_told_as_it_is_now_not_as_of_the_last_look(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            settings = {"cleanup": "compact", "segment_size": "4KiB"}
            topic_id = await client.create("orders", 1, **settings)
            await server.clean()
            assert status(server).reason == "no segment is closed yet"
            await fill(client, topic_id, batches=2)
            assert "the open one (2.1 KiB) is closed at" in status(server).reason

    run(main)


@pytest.mark.parametrize(
    "error",
    [WorkerLost("the worker ended"), OSError(errno.ENOSPC, "No space left on device")],
    ids=["worker lost", "disk full"],
)
def test_a_failure_is_shown_and_tried_again(
    place: Place, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "RETRY_FIRST_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            newest = await fill(client, topic_id)
            place.heavy.failures.append(error)
            await server.clean()
            failed = status(server)
            assert (failed.state, failed.last_error) == ("failed", str(error))
            assert runs(server, "failed") == 1
            assert place.files("topics/*/*.tmp") == []
            await server.clean()
            assert (status(server).state, status(server).last_error) == ("idle", None)
            assert (await read(client, topic_id)).keys() >= newest.keys()
            assert runs(server, "ok") == 1

    run(main)


def test_a_failure_waits_before_it_is_tried_again(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            await fill(client, topic_id)
            place.heavy.failures.append(WorkerLost("gone"))
            await server.clean()
            jobs = len(place.heavy.jobs)
            await server.clean()
            assert len(place.heavy.jobs) == jobs

    run(main)


def test_a_topic_that_is_deleted_meanwhile_is_let_go(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            await fill(client, topic_id)
            place.heavy.allowed = trio.Event()
            server.clean_now()
            await place.heavy.asked.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.delete, "orders")
                while _serving(server):
                    await trio.lowlevel.checkpoint()
                place.heavy.allowed.set()
            with pytest.raises(TopicNotFound):
                await client.ask(DescribeTopicsRequest(("orders",), False), DescribeTopicsResponse)
            assert place.files("*.log") == []
            assert runs(server, "failed") == 0

    def _serving(server: Server) -> bool:
        assert server._node is not None
        return any(one.serving for one in server._node.shelf)

    run(main)


def test_whoever_waits_for_the_partition_gets_it_between_two_segments(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "GIVE_WAY_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            newest = await fill(client, topic_id, 40, lambda n: n * (n % 2))
            assert server._node is not None
            (partition,) = server._node.shelf
            place.heavy.allowed = trio.Event()
            server.clean_now()
            await place.heavy.asked.wait()
            got = trio.Event()

            async def other() -> None:
                async with partition.maintenance:
                    assert status(server).clean_offset > 0, "what was done is remembered"
                    got.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                while not partition.maintenance.statistics().tasks_waiting:
                    await trio.lowlevel.checkpoint()
                place.heavy.allowed.set()
                await got.wait()
            assert runs(server, "ok") == 0
            async with partition.maintenance:
                await server.clean()
                assert runs(server, "ok") == 0, "somebody is at work there"
            with trio.fail_after(5):
                while not runs(server, "ok"):
                    await server.clean()
            assert newest.items() <= (await read(client, topic_id)).items()

    run(main)


def test_a_survey_is_given_up_for_whoever_waits_and_finished_in_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "GIVE_WAY_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            newest = await fill(client, topic_id)
            assert server._node is not None
            (partition,) = server._node.shelf
            got: list[int] = []

            async def wait() -> None:
                async with partition.maintenance:
                    got.append(len(place.heavy.jobs))

            async def always_wanted(job: Job) -> None:
                if isinstance(job, SurveyJob):
                    nursery.start_soon(wait)
                    while not partition.maintenance.statistics().tasks_waiting:
                        await trio.lowlevel.checkpoint()

            place.heavy.before = always_wanted
            async with trio.open_nursery() as nursery:
                for surveys in range(1, cleaner_module.GIVE_WAY_MAX + 1):
                    await server.clean()
                    async with partition.maintenance:  # whoever waited had it first
                        assert got[-1] == len(place.heavy.jobs) == surveys
                assert status(server).state == "due"
                await server.clean()
            assert len(place.heavy.jobs) > surveys + 1
            assert newest.items() <= (await read(client, topic_id)).items()

    run(main)


def test_a_stop_in_the_middle_leaves_nothing_half_made(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            newest = await fill(client, topic_id)
            place.heavy.allowed = trio.Event()
            server.clean_now()
            await place.heavy.asked.wait()
            assert len(place.files("topics/*/*.tmp")) == 1
        assert place.files("topics/*/*.tmp") == []
        async with place.broker() as (server, client):
            await server.clean()
            assert await read(client, topic_id) == newest

    run(main)


def test_without_room_for_a_new_segment_it_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace.broker import compaction

    monkeypatch.setattr(compaction, "SPARE_BYTES", 1 << 62)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            await fill(client, topic_id)
            await server.clean()
            assert "are needed" in (status(server).last_error or "")

    run(main)


def test_settings_of_a_topic_hold_from_the_next_look_on(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", segment_size="4KiB")
            newest = await fill(client, topic_id)
            await server.clean()
            assert len(await read(client, topic_id)) == 12
            changes = tuple(ConfigChange(key, value) for key, value in EAGER.items())
            await client.ask(AlterTopicRequest("orders", changes), TopicResponse)
            await server.clean()
            assert await read(client, topic_id) == newest

    run(main)


# ── with the clock at hand ───────────────────────────────────────────────────────────────────


def values(broker: Broker, topic: str = "state") -> dict[bytes | None, bytes | None]:
    return {record.key: record.value for record in broker.records(topic)}


def test_records_of_a_compacted_topic_do_not_expire() -> None:
    with Broker() as broker:
        broker.create_topic("state", cleanup="compact", retention="1h")
        broker.seed("state", [b"1", b"2"], keys=[b"a", b"b"])
        broker.advance(days=30)
        assert values(broker) == {b"a": b"1", b"b": b"2"}


def test_with_both_they_are_compacted_and_expire() -> None:
    with Broker() as broker:
        broker.create_topic(
            "state", cleanup="compact,delete", retention="2d", compaction_lag_max="1h"
        )
        broker.seed("state", [b"1", b"2"], keys=[b"a", b"a"])
        broker.advance(hours=2)
        assert [record.offset for record in broker.records("state")] == [1]
        broker.advance(days=3)
        assert broker.records("state") == []


def test_a_topic_that_is_never_synced_is_compacted_all_the_same(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path / "data") as broker:
        broker.create_topic("state", cleanup="compact", compaction_lag_max="1h", durability="os")
        broker.seed("state", [b"1", b"2"], keys=[b"a", b"a"])
        broker.advance(hours=2)
        assert [record.offset for record in broker.records("state")] == [1]


def test_a_tombstone_goes_when_it_was_there_for_its_time() -> None:
    with Broker() as broker:
        broker.create_topic(
            "state", cleanup="compact", compaction_lag_max="1h", tombstone_retention="2d"
        )
        broker.seed("state", [b"1", b"2", None], keys=[b"a", b"b", b"a"])
        broker.advance(hours=2)
        assert values(broker) == {b"a": None, b"b": b"2"}
        broker.advance(days=1)
        assert values(broker) == {b"a": None, b"b": b"2"}
        broker.advance(days=1.5)
        assert values(broker) == {b"b": b"2"}


def test_records_without_a_key_stay_and_are_told() -> None:
    with Broker() as broker:
        broker.create_topic("state", cleanup="compact", compaction_lag_max="1h")
        broker.seed("state", [b"1", b"2", b"3"], keys=[None, b"a", b"a"])
        broker.advance(hours=2)
        assert values(broker) == {None: b"1", b"a": b"3"}
        [partition] = broker.client().admin.describe_topic("state").partition_list
        assert partition.compaction is not None
        assert partition.compaction.reason.endswith("; records without a key stay: 1")
