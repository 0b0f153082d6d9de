"""Members over outages, and how they leave: at once, in time, with all that is processed."""

import logging
import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import tailrace
from tailrace.client import member as member_module
from tailrace.client.commits import CommitPoint
from tailrace.client.member import Member, MemberOptions
from tailrace.protocol.errors import ConnectError
from tailrace.testing import Broker
from tests.client.group_listener import ALL, Listening, at, member, settle
from tests.client.world import Run, until

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


def test_outage_that_is_too_long_ends_the_membership(
    run: Run, group: str, heartbeat: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with Broker() as broker:
            broker.create_topic("orders", 4)
            async with tailrace.connect(broker.url, max_outage=0.1) as client:
                listening = Listening()
                kind: Any = heartbeat
                options = MemberOptions(group, ("orders",), 6.0, heartbeat=kind)
                listening.member = one = Member(client, options, listening)
                await one.join()
                await until(lambda: listening.has == ALL)
                await anyio.to_thread.run_sync(broker.stop)
                listening.points = {at(2): CommitPoint(5)}
                await until(lambda: bool(listening.failures))
                assert "offsets of orders[2] were not committed before the end" in caplog.text
                assert listening.failures[0].code == "T005"
                with pytest.raises(ConnectError) as caught:
                    await one.commit({at(0): CommitPoint(1)}, lower=True)
                assert caught.value.code == "T005"
                await one.leave()

    run(main)


# ── leaving ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.alone
def test_partitions_of_one_that_leaves_are_elsewhere_at_once(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as two:
            async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
                await until(lambda: len(one.has) == len(two.has) == 2)
                began = time.monotonic()
                await one.member.leave()
                await until(lambda: two.has == ALL)
                assert time.monotonic() - began < 0.3
                assert one.losses == []

    run(main)


def test_member_that_has_left_may_join_again(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
            await until(lambda: one.has == ALL)
            await one.member.leave()
            await one.member.leave()
            assert one.member.assignments == {}
            one.has.clear()
            await one.member.join()
            await until(lambda: one.has == ALL)

    run(main)


def test_leave_commits_what_is_being_given_up(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"heartbeat": heartbeat}
        async with member(shop.url, group, "orders", **options) as one:
            await until(lambda: one.has == ALL)
            one.keeps = True
            async with member(shop.url, group, "orders", **options) as two:
                await until(lambda: len(one.withdrawals) == 2)
                going = [at(number) for number in one.withdrawals]
                turn = one.member._commits._turn
                await turn.acquire()  # another commit is under way
                for place in going:
                    one.points[place] = CommitPoint(7)
                    one.release(place)
                await anyio.lowlevel.checkpoint()
                turn.release()
                await one.member.leave()
                found = await two.member.committed(going, timeout=5.0)
                assert [c and c.offset for c in found.values()] == [7, 7]
                one.has.clear()

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
                    assert 0.1 < time.monotonic() - began < 2.0
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
                assert 0.1 < time.monotonic() - began < 2.0

    run(main)


def test_cancelled_leave_still_says_goodbye(
    run: Run, shop: Broker, group: str, heartbeat: str
) -> None:
    async def main() -> None:
        async with member(shop.url, group, "orders", heartbeat=heartbeat) as two:
            async with member(shop.url, group, "orders", heartbeat=heartbeat) as one:
                await until(lambda: len(one.has) == len(two.has) == 2)
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await one.member.leave()
                await until(lambda: two.has == ALL)

    run(main)


def test_join_that_is_cancelled_is_no_membership(run: Run, shop: Broker, group: str) -> None:
    async def main() -> None:
        async with tailrace.connect(shop.url) as client:
            listening = Listening()
            one = Member(client, MemberOptions(group, ("orders",), 6.0), listening)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await one.join()
            await one.leave()
            assert one.assignments == {}

    run(main)
