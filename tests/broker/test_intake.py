"""What becomes of a leader's answers: which count, and over which link a copy goes on."""

from collections.abc import Iterable
from functools import partial
from random import Random
from unittest.mock import patch

import trio

from tailrace.broker import intake
from tailrace.broker.flusher import Flusher
from tailrace.broker.followed import Followed, FollowedSet
from tailrace.broker.isr_keeper import IsrKeeper
from tailrace.broker.partition import Partition
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
