"""Groups move with the lead of their partition of ``__offsets``: one real broker, whose lead comes
and goes by hand."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.coordinator import OFFSETS
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.broker.replica import Replica
from tailrace.protocol.errors import CoordinatorLoading, NotLeader, TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeGroupRequest,
    DescribeGroupResponse,
    HeartbeatResponse,
    ListGroupsRequest,
    ListGroupsResponse,
)
from tests.broker.harness import Client, Settings, connected, run, serving
from tests.broker.members import Member, commit, committed, committing, find, loaded

AT_ONCE: Settings = {"group.assign_delay": "0ms", "group.session_timeout_min": "100ms"}


@dataclass
class Lead:
    """Of the partition of ``__offsets`` that has the group ``g``."""

    node: Node
    partition: Partition
    orders: bytes  # the id of a topic with two partitions

    def lose(self) -> None:
        leadership = self.partition.leadership
        epoch = leadership.leader_epoch + 1
        self.partition.follow(replace(leadership, leader="n2", leader_epoch=epoch))

    async def take(self) -> None:
        leadership = self.partition.leadership
        epoch = leadership.leader_epoch + 1
        mine = replace(leadership, leader="n1", leader_epoch=epoch)
        await self.node.shelf.lead({(self.partition.topic_id, self.partition.number): mine})
        self.tell()

    def tell(self) -> None:
        """The metadata store has told."""
        self.node.groups.leads_changed()


@asynccontextmanager
async def leading(tmp_path: Path) -> AsyncGenerator[tuple[Lead, Client]]:
    async with serving(tmp_path, AT_ONCE) as (server, ready), connected(ready) as client:
        orders = await client.create("orders", 2)
        number = (await find(client)).partition
        node = server._node  # pyright: ignore[reportPrivateUsage]
        assert node is not None
        offsets = node.topics.catalog.by_name[OFFSETS]
        partition = node.shelf.get(offsets.topic_id, number)
        assert partition is not None
        yield Lead(node, partition, orders), client


def test_whoever_waits_at_a_coordinator_that_loses_the_lead_looks_for_another(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            held = await client.send(member.request(wait_ms=30_000))
            await member.commit(lead.orders, 0, 1)  # so that the heartbeat is there, too
            lead.lose()
            lead.tell()
            answer = await client.wait(held)
            assert isinstance(answer.message, NotLeader)

    run(main)


def test_every_request_about_a_group_that_is_elsewhere_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            lead.lose()  # nobody has told the coordinator
            elsewhere = "broker n1 does not lead __offsets.*broker n2 does"
            with pytest.raises(NotLeader, match=elsewhere):
                await member.beat()
            with pytest.raises(NotLeader, match=elsewhere):
                await member.commit(lead.orders, 0, 1)
            with pytest.raises(NotLeader, match=elsewhere):
                await committed(client, "g")
            for request, kind in (
                (DescribeGroupRequest("g"), DescribeGroupResponse),
                (DeleteGroupRequest("g"), DeleteGroupResponse),
            ):
                with pytest.raises(NotLeader, match=elsewhere):
                    await client.ask(request, kind)
            listed, _ = await client.ask(ListGroupsRequest(), ListGroupsResponse)
            assert listed.groups == ()  # of the groups that are coordinated here

    run(main)


def test_a_commit_in_hand_when_the_lead_goes_is_not_acknowledged(tmp_path: Path) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            since = member.owned[lead.orders, 0]
            lead.partition.replica._halted = True  # pyright: ignore[reportPrivateUsage]
            request = CommitOffsetsRequest("g", "m1", (committing(lead.orders, 0, 7, since),))
            waiting = await client.send(request)
            with trio.move_on_after(0.05):
                await client.wait(waiting)
            assert waiting not in client.answers  # written, and not on all in-sync replicas
            lead.lose()
            lead.tell()
            answer = await client.wait(waiting)
            assert isinstance(answer.message, TailraceError)
            assert answer.message.code == "T032"

    run(main)


def test_whoever_takes_the_lead_knows_all_that_was_committed_and_who_is_there(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            assert (await member.commit(lead.orders, 0, 41)).error is None
            lead.lose()
            lead.tell()
            await lead.take()
            assert await loaded(client, "g") == {(lead.orders, 0): 41}
            told = await member.beat()  # its session goes on
            assert isinstance(told, HeartbeatResponse)
            assert told.members == 1
            assert member.numbers == [0, 1]
            assert (await member.commit(lead.orders, 0, 42)).error is None

    run(main)


def test_a_lead_taken_again_before_anybody_looked_is_another_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            assert (await commit(client, "g", committing(lead.orders, 0, 5))).error is None
            before = lead.node.groups.get("g")
            lead.lose()
            await lead.take()
            assert await loaded(client, "g") == {(lead.orders, 0): 5}
            assert lead.node.groups.get("g") is not before

    run(main)


def test_nothing_is_answered_before_all_that_was_acknowledged_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: a new leader's high watermark may lag."""

    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            assert (await commit(client, "g", committing(lead.orders, 0, 5))).error is None
            lead.lose()
            lead.tell()
            replica = lead.partition.replica
            reached, replica.high_watermark = replica.high_watermark, 0
            with monkeypatch.context() as lagging:
                lagging.setattr(Replica, "observe_own", _never_rises)
                await lead.take()
                for _ in range(5):
                    with pytest.raises(CoordinatorLoading):
                        await committed(client, "g")
            lead.partition.advance()
            assert replica.high_watermark == reached
            assert await loaded(client, "g") == {(lead.orders, 0): 5}

    run(main)


