"""What becomes of a leader's answers: which count, and over which link a copy goes on."""

from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any
from unittest.mock import patch

import trio

from tailrace.broker import intake
from tailrace.broker.flusher import Flusher
from tailrace.broker.followed import Followed, FollowedSet
from tailrace.broker.following import cut
from tailrace.broker.isr_keeper import IsrKeeper
from tailrace.broker.partition import Partition
from tailrace.protocol.errors import TailraceError
from tailrace.storage.log import Log
from tailrace.storage.replicating import BeginsBelow, ReplicaPlan
from tests.broker.cluster_harness import Cluster, clustered
from tests.broker.test_replicator import equal, in_sync, leader_of, others


def test_an_answer_that_came_twice_costs_no_rest() -> None:
    """What is named once more while it waits may be answered for both times."""
    refused: list[str] = []

    def stuck(_: FollowedSet, one: Followed, why: str, *rest: object) -> None:
        refused.append(why)

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"first")
        leader = leader_of(cluster, "orders")
        links = [
            cluster.node(name).replicator.links[leader, True] for name in others(cluster, "orders")
        ]
        where = cluster.topic("orders").topic_id, 0
        async with (
            cluster.client() as client,
            client.producer() as producer,
            trio.open_nursery() as nursery,
        ):
            for _ in range(20):
                nursery.start_soon(producer.send, "orders", b"x")
                for link in links:
                    link.ask_again(where)
                    await trio.sleep(0.0005)
                    link.ask_again(where)
                await trio.sleep(0.003)
        await cluster.until(lambda: equal(cluster, "orders"))

    with patch.object(FollowedSet, "stuck", stuck):
        clustered(main)
    assert refused == []


def test_a_copy_that_falls_behind_before_it_is_in_sync_catches_up_again() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        slow, leader = others(cluster, "orders")[0], leader_of(cluster, "orders")
        await cluster.kill(slow)
        await cluster.until(lambda: slow not in cluster.leadership("orders", at=leader).isr)
        await cluster.send("orders", b"missed")
        with patch.object(IsrKeeper, "_wanted", nobody):
            await cluster.start(slow)
            copy, links = cluster.partition(slow, "orders"), cluster.node(slow).replicator.links
            where = copy.topic_id, copy.number
            await cluster.until(lambda: copy.following.near)
            assert where in links[leader, True].followed
            cluster.machine(slow).platter.full = True
            await cluster.send("orders", *(Random(n).randbytes(50_000) for n in range(30)))
            cluster.machine(slow).platter.full = False
            await cluster.until(lambda: not copy.following.near)
            assert where in links[leader, False].followed
            assert where not in links[leader, True].followed
        await in_sync(cluster, "orders")
        await cluster.until(partial(equal, cluster, "orders"))

    with patch.object(intake, "NEAR_BYTES", 100_000):
        clustered(main, settings={"cluster.catch_up_rate": "256KiB"})


def nobody(_: IsrKeeper, due: Iterable[Partition]) -> Iterable[Partition]:
    """Joins or leaves an in-sync set."""
    return []


def test_only_what_catches_up_gives_way_to_rounds_of_sync() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        late = others(cluster, "orders")[0]
        await cluster.kill(late)
        await cluster.send("orders", b"c")
        assert gave_way == 0
        cluster.machine(late).platter.wipe()
        await cluster.start(late)
        await in_sync(cluster, "orders")
        assert gave_way > 0
        before = gave_way
        await cluster.send("orders", b"d")
        assert gave_way == before

    gave_way, real = 0, Flusher.give_way

    async def counted(flusher: Flusher) -> None:
        nonlocal gave_way
        gave_way += 1
        await real(flusher)

    with patch.object(Flusher, "give_way", counted):
        clustered(main)


def test_a_cut_that_finds_no_room_is_made_when_there_is_some() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b", b"c")
        [name, *_] = others(cluster, "orders")
        copy = cluster.partition(name, "orders")
        await cluster.until(lambda: copy.log.flushed == 3)
        link = cluster.node(name).replicator.links[leader_of(cluster, "orders"), True]
        one = link.followed[copy.topic_id, 0]
        for work in (partial(copy.log.cut_back, 1), partial(copy.log.reset_to, 0)):
            cluster.machine(name).platter.full = True
            link.cut_soon(one, work, committed=True)
            await cluster.until(lambda: not one.busy)
            assert copy.serving
            assert (copy.log.end, copy.log.flushed) == (3, 3)
            cluster.machine(name).platter.full = False
            link.cut_soon(one, work, committed=True)
            await cluster.until(lambda: not one.busy and copy.log.end < 3)
            await cluster.until(lambda: copy.log.flushed == 3)
        await in_sync(cluster, "orders")
        assert equal(cluster, "orders")

    clustered(main)


async def near(cluster: Cluster, name: str, leader: str) -> None:
    """Let a broker miss something and return, until its copy goes with those in sync."""
    await cluster.kill(name)
    await cluster.until(lambda: name not in cluster.leadership("orders", at=leader).isr)
    await cluster.send("orders", b"missed")
    await cluster.start(name)
    await cluster.until(lambda: cluster.partition(name, "orders").following.near)


def move(cluster: Cluster, copy: Partition, *, to_near: bool) -> None:
    """Let the other link of its leader copy it from now on."""
    copy.following.near = to_near
    node = cluster.node(copy.broker_id)
    node.replicator.look(node.views.view)


def test_what_is_cut_while_its_link_changes_is_told_over_the_new_one() -> None:
    ends: list[int] = []

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        leader, name = leader_of(cluster, "orders"), others(cluster, "orders")[0]
        with patch.object(IsrKeeper, "_wanted", nobody):
            await near(cluster, name, leader)
            copy = cluster.partition(name, "orders")

            async def late(partition: Partition, *given: Any) -> TailraceError | None:
                move(cluster, partition, to_near=False)
                await trio.sleep(0.5)
                error = await cut(partition, *given)
                ends.append(partition.log.end)
                return error

            link = cluster.node(name).replicator.links[leader, True]
            one = link.followed[copy.topic_id, 0]
            with patch.object(intake, "cut", late):
                link.cut_soon(one, partial(copy.log.cut_back, 1), committed=True)
                await cluster.until(lambda: ends == [1])
            await cluster.until(lambda: copy.log.end == 3, seconds=2.0)
            assert equal(cluster, "orders")

    clustered(main)


def test_an_answer_to_a_link_that_lost_its_copy_meanwhile_cuts_nothing() -> None:
    real_pause, real_plan = Flusher.give_way, Log.plan_replica
    moved = False

    def plan(log: Log, *given: Any, **named: Any) -> ReplicaPlan:
        if moved:
            raise BeginsBelow(1, log.end)
        return real_plan(log, *given, **named)

    async def main(cluster: Cluster) -> None:
        async def pause(flusher: Flusher) -> None:
            nonlocal moved
            copy = cluster.partition(name, "orders")
            if not copy.following.near:
                move(cluster, copy, to_near=True)
                await cluster.until(lambda: copy.log.end == 3)
                moved = True
            await real_pause(flusher)

        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        leader, name = leader_of(cluster, "orders"), others(cluster, "orders")[0]
        with (
            patch.object(IsrKeeper, "_wanted", nobody),
            patch.object(Flusher, "give_way", pause),
            patch.object(Log, "plan_replica", plan),
        ):
            await near(cluster, name, leader)
            await cluster.until(lambda: moved)
            await trio.sleep(1.0)
            assert cluster.partition(name, "orders").log.end == 3

    clustered(main)
