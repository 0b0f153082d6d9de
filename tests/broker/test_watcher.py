"""Lag and verdicts of groups on a broker that runs."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import pytest
import trio

from tailrace.broker.explainer_groups import group_facts
from tailrace.broker.group_ownership import Ownership
from tailrace.broker.server import Server
from tailrace.broker.watcher import PARTITIONS_AT_ONCE
from tailrace.protocol.errors import GroupNotFound
from tailrace.protocol.messages import (
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    GroupSummary,
    ListGroupsRequest,
    ListGroupsResponse,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.protocol.messages_group import OffsetTarget
from tailrace.storage.disk import OsDisk, OsFile
from tests.broker.harness import NOW_MS, Client, run
from tests.broker.members import Member, commit, committing
from tests.broker.scraping import text_of
from tests.broker.watching import describe, first, watched


async def listed(client: Client) -> dict[str, GroupSummary]:
    answer, _ = await client.ask(ListGroupsRequest(), ListGroupsResponse)
    return {one.name: one for one in answer.groups}


async def scrape(server: Server) -> dict[str, float]:
    await server.metrics.prepare()
    lines = text_of(server.metrics, detailed=True).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("tailrace_group"))
    return {name.removeprefix("tailrace_"): float(value) for name, value in pairs}


def test_lag_is_counted_in_records_and_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, clock):
            topic = await client.create("orders")
            for _ in range(10):
                await client.produce(topic, [b"a", b"b"])
                clock.move(1.0)
            await commit(client, "g", committing(topic, 0, 5))
            found = await describe(client)
            one = found.partitions[0]
            assert (one.committed, one.log_start, one.log_end, one.lag_records) == (5, 0, 20, 15)
            assert one.lag_ms == pytest.approx(8_000, abs=900)  # of the third batch
            assert (found.summary.lag_records, found.summary.lag_ms) == (15, one.lag_ms)
            assert (found.summary.state, found.summary.members) == ("empty", 0)
            assert found.summary.drain_ms is None
            assert (found.summary.coordinator, found.summary.topics) == ("n1", ("orders",))
            assert one.committed_at == pytest.approx(clock.wall_ms(), abs=900)
            await commit(client, "g", committing(topic, 0, 20))
            caught_up = await describe(client)
            assert (caught_up.summary.lag_records, caught_up.summary.lag_ms) == (0, 0)
            assert (caught_up.summary.drain_ms, caught_up.summary.verdict) == (0, "ok")

    run(main)


def test_group_that_never_committed_is_behind_by_all_there_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, _):
            topic = await client.create("orders", 2)
            await client.produce(topic, [b"a"] * 7)
            await Member(client, "m").join()
            found = await describe(client)
            assert [one.committed for one in found.partitions] == [None, None]
            assert [one.lag_records for one in found.partitions] == [7, 0]
            assert [one.lag_ms is not None for one in found.partitions] == [True, True]
            assert [one.member_id for one in found.partitions] == ["m", "m"]
            assert found.members[0].client_id == "test"
            assert len(found.members[0].assigned) == 2
            assert (await listed(client))["g"].lag_records == 7

    run(main)


def test_rate_drain_and_verdicts_over_the_window(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (server, client, clock):
            topic = await client.create("orders")
            member = Member(client, "m", session_timeout_ms=300_000)
            await member.join()
            at = 0
            for _ in range(70):
                await client.produce(topic, [b"x"] * 20)
                at += 5
                await member.commit(topic, 0, at)
                clock.move(1.0)
                await server.look_at_groups()
            falling = await first(client)
            assert falling.rate_milli == pytest.approx(5_000, rel=0.05)
            assert (falling.verdict, falling.lag_records) == ("warn", 1_050)
            assert (await describe(client)).summary.drain_ms is None
            for _ in range(30):
                at += 20
                await member.commit(topic, 0, at)
                clock.move(1.0)
                await server.look_at_groups()
            catching_up = await describe(client)
            assert catching_up.summary.lag_records == 450
            assert catching_up.summary.drain_ms == pytest.approx(450 / 20 * 1_000, rel=0.15)
            for _ in range(61):
                clock.move(1.0)
                await server.look_at_groups()
            assert (await first(client)).verdict == "stalled"
            assert (await listed(client))["g"].verdict == "stalled"
            found = await scrape(server)
            assert found['group_verdict{group="g"}'] == 2
            assert found['group_lag_records{group="g",topic="orders"}'] == 450
            assert found['group_lag_seconds{group="g",topic="orders"}'] > 60
            assert found['group_margin_seconds{group="g",topic="orders"}'] == pytest.approx(
                7 * 86_400, rel=0.01
            )
            assert found['group_partition_lag_records{group="g",partition="0",topic="orders"}']

    run(main)


def test_member_was_heard_of_when_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, clock):
            await client.create("orders")
            await Member(client, "m").join()
            (member,) = (await describe(client)).members
            assert member.last_heartbeat == pytest.approx(clock.wall_ms(), abs=5_000)

    run(main)


def test_members_are_counted_after_a_restart_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (server, client, _):
            await client.create("orders")
            await Member(client, "m").join()
            assert (await scrape(server))['group_members{group="g"}'] == 1
        async with watched(tmp_path) as (server, client, _):
            await describe(client)  # it is loaded
            assert (await scrape(server))['group_members{group="g"}'] == 1

    run(main)


def test_deleted_group_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (server, client, clock):
            topic = await client.create("orders")
            await client.produce(topic, [b"a"])
            await commit(client, "g", committing(topic, 0, 1))
            assert "group_verdict" in str(await scrape(server))
            assert 'group="g"' in str(await scrape(server))
            await client.ask(DeleteGroupRequest("g"), DeleteGroupResponse)
            assert 'group="g"' not in str(await scrape(server))
            assert not server.metrics.groups_named.own
            clock.move(2.0)
            assert 'group="g"' not in str(await scrape(server))
            assert await listed(client) == {}

    run(main)


def test_unknown_group_is_told_what_it_may_be(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, _):
            topic = await client.create("orders")
            await commit(client, "billing", committing(topic, 0, 0))
            with pytest.raises(GroupNotFound) as caught:
                await describe(client, "biling")
            assert caught.value.similar == ["billing"]
            assert str(caught.value) == (
                "T043: group 'biling' does not exist. Similar: billing. "
                "List them: tailrace group list"
            )

    run(main)


def test_topics_name_their_readers(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, _):
            orders, refunds = await client.create("orders"), await client.create("refunds")
            await commit(client, "billing", committing(orders, 0, 0))
            await commit(client, "audit", committing(orders, 0, 0))
            await Member(client, "m", group="mail", topics=("refunds",)).join()
            answer, _ = await client.ask(DescribeTopicsRequest(None, False), DescribeTopicsResponse)
            assert {one.topic_id: one.groups for one in answer.topics} == {
                orders: ("audit", "billing"),
                refunds: ("mail",),
            }
            assert (await listed(client)).keys() == {"audit", "billing", "mail"}
            await client.delete("orders")
            assert (await describe(client, "billing")).partitions == ()

    run(main)


def test_reset_is_no_progress(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (server, client, clock):
            topic = await client.create("orders")
            await client.produce(topic, [b"x"] * 1_000)
            await commit(client, "g", committing(topic, 0, 10))
            await server.look_at_groups()
            request = ResetOffsetsRequest("g", (OffsetTarget(topic, 0, 900),), False)
            await client.ask(request, ResetOffsetsResponse)
            clock.move(1.0)
            await server.look_at_groups()
            one = await first(client)
            assert (one.committed, one.rate_milli, one.lag_records) == (900, 0, 100)

    run(main)


def test_loss_is_foreseen_to_the_second_in_which_the_log_start_passes(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (server, client, clock):
            topic = await client.create("orders", retention="60s")

            async def second() -> None:
                await client.produce(topic, [b"x"] * 10)
                clock.move(1.0)
                await server.clean()
                await server.look_at_groups()

            for _ in range(20):
                await second()
            await commit(client, "g", committing(topic, 0, 105))
            for _ in range(12):
                await second()
            one = await first(client)
            assert one.margin_ms is not None
            took = 0
            while (await first(client)).log_start <= 105:
                await second()
                took += 1
            assert took == pytest.approx(one.margin_ms / 1_000, abs=2.0)
            gone = await first(client)
            assert (gone.margin_ms, gone.committed) == (0, 105)
            assert gone.lag_records == gone.log_end - gone.log_start

    run(main)


def test_lag_survives_a_restart_of_the_broker(tmp_path: Path) -> None:
    async def main() -> None:
        async with watched(tmp_path) as (_, client, _):
            topic = await client.create("orders")
            await client.produce(topic, [b"x"] * 100)
            await commit(client, "g", committing(topic, 0, 40))
        async with watched(tmp_path, seconds=1_030.0) as (_, client, _):
            one = await first(client)
            assert (one.committed, one.lag_records, one.verdict) == (40, 60, "ok")
            assert one.lag_ms is not None
            assert one.lag_ms >= 30_000

    run(main)


class ColdFile(OsFile):
    """Nothing of it is in memory until it was read."""

    read_at: ClassVar[list[int]] = []

    def cached(self, position: int, length: int) -> bool:
        return position in ColdFile.read_at

    def read(self, length: int, position: int) -> bytes:
        ColdFile.read_at.append(position)
        return super().read(length, position)


class ColdDisk(OsDisk):
    def open(self, path: str, *, create: bool = False) -> OsFile:
        file = super().open(path, create=create)
        file.__class__ = ColdFile
        return file


def test_time_of_a_cold_record_is_read_for_a_description_and_not_for_a_list(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with watched(tmp_path, disk=ColdDisk()) as (_, client, clock):
            topic = await client.create("orders", retention_size="512KiB")
            for _ in range(100):
                await client.produce(topic, [bytes(1_000)])
                clock.move(0.1)
            await commit(client, "g", committing(topic, 0, 42))
            really = clock.wall_ms() - (NOW_MS + 1_004_200)
            roughly = (await listed(client))["g"].lag_ms
            assert roughly is not None
            assert 0 <= roughly - really <= 500
            assert (await first(client)).lag_ms == pytest.approx(really, abs=2)
            assert (await listed(client))["g"].lag_ms == pytest.approx(really, abs=2)

    ColdFile.read_at.clear()
    run(main)


def test_a_group_of_many_partitions_is_looked_at_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 partitions with lag take 60 ms: nobody's send waits for so long."""
    asked: list[str] = []
    assigned = Ownership.assigned

    def counted(self: Ownership, member_id: str) -> list[tuple[tuple[bytes, int], int]]:
        asked.append(member_id)
        return assigned(self, member_id)

    async def main() -> None:
        async with watched(tmp_path) as (server, client, _):
            await client.create("orders", partitions := 200)
            await Member(client, "m").join()
            node = server._node
            assert node is not None
            group = node.groups.get("g")
            monkeypatch.setattr(Ownership, "assigned", counted)
            for work in (
                lambda: node.lag._watcher.warm(group),
                lambda: node.lag.progress(group),
                lambda: node.lag.describe_group(group),
                lambda: node.lag.list_groups([group]),
                lambda: node.lag.refresh([group]),
                lambda: group_facts(node, "g"),
            ):
                asked.clear()
                assert await turns(work) >= partitions // PARTITIONS_AT_ONCE - 1
                assert len(asked) <= 1

    run(main)


async def turns(work: Callable[[], Awaitable[object]]) -> int:
    """How often others have their turn meanwhile."""
    count = 0

    async def other() -> None:
        nonlocal count
        while True:
            await trio.lowlevel.checkpoint()
            count += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        count = 0
        await work()
        nursery.cancel_scope.cancel()
    return count