def _never_rises(replica: Replica, end: int, flushed: int) -> bool:
    return False


def test_without_a_lease_nothing_is_answered_and_nobody_is_late(tmp_path: Path) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member, patient = Member(client, "m1", session_timeout_ms=300), Member(client, "m2")
            await member.join()
            await patient.beat()
            await member.join()
            await patient.join()
            held = await client.send(patient.request(wait_ms=30_000))
            groups = lead.node.groups
            groups._valid = lambda: False  # pyright: ignore[reportPrivateUsage]
            answer = await client.wait(held)
            assert isinstance(answer.message, NotLeader)
            for _ in range(10):  # for longer than its session
                with pytest.raises(NotLeader, match="the leader is not known"):
                    await committed(client, "g")
                await trio.sleep(0.05)
            groups._valid = lambda: True  # pyright: ignore[reportPrivateUsage]
            assert (await member.beat()).members == 2

    run(main)


def test_a_lead_that_is_handed_over_takes_nothing_more_and_may_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            assert (await member.commit(lead.orders, 0, 41)).error is None
            held = await client.send(member.request(wait_ms=30_000))
            lead.partition.freeze()
            lead.tell()
            assert isinstance((await client.wait(held)).message, NotLeader)
            with pytest.raises(NotLeader):
                await member.commit(lead.orders, 0, 42)
            lead.partition.thaw()  # nobody took it
            assert await loaded(client, "g") == {(lead.orders, 0): 41}
            assert (await member.beat()).members == 1

    run(main)


def test_what_was_being_written_when_a_lead_went_and_came_back_is_not_missed(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with leading(tmp_path) as (lead, client):
            member = Member(client, "m1")
            await member.join()
            replica = lead.partition.replica
            replica._halted = True  # pyright: ignore[reportPrivateUsage]
            since = member.owned[lead.orders, 0]
            request = CommitOffsetsRequest("g", "m1", (committing(lead.orders, 0, 7, since),))
            waiting = await client.send(request)
            with trio.move_on_after(0.05):
                await client.wait(waiting)
            lead.partition.freeze()
            lead.tell()
            lead.partition.thaw()
            with pytest.raises(CoordinatorLoading):
                await committed(client, "g")
            replica._halted = False  # pyright: ignore[reportPrivateUsage]
            lead.partition.advance()
            answer = await client.wait(waiting)
            assert isinstance(answer.message, CommitOffsetsResponse)
            assert await loaded(client, "g") == {(lead.orders, 0): 7}

    run(main)
