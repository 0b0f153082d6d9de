"""The coordinator of consumer groups, over the wire."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.server import Server
from tailrace.protocol.errors import (
    GroupFenced,
    GroupNotEmpty,
    GroupNotFound,
    InvalidName,
    OffsetOutOfRange,
)
from tailrace.protocol.messages import (
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatResponse,
    OffsetTarget,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.protocol.routing import Router, even_ranges
from tests.broker.harness import Client, Settings, connected, run, serving
from tests.broker.members import Member, commit, committed, committing, find, loaded

AT_ONCE: Settings = {"group.assign_delay": "0ms", "group.session_timeout_min": "100ms"}


@asynccontextmanager
async def broker(tmp_path: Path) -> AsyncGenerator[tuple[Server, Client]]:
    """A broker that assigns without delay, and a connection to it."""
    async with serving(tmp_path, AT_ONCE) as (server, ready), connected(ready) as client:
        yield server, client


async def until(condition: Callable[[], bool]) -> None:
    """Let the broker work until something is so."""
    for _ in range(2_000):
        if condition():
            return
        await trio.sleep(0.001)
    raise AssertionError("it never came to be")


# ── where ────────────────────────────────────────────────────────────────────────────────────


def test_the_first_use_makes_one_topic_however_many_ask(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            found: list[FindCoordinatorResponse] = []

            async def ask(group: str) -> None:
                async with connected(ready) as client:
                    found.append(await find(client, group))

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


# ── members ──────────────────────────────────────────────────────────────────────────────────


def test_a_first_heartbeat_needs_no_coordinator_found_before(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id = await client.create("orders", 3)
            member = Member(client, "m1")
            told = await member.beat()
            assert (told.stable, told.members, told.partitions) == (True, 1, 3)
            assert [one.topic_id for one in told.assigned] == [topic_id]
            assert member.numbers == [0, 1, 2]

    run(main)


def test_a_held_heartbeat_is_answered_when_another_member_joins(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            await client.create("orders", 4)
            first, second = Member(client, "m1"), Member(client, "m2")
            await first.beat()
            held = await client.send(first.request(wait_ms=30_000))
            told = await second.beat()
            assert not told.stable
            assert not told.assigned
            answer = await client.wait(held)
            assert isinstance(answer.message, HeartbeatResponse)
            first.take(answer.message)
            assert len(first.numbers) == 2
            waiting = await client.send(second.request(wait_ms=30_000))
            assert (await first.beat()).assigned
            answer = await client.wait(waiting)
            assert isinstance(answer.message, HeartbeatResponse)
            second.take(answer.message)
            assert sorted([*first.numbers, *second.numbers]) == [0, 1, 2, 3]

    run(main)


def test_a_heartbeat_without_news_is_answered_when_its_time_is_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            began = trio.current_time()
            told = await member.beat(wait_ms=50)
            assert 0.05 <= trio.current_time() - began < 1
            assert told.stable

    run(main)


def test_a_newer_heartbeat_has_the_older_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            older = await client.send(member.request(wait_ms=30_000))
            newer = await client.send(member.request(wait_ms=30_000))
            answer = await client.wait(older)
            assert isinstance(answer.message, HeartbeatResponse)
            last = await client.send(member.request())
            await client.wait(newer)
            await client.wait(last)

    run(main)


def test_a_member_whose_session_runs_out_is_fenced(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            await client.create("orders", 2)
            silent = Member(client, "silent", session_timeout_ms=150)
            await silent.join()
            other = Member(client, "other")
            await other.beat()
            while len(other.numbers) < 2:
                await other.beat(wait_ms=1_000)
            with pytest.raises(GroupFenced, match="silent for its session_timeout"):
                await silent.beat()

    run(main)


def test_what_is_not_given_up_in_time_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            await client.create("orders", 2)
            slow, other = Member(client, "slow"), Member(client, "other")
            request = replace(slow.request(), rebalance_timeout_ms=100)
            slow.take((await client.ask(request, HeartbeatResponse))[0])
            assert slow.numbers == [0, 1]
            told = await other.join()
            assert len(other.numbers) == 1
            assert told.stable

    run(main)


def test_members_that_come_together_get_their_shares_at_once(tmp_path: Path) -> None:
    settings: Settings = {"group.assign_delay": "150ms"}

    async def main() -> None:
        async with serving(tmp_path, settings) as (_, ready), connected(ready) as client:
            await client.create("orders", 4)
            members = [Member(client, f"m{number}") for number in range(4)]
            for member in members:
                assert not (await member.beat()).assigned
            for member in members:
                await member.join()
            assert sorted(number for one in members for number in one.numbers) == [0, 1, 2, 3]
            assert {one.told.generation for one in members if one.told} == {4}
            assert all(set(one.owned.values()) == {4} for one in members)  # none had moved before

    run(main)


def test_a_test_can_end_a_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (server, client):
            await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            held = await client.send(member.request(wait_ms=30_000))
            await until(lambda: bool(server.open_requests()))
            server.expire_member("g", "m1")
            assert isinstance((await client.wait(held)).message, GroupFenced)

    run(main)


def test_a_lost_connection_does_not_end_the_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, AT_ONCE) as (server, ready):
            async with connected(ready) as client:
                await client.create("orders")
                member = Member(client, "m1")
                await member.join()
                await client.send(member.request(wait_ms=30_000))
                await until(lambda: bool(server.open_requests()))
            await until(lambda: not server.open_requests())
            async with connected(ready) as again:
                member.client = again
                assert (await member.beat()).members == 1

    run(main)


def test_a_stopping_broker_answers_held_heartbeats(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (server, client):
            await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            held = await client.send(member.request(wait_ms=30_000))
            await until(lambda: bool(server.open_requests()))
            server.stop()
            answer = await client.wait(held)
            assert isinstance(answer.message, HeartbeatResponse)
            assert answer.message.assigned

    run(main)


# ── offsets ──────────────────────────────────────────────────────────────────────────────────


def test_commits_of_the_owner_count_and_those_of_others_do_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id = await client.create("orders", 2)
            member = Member(client, "m1")
            await member.join()
            assert (await member.commit(topic_id, 0, 5)).error is None
            assert (await member.commit(topic_id, 0, 3)).offset == 5  # only rises (S24)
            stranger = Member(client, "stranger")
            refused = await stranger.commit(topic_id, 0, 9)
            assert refused.error is not None
            assert (refused.error.code, refused.offset) == (42, 5)
            with pytest.raises(GroupNotEmpty, match="T044"):
                await commit(client, "g", committing(topic_id, 0, 9))
            unknown = await member.commit(bytes(16), 0, 1)
            assert unknown.error is not None
            assert unknown.error.code == 10
            missing = await member.commit(topic_id, 7, 1)
            assert missing.error is not None
            assert missing.error.code == 11
            assert await committed(client, "g") == {(topic_id, 0): 5}

    run(main)


def test_a_group_without_members_takes_commits_from_outside(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id = await client.create("orders")
            assert await committed(client, "g") == {}
            assert (await commit(client, "g", committing(topic_id, 0, 7))).offset == 7
            assert await committed(client, "g") == {(topic_id, 0): 7}

    run(main)


def test_a_reset_moves_offsets_either_way_or_none_of_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id = await client.create("orders", 2)
            await client.produce(topic_id, [b"a", b"b", b"c"])
            await commit(client, "g", committing(topic_id, 0, 3))

            async def reset(*targets: OffsetTarget, dry_run: bool = False) -> list[int | None]:
                request = ResetOffsetsRequest("g", targets, dry_run)
                answer, _ = await client.ask(request, ResetOffsetsResponse)
                assert {one.topic for one in answer.moves} == {"orders"}
                return [number for one in answer.moves for number in (one.before, one.after)]

            there, elsewhere = OffsetTarget(topic_id, 0, 1), OffsetTarget(topic_id, 1, 0)
            assert await reset(there, elsewhere, dry_run=True) == [3, 1, None, 0]
            assert await committed(client, "g") == {(topic_id, 0): 3}
            with pytest.raises(OffsetOutOfRange, match="T041"):
                await reset(there, OffsetTarget(topic_id, 1, 1))
            assert await committed(client, "g") == {(topic_id, 0): 3}
            assert await reset(there, elsewhere) == [3, 1, None, 0]
            assert await committed(client, "g") == {(topic_id, 0): 1, (topic_id, 1): 0}
            with pytest.raises(GroupNotFound, match="Similar: g"):
                await client.ask(ResetOffsetsRequest("gg", (), False), ResetOffsetsResponse)
            await Member(client, "m1").join()
            with pytest.raises(GroupNotEmpty):
                await reset(there)

    run(main)


def test_a_deleted_group_has_committed_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id = await client.create("orders")
            member = Member(client, "m1")
            await member.join()
            await member.commit(topic_id, 0, 1)
            with pytest.raises(GroupNotEmpty, match="m1"):
                await client.ask(DeleteGroupRequest("g"), DeleteGroupResponse)
            await member.leave()
            await client.ask(DeleteGroupRequest("g"), DeleteGroupResponse)
            assert await committed(client, "g") == {}
            with pytest.raises(GroupNotFound):
                await client.ask(DeleteGroupRequest("g"), DeleteGroupResponse)
        async with broker(tmp_path) as (_, client):
            assert await loaded(client, "g") == {}
            with pytest.raises(GroupNotFound):
                await client.ask(DeleteGroupRequest("g"), DeleteGroupResponse)

    run(main)


# ── topics ───────────────────────────────────────────────────────────────────────────────────


def test_a_deleted_topic_takes_its_offsets_along(tmp_path: Path) -> None:
    async def main() -> None:
        async with broker(tmp_path) as (_, client):
            topic_id, other_id = await client.create("orders"), await client.create("refunds")
            member = Member(client, "m1", topics=("orders", "refunds"))
            await member.join()
            await member.commit(topic_id, 0, 1)
            await member.commit(other_id, 0, 2)
            held = await client.send(member.request(wait_ms=30_000))
            await client.delete("orders")
            answer = await client.wait(held)
            assert isinstance(answer.message, HeartbeatResponse)
            told = member.take(answer.message)
            assert [one.topic for one in told.assigned] == ["refunds"]
            assert await committed(client, "g") == {(other_id, 0): 2}
            held = await client.send(member.request(wait_ms=30_000))
            again_id = await client.create("orders")
            answer = await client.wait(held)
            assert isinstance(answer.message, HeartbeatResponse)
            member.take(answer.message)
            assert (again_id, 0) in member.owned
        async with broker(tmp_path) as (_, client):
            assert await loaded(client, "g") == {(other_id, 0): 2}

    run(main)


# ── restarts ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("clean", [True, False])
def test_a_restart_keeps_groups_members_and_offsets(tmp_path: Path, clean: bool) -> None:
    async def main() -> None:
        first, second = [], []
        async with serving(tmp_path, AT_ONCE) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders", 4)
            one, two = Member(client, "m1"), Member(client, "m2", instance_id="i2")
            await one.beat()
            await two.beat()
            await one.beat()
            await one.join()
            await two.join()
            first, second = one.numbers, two.numbers
            assert sorted([*first, *second]) == [0, 1, 2, 3]
            await one.commit(topic_id, first[0], 11)
            await two.commit(topic_id, second[0], 22)
            if not clean:
                server.kill()
        async with broker(tmp_path) as (_, client):
            offsets = await loaded(client, "g")
            assert offsets == {(topic_id, first[0]): 11, (topic_id, second[0]): 22}
            one.client = two.client = client
            for member, before in ((one, first), (two, second)):
                epoch = member.told.member_epoch if member.told else 0
                told = await member.join()
                assert told.member_epoch == epoch  # it goes on without noticing
                assert member.numbers == before
            assert (await one.commit(topic_id, first[0], 12)).error is None

    run(main)
