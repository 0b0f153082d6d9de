"""Members of a group against a real broker: partitions come and go, commits, leaving."""

import itertools
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.client import member as member_module
from tailrace.client.commits import CommitPoint
from tailrace.client.member import Member, MemberOptions
from tailrace.client.records import TopicPartition
from tailrace.protocol.errors import (
    ConfigError,
    GroupConfigMismatch,
    InvalidName,
    PartitionLost,
    RequestTimeout,
    UsageError,
)
from tailrace.testing import Broker
from tests.client.group_listener import Listening, expel, member, settle
from tests.client.world import Run, until

_numbers = itertools.count()


@pytest.fixture(params=["thread", "task"])
def heartbeat(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def group() -> str:
    return f"g{next(_numbers)}"


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with Broker() as running:
        running.create_topic("orders", 4)
        running.create_topic("bills", 1)
        yield running


def at(partition: int) -> TopicPartition:
    return TopicPartition("orders", partition)


ALL = {0, 1, 2, 3}


# ── partitions come and go ───────────────────────────────────────────────────────────────────


def test_first_member_has_everything_when_it_has_joined(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            await settle(one)
            assert set(one.member.assignments) == {at(n) for n in ALL}

    run(main)


def test_second_member_gets_half_after_it_was_committed_and_released(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(n): CommitPoint(10 + n) for n in ALL}
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as two:
                await until(lambda: len(two.has) == 2 and len(one.has) == 2)
                assert one.has | two.has == ALL
                assert sorted(one.withdrawals) == sorted(two.has), "the others never moved"
                places = [at(n) for n in two.has]
                found = await two.member.committed(places, timeout=1.0)
                assert {place: c and c.offset for place, c in found.items()} == {
                    place: 10 + place.partition for place in places
                }
                await settle(one, two)
                assert one.losses == two.losses == []

    run(main)


def test_partition_in_hand_stays_until_it_is_released(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as two:
                await until(lambda: len(one.withdrawals) == 2)
                first, second = one.withdrawals
                one.release(at(first))
                await until(lambda: two.has == {first})
                assert one.member.rebalancing
                assert second in one.has
                one.points[at(second)] = CommitPoint(7)
                await one.member.commit({at(second): CommitPoint(7)}, lower=True)
                one.release(at(second))
                await until(lambda: two.has == {first, second})

    run(main)


def test_partition_that_is_not_released_in_time_is_lost_and_its_commit_raises_once(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "rebalance_timeout": 0.2}
        async with member(broker.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(broker.url, group, "orders", **options) as two:
                await until(lambda: len(two.has) == 2 and bool(one.losses))
                (gone, reason) = one.losses[0]
                assert set(gone) == two.has
                assert "0.2 s (rebalance_timeout)" in reason
                late = {at(n): CommitPoint(5) for n in ALL}
                with pytest.raises(PartitionLost) as caught:
                    await one.member.commit(late, lower=True)
                assert caught.value.offsets == {at(n): 5 for n in gone}
                with pytest.raises(UsageError) as again:
                    await one.member.commit(late, lower=True)
                assert again.value.code == "T055"
                kept = await two.member.committed([at(n) for n in ALL], timeout=1.0)
                stored = {place.partition for place, found in kept.items() if found}
                assert stored == one.has, "what was still its own is committed"

    run(main)


def test_fenced_member_loses_everything_once_and_joins_again(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            before = dict(one.member.assignments)
            await expel(broker.url, group, one.member.member_id)
            await until(lambda: bool(one.losses) and one.has == ALL)
            assert [sorted(gone) for gone, _ in one.losses] == [[0, 1, 2, 3]]
            assert one.failures == []
            old = {n: before[at(n)].assignment_epoch for n in ALL}
            late = {at(0): CommitPoint(5, assignment_epoch=old[0])}
            with pytest.raises(PartitionLost):
                await one.member.commit(late, lower=True)
            await one.member.commit({at(0): CommitPoint(5)}, lower=True)

    run(main)


def test_commit_that_is_refused_tells_of_the_loss_before_a_heartbeat_does(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "session_timeout": 60.0}
        async with member(broker.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(0): CommitPoint(1)}
            await expel(broker.url, group, one.member.member_id)
            with pytest.raises(PartitionLost, match="it left"):
                await one.member.commit({at(0): CommitPoint(1)}, lower=True)
            await until(lambda: one.has == ALL)

    run(main)


def test_member_without_partitions_is_idle_once(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "bills", heartbeat=heartbeat) as one:
            async with member(broker.url, group, "bills", heartbeat=heartbeat) as two:
                await until(lambda: bool(two.idles))
                assert (one.idles, two.idles) == ([], [(1, 2)])
                await one.member.leave()
                await until(lambda: two.has == {0})
                assert two.idles == [(1, 2)]

    run(main)


def test_rebalances_are_told_to_every_member(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as two:
                await settle(one, two)
                await until(lambda: bool(two.rebalances))
                assert one.rebalances[-1] == two.rebalances[-1]
            await until(lambda: one.rebalances[-1].reason == "member left")

    run(main)


# ── who may join ─────────────────────────────────────────────────────────────────────────────


def test_other_subscription_may_not_join(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat):
            with pytest.raises(GroupConfigMismatch) as caught:
                async with member(broker.url, group, "bills", heartbeat=heartbeat):
                    pytest.fail("it has joined")
            assert caught.value.code == "T070"

    run(main)


def test_session_outside_the_brokers_limits_may_not_join(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="session_timeout"):
            async with member(
                broker.url, group, "orders", session_timeout=0.01, heartbeat=heartbeat
            ):
                pytest.fail("it has joined")

    run(main)


def test_name_that_is_none_may_not_join(run: Run, broker: Broker) -> None:
    async def main() -> None:
        with pytest.raises(InvalidName):
            async with member(broker.url, "a\nb", "orders"):
                pytest.fail("it has joined")

    run(main)


def test_static_member_that_returns_keeps_its_partitions_and_fences_the_other(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "instance_id": "till-1"}
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as other:
            async with member(broker.url, group, "orders", **options) as one:
                await until(lambda: len(one.has) == len(other.has) == 2)
                had = set(one.has)
            assert len(other.has) == 2, "it is only away"
            async with member(broker.url, group, "orders", **options) as two:
                await until(lambda: two.has == had)
                async with member(broker.url, group, "orders", **options) as three:
                    await until(lambda: three.has == had)
                    await until(lambda: bool(two.failures))
                    assert two.failures[0].code == "T042"
                    assert [sorted(gone) for gone, _ in two.losses] == [sorted(had)]
                    await settle(three)
                    assert three.has == had
            assert len(other.withdrawals) == 2, "once: for the first one"

    run(main)


# ── commits ──────────────────────────────────────────────────────────────────────────────────


def test_explicit_commits_only_rise(run: Run, broker: Broker, group: str) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            await one.member.commit({at(0): CommitPoint(5), at(1): CommitPoint(6)}, lower=True)
            assert one.member.known_committed(at(0)) == 5
            assert one.member.last_commit is not None
            with pytest.raises(ConfigError, match="at least 5, which is committed already"):
                await one.member.commit({at(0): CommitPoint(4)}, lower=True)
            await one.member.commit({at(0): CommitPoint(4)}, lower=False)
            found = await one.member.committed([at(0), at(1), at(2)], timeout=1.0)
            assert [c and c.offset for c in found.values()] == [5, 6, None]

    run(main)


def test_commit_keeps_its_metadata_up_to_a_limit(run: Run, broker: Broker, group: str) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            await one.member.commit({at(0): CommitPoint(5)}, "x" * 4_096, lower=True)
            found = (await one.member.committed([at(0)], timeout=1.0))[at(0)]
            assert found is not None
            assert found.metadata == "x" * 4_096
            with pytest.raises(ConfigError, match="4,096"):
                await one.member.commit({at(0): CommitPoint(6)}, "x" * 4_097, lower=True)

    run(main)


def test_progress_is_committed_by_itself_in_one_request_for_all(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "commit_interval": 0.02}
        async with member(broker.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(n): CommitPoint(3) for n in ALL}
            await until(lambda: one.member.last_commit is not None)
            assert {one.member.known_committed(at(n)) for n in ALL} == {3}

    run(main)


def test_progress_is_committed_when_leaving(run: Run, broker: Broker, group: str) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders") as one:
            await until(lambda: one.has == ALL)
            one.points = {at(2): CommitPoint(9)}
        async with member(broker.url, group, "orders") as two:
            found = (await two.member.committed([at(2)], timeout=1.0))[at(2)]
            assert found is not None
            assert found.offset == 9

    run(main)


def test_commit_without_an_answer_raises_in_time(run: Run, group: str) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            client = {"request_timeout": 0.3}
            options: dict[str, Any] = {"close_timeout": 0.1, "client": client}
            async with member(broker.url, group, "orders", **options) as one:
                await until(lambda: one.has == ALL)
                with broker.faults.black_hole(), pytest.raises(RequestTimeout) as caught:
                    await one.member.commit({at(0): CommitPoint(1)}, lower=True)
                assert caught.value.code == "T034"

    run(main)


# ── outages ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("crash", [False, True])
def test_members_go_on_over_a_restart_of_the_coordinator(
    run: Run, group: str, heartbeat: str, crash: bool
) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            options: dict[str, Any] = {"heartbeat": heartbeat, "commit_interval": 0.02}
            async with (
                member(broker.url, group, "orders", **options) as one,
                member(broker.url, group, "orders", **options) as two,
            ):
                await until(lambda: len(one.has) == len(two.has) == 2)
                await settle(one, two)
                had = set(one.has)
                await anyio.to_thread.run_sync(lambda: broker.restart(crash=crash))
                one.points = {at(n): CommitPoint(4) for n in had}
                await until(lambda: one.member.last_commit is not None)
                await until(lambda: one.member.trouble is None and two.member.trouble is None)
                assert (one.has, one.losses, two.losses) == (had, [], [])

    run(main)


def test_trouble_is_told_while_it_lasts(
    run: Run, group: str, heartbeat: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.client")

    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            options: dict[str, Any] = {"heartbeat": heartbeat, "close_timeout": 0.1}
            async with member(broker.url, group, "orders", **options) as one:
                await anyio.to_thread.run_sync(broker.stop)
                await until(lambda: one.member.trouble == "connection refused")
                await anyio.to_thread.run_sync(broker.start)
                await until(lambda: one.member.trouble is None)

    run(main)
    assert "reconnecting 127.0.0.1:" in caplog.text


# ── leaving ──────────────────────────────────────────────────────────────────────────────────


def test_partitions_of_one_that_leaves_are_elsewhere_at_once(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as two:
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
                await until(lambda: len(one.has) == len(two.has) == 2)
                began = time.monotonic()
                await one.member.leave()
                await until(lambda: two.has == ALL)
                assert time.monotonic() - began < 0.3
                assert one.losses == []

    run(main)


def test_member_that_has_left_may_join_again(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            await one.member.leave()
            await one.member.leave()
            assert one.member.assignments == {}
            one.has.clear()
            await one.member.join()
            await until(lambda: one.has == ALL)

    run(main)


def test_leaving_ends_in_time_when_nobody_answers(
    run: Run, group: str, heartbeat: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            options: dict[str, Any] = {"heartbeat": heartbeat, "close_timeout": 0.2}
            async with member(broker.url, group, "orders", **options) as one:
                await until(lambda: one.has == ALL)
                one.points = {at(1): CommitPoint(2)}
                with broker.faults.black_hole():
                    began = time.monotonic()
                    await one.member.leave()
                    assert 0.1 < time.monotonic() - began < 0.6
        assert "orders[1]" in caplog.text

    run(main)


def test_leaving_is_shielded_for_a_moment_when_cancelled(
    run: Run, group: str, heartbeat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "CANCELLED_CLOSE_S", 0.1)

    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
                await until(lambda: one.has == ALL)
                with broker.faults.black_hole(), anyio.move_on_after(0.05) as scope:
                    began = time.monotonic()
                    await one.member.leave()
                assert scope.cancelled_caught
                assert 0.1 < time.monotonic() - began < 0.6

    run(main)


def test_cancelled_leave_still_says_goodbye(
    run: Run, broker: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(broker.url, group, "orders", heartbeat=heartbeat) as two:
            async with member(broker.url, group, "orders", heartbeat=heartbeat) as one:
                await until(lambda: len(one.has) == len(two.has) == 2)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await one.member.leave()
                await until(lambda: two.has == ALL)

    run(main)


def test_join_that_is_cancelled_is_no_membership(run: Run, broker: Broker, group: str) -> None:
    async def main() -> None:
        async with tailrace.connect(broker.url) as client:
            listening = Listening()
            one = Member(client, MemberOptions(group, ("orders",), 6.0), listening)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await one.join()
            await one.leave()
            assert one.assignments == {}

    run(main)


def test_committed_waits_through_an_outage(run: Run, group: str) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            async with member(broker.url, group, "orders") as one:
                await until(lambda: one.has == ALL)
                await one.member.commit({at(0): CommitPoint(5)}, lower=True)
                await anyio.to_thread.run_sync(broker.stop)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.to_thread.run_sync, broker.start)
                    found = (await one.member.committed([at(0)], timeout=math.inf))[at(0)]
                assert found is not None
                assert found.offset == 5

    run(main)
