"""Members of a group against a real broker: who joins, and how partitions come and go."""

from typing import Any

import pytest

from tailrace.client.commits import CommitPoint
from tailrace.protocol.errors import (
    ConfigError,
    GroupConfigMismatch,
    InvalidName,
    PartitionLost,
    UsageError,
)
from tailrace.testing import Broker
from tests.client.group_listener import ALL, at, expel, member, settle
from tests.client.world import Run, until

# ── partitions come and go ───────────────────────────────────────────────────────────────────


def test_first_member_has_everything_when_it_has_joined(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            await settle(one)
            assert set(one.member.assignments) == {at(n) for n in ALL}

    run(main)


def test_second_member_gets_half_after_it_was_committed_and_released(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(n): CommitPoint(10 + n) for n in ALL}
            async with member(shop.url, group, "orders", heartbeat=heartbeat) as two:
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
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(shop.url, group, "orders", heartbeat=heartbeat) as two:
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
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "rebalance_timeout": 0.2}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(shop.url, group, "orders", **options) as two:
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


def test_partition_that_was_released_and_came_back_is_not_too_late(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "rebalance_timeout": 0.2}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(shop.url, group, "orders", **options):
                await until(lambda: len(one.withdrawals) == 2)
                late = one.client.clock.now() + 0.3
            await until(lambda: not one.member.rebalancing)
            for number in one.withdrawals:
                one.release(at(number))
            await until(lambda: one.has == ALL)
            await until(lambda: one.client.clock.now() > late)
            assert one.has == ALL
            assert one.losses == []

    run(main)


def test_partition_that_is_lost_too_late_to_go_anywhere_comes_back(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "rebalance_timeout": 1.0}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(shop.url, group, "orders", **options):
                await until(lambda: len(one.withdrawals) == 2)
            assert one.has == ALL, "nobody wants it any more, and it was not released"
            await until(lambda: bool(one.losses))
            await until(lambda: one.has == ALL)

    run(main)


def test_fenced_member_loses_everything_once_and_joins_again(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            before = dict(one.member.assignments)
            await expel(shop.url, group, one.member.member_id)
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
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "session_timeout": 60.0}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.points = {at(0): CommitPoint(1)}
            await expel(shop.url, group, one.member.member_id)
            with pytest.raises(PartitionLost, match="it left"):
                await one.member.commit({at(0): CommitPoint(1)}, lower=True)
            await until(lambda: one.has == ALL)

    run(main)


def test_member_without_partitions_is_idle_once(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "bills", heartbeat=heartbeat) as one:
            async with member(shop.url, group, "bills", heartbeat=heartbeat) as two:
                await until(lambda: bool(two.idles))
                assert (one.idles, two.idles) == ([], [(1, 2)])
                await one.member.leave()
                await until(lambda: two.has == {0})
                assert two.idles == [(1, 2)]

    run(main)


def test_rebalances_are_told_to_every_member(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            async with member(shop.url, group, "orders", heartbeat=heartbeat) as two:
                await settle(one, two)
                await until(lambda: bool(two.rebalances))
                assert one.rebalances[-1] == two.rebalances[-1]
            await until(lambda: one.rebalances[-1].reason == "member left")

    run(main)


# ── who may join ─────────────────────────────────────────────────────────────────────────────


def test_other_subscription_may_not_join(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat):
            with pytest.raises(GroupConfigMismatch) as caught:
                async with member(shop.url, group, "bills", heartbeat=heartbeat):
                    pytest.fail("it has joined")
            assert caught.value.code == "T070"

    run(main)


def test_session_outside_the_brokers_limits_may_not_join(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="session_timeout"):
            async with member(shop.url, group, "orders", session_timeout=0.01, heartbeat=heartbeat):
                pytest.fail("it has joined")

    run(main)


def test_name_that_is_none_may_not_join(run: Run, shop: Broker) -> None:
    async def main() -> None:
        with pytest.raises(InvalidName):
            async with member(shop.url, "a\nb", "orders"):
                pytest.fail("it has joined")

    run(main)


def test_static_member_that_returns_keeps_its_partitions_and_fences_the_other(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat, "instance_id": "till-1"}
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as other:
            async with member(shop.url, group, "orders", **options) as one:
                await until(lambda: len(one.has) == len(other.has) == 2)
                had = set(one.has)
            assert len(other.has) == 2, "it is only away"
            async with member(shop.url, group, "orders", **options) as two:
                await until(lambda: two.has == had)
                async with member(shop.url, group, "orders", **options) as three:
                    await until(lambda: three.has == had)
                    await until(lambda: bool(two.failures))
                    assert two.failures[0].code == "T042"
                    assert [sorted(gone) for gone, _ in two.losses] == [sorted(had)]
                    await settle(three)
                    assert three.has == had
            assert len(other.withdrawals) == 2, "once: for the first one"

    run(main)
