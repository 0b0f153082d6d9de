"""The coordinator on a disk that is full, damaged or gone; and whoever stops waiting."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker import awake, group_record, topic_config
from tailrace.broker.coordinator import Coordinator
from tailrace.broker.offsets_log import OffsetsLog
from tailrace.broker.server import Server
from tailrace.broker.world import Offload, World
from tailrace.protocol.errors import CoordinatorLoading, PartitionOffline, StorageFull
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeGroupRequest,
    DescribeGroupResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    HeartbeatResponse,
    ListGroupsRequest,
    ListGroupsResponse,
    Request,
    Response,
)
from tailrace.simulation.life import Life
from tailrace.storage.directory import partition_name
from tailrace.testing.real_disk import ProbedDisk, Unsynced
from tests.broker.harness import Client, Settings, connected, run, serving
from tests.broker.members import Member, commit, committed, committing, find, loaded

AT_ONCE: Settings = {"group.assign_delay": "0ms", "group.session_timeout_min": "100ms"}


@asynccontextmanager
async def on_a_disk_that_fills(
    tmp_path: Path,
) -> AsyncGenerator[tuple[Server, Client, ProbedDisk]]:
    disk = ProbedDisk(Unsynced(), Life("n1"))

    def with_it(world: World) -> World:
        return replace(world, disk=disk)

    async with serving(tmp_path, AT_ONCE, with_it) as (server, ready), connected(ready) as client:
        yield server, client, disk


def test_a_full_disk_refuses_commits_and_lets_nobody_in_but_ends_no_session(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with on_a_disk_that_fills(tmp_path) as (_, client, disk):
            topic_id = await client.create("orders", 2)
            member = Member(client, "m1")
            await member.join()
            assert (await member.commit(topic_id, 0, 1)).error is None
            disk.full = True
            with pytest.raises(StorageFull, match="T031"):
                await member.commit(topic_id, 0, 2)
            with pytest.raises(StorageFull):
                await member.commit(topic_id, 0, 3)
            assert await committed(client, "g") == {(topic_id, 0): 1}
            newcomer = Member(client, "m2")
            with pytest.raises(CoordinatorLoading, match="cannot write down what changed"):
                await newcomer.beat()
            with pytest.raises(CoordinatorLoading):
                await member.beat(wait_ms=20)
            disk.full = False
            told = await _beat_until_taken(newcomer)
            assert told.members == 2
            before = member.told
            await member.join()
            assert before is not None
            assert (await member.commit(topic_id, member.numbers[0], 4)).error is None

    run(main)


def test_groups_go_on_where_producers_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        settings = {**AT_ONCE, "storage.min_free": "99%"}
        async with serving(tmp_path, settings) as (server, ready), connected(ready) as client:
            assert server.state == "read_only"
            topic_id = await client.create("orders")
            refused = (await client.produce(topic_id, [b"a"])).error
            assert refused is not None
            assert refused.code == 31
            member = Member(client, "m1")
            await member.join()
            assert (await member.commit(topic_id, 0, 0)).error is None

    run(main)


async def _beat_until_taken(member: Member) -> HeartbeatResponse:
    for _ in range(200):
        try:
            return await member.beat(wait_ms=100)
        except CoordinatorLoading:
            await trio.sleep(0.01)
    raise AssertionError("never taken")


def test_what_failed_is_not_remembered_over_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        async with on_a_disk_that_fills(tmp_path) as (_, client, disk):
            topic_id = await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            await member.commit(topic_id, 0, 1)
            disk.full = True
            with pytest.raises(StorageFull):
                await member.commit(topic_id, 0, 2)
            disk.full = False
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            assert await loaded(client, "g") == {(topic_id, 0): 1}

    run(main)


# ── what a start finds ───────────────────────────────────────────────────────────────────────


def test_a_compacted_log_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(topic_config.INTERNAL, "segment_size", "4KiB")

    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders", 2)
            member = Member(client, "m1")
            await member.join()
            for offset in range(1, 101):
                await member.commit(topic_id, 0, offset)
            await member.commit(topic_id, 1, 7)
            before = await _size_bytes(client)
            await server.clean()
            assert await _size_bytes(client) < before / 2
            await member.commit(topic_id, 0, 101)
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            assert await loaded(client, "g") == {(topic_id, 0): 101, (topic_id, 1): 7}
            member.client = client
            assert (await member.beat()).members == 1

    run(main)


async def _size_bytes(client: Client) -> int:
    """Of ``__offsets``."""
    request = DescribeTopicsRequest(("__offsets",), False)
    described, _ = await client.ask(request, DescribeTopicsResponse)
    return sum(one.size_bytes for one in described.topics[0].partitions)


def test_records_of_a_newer_release_are_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with monkeypatch.context() as newer:
            newer.setattr(group_record, "STATE_VERSION", 2)
            async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
                await client.create("orders")
                await Member(client, "m1").join()
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            with pytest.raises(PartitionOffline, match="state of version 2"):
                await loaded(client, "g")
            await Member(client, "m1", group="another").join()  # in another partition

    run(main)


def test_a_topic_deleted_while_nobody_looked_leaves_no_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unheard(coordinator: Coordinator) -> None:
        """As if the broker died before the groups were told."""

    async def main() -> None:
        with monkeypatch.context() as deaf:
            deaf.setattr(Coordinator, "topics_changed", unheard)
            async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
                topic_id, kept_id = await client.create("orders"), await client.create("refunds")
                deaf.undo()
                member = Member(client, "m1", topics=("orders", "refunds"))
                await member.join()
                await member.commit(topic_id, 0, 1)
                await member.commit(kept_id, 0, 2)
                deaf.setattr(Coordinator, "topics_changed", unheard)
                await client.delete("orders")
        for _ in range(2):
            async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
                assert await loaded(client, "g") == {(kept_id, 0): 2}
                member.client = client
                assert [one.topic for one in (await member.join()).assigned] == ["refunds"]

    run(main)


@pytest.mark.provokes("T036")
def test_while_it_loads_it_says_so_and_everything_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay, allowed = OffsetsLog.replay, trio.Event()
    loading = "T036: broker n1 is still loading the offsets of (some groups|group 'g')[.] Ask again"

    async def held_up(self: OffsetsLog, offload: Offload) -> dict[bytes, bytes]:
        await allowed.wait()
        return await replay(self, offload)

    monkeypatch.setattr(OffsetsLog, "replay", held_up)

    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            member = Member(client, "m1")
            await member.join()  # there is nothing to be loaded yet
            await member.commit(topic_id, 0, 1)
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            member.client = client
            assert (await client.produce(topic_id, [b"on"])).error is None
            assert await find(client) is not None
            requests: list[tuple[Request, type[Response]]] = [
                (member.request(), HeartbeatResponse),
                (FetchOffsetsRequest("g", None), FetchOffsetsResponse),
                (ListGroupsRequest(), ListGroupsResponse),
                (DescribeGroupRequest("g"), DescribeGroupResponse),
                (DeleteGroupRequest("g"), DeleteGroupResponse),
            ]
            for request, kind in requests:
                with pytest.raises(CoordinatorLoading, match=loading):
                    await client.ask(request, kind)
            with pytest.raises(CoordinatorLoading):
                await member.commit(topic_id, 0, 2)
            allowed.set()
            assert await loaded(client, "g") == {(topic_id, 0): 1}
            assert (await member.beat()).members == 1

    run(main)


def test_a_damaged_batch_costs_what_it_held_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", 2)
            number = (await find(client)).partition
            (offsets,) = (await client.metadata("__offsets")).topics
            await commit(client, "g", committing(topic_id, 0, 111))
            await commit(client, "g", committing(topic_id, 1, 222))
        name = partition_name(offsets.topic_id, number)
        (file,) = (tmp_path / "data" / "topics" / name).glob("*.log")
        with file.open("r+b") as damaged:
            damaged.seek(90)  # in the first batch, behind its header
            damaged.write(b"\xff\xff")
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            assert await loaded(client, "g") == {(topic_id, 1): 222}
        assert any("group.records_lost" in str(one.__dict__) for one in caplog.records)

    run(main)


# ── time ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("still_s", [0.35, 0.6])  # a deadline just missed, and one long gone
def test_nobody_is_late_because_the_broker_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_s: float
) -> None:
    monkeypatch.setattr(awake, "AWAY_S", 0.1)
    monkeypatch.setattr(awake, "PULSE_S", 0.02)

    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            await client.create("orders")
            member = Member(client, "m1", session_timeout_ms=300)
            await member.join()
            time.sleep(still_s)  # noqa: ASYNC251 - that is the point
            await trio.sleep(0.05)
            assert (await member.beat()).members == 1

    run(main)


# ── order ────────────────────────────────────────────────────────────────────────────────────


def test_what_comes_at_once_is_written_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders", 15)
            await commit(client, "g", committing(topic_id, 0, 1))
            before = server.metrics.append_duration.count
            sent = [
                await client.send(CommitOffsetsRequest("g", "", (committing(topic_id, number, 7),)))
                for number in range(15)
            ]
            for number in sent:
                answer = await client.wait(number)
                assert isinstance(answer.message, CommitOffsetsResponse)
            assert server.metrics.append_duration.count - before < 15
            assert set((await committed(client, "g")).values()) == {7}

    run(main)


def test_a_deletion_takes_along_what_was_committed_just_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            await commit(client, "g", committing(topic_id, 0, 1))
            commits = CommitOffsetsRequest("g", "", (committing(topic_id, 0, 2),))
            first = await client.send(commits)
            second = await client.send(DeleteGroupRequest("g"))
            third = await client.send(commits)
            assert isinstance((await client.wait(first)).message, CommitOffsetsResponse)
            assert isinstance((await client.wait(second)).message, DeleteGroupResponse)
            assert isinstance((await client.wait(third)).message, CoordinatorLoading)
            assert await committed(client, "g") == {}
        async with serving(tmp_path, AT_ONCE) as (_, ready), connected(ready) as client:
            assert await loaded(client, "g") == {}

    run(main)
