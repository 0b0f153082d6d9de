"""Followers copy their leaders: when acks leave, what is cut off, who is in sync, who is not."""

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from functools import partial
from random import Random
from typing import TypeVar

import trio

from tailrace import Producer
from tailrace.broker.partition import Partition
from tailrace.client.client import Client
from tailrace.protocol.errors import SendTimeout
from tailrace.simulation.world import DATA_DIR
from tailrace.storage.directory import partition_name
from tailrace.storage.log import Log
from tests.broker.cluster_harness import Cluster, clustered
from tests.storage.logs import entries

R = TypeVar("R")
BROKERS = ("n1", "n2", "n3")


def copies(cluster: Cluster, topic: str, number: int = 0) -> dict[str, Partition]:
    """Of the brokers that run."""
    return {name: cluster.partition(name, topic, number) for name in cluster.running}


def equal(cluster: Cluster, topic: str, number: int = 0) -> bool:
    """Whether all copies hold the same bytes."""
    found = [entries(one.log) for one in copies(cluster, topic, number).values()]
    return all(one == found[0] for one in found)


def leader_of(cluster: Cluster, topic: str, number: int = 0) -> str:
    leader = cluster.leader(topic, number)
    assert leader is not None, "nobody leads"
    return leader


def others(cluster: Cluster, topic: str, number: int = 0) -> list[str]:
    leader = leader_of(cluster, topic, number)
    return [name for name in cluster.running if name != leader]


async def in_sync(cluster: Cluster, topic: str, number: int = 0) -> None:
    await cluster.until(lambda: len(cluster.leadership(topic, number).isr) == 3)


async def send_some(client: Client, topic: str, count: int) -> None:
    async with client.producer() as producer:
        for number in range(count):
            await producer.send(topic, b"%d" % number)


def test_acks_leave_when_every_replica_in_sync_has_flushed() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        async with cluster.client() as client, client.producer() as producer:
            for number in range(20):
                await producer.send("orders", b"%d" % number)
                for copy in copies(cluster, "orders").values():
                    assert copy.log.flushed == number + 1

    clustered(main)


def test_a_follower_knows_soon_what_is_committed() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        await trio.sleep(0.2)
        assert {one.high_watermark for one in copies(cluster, "orders").values()} == {2}

    clustered(main)


def test_a_quiet_cluster_says_little() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=60)
        await cluster.send("orders", b"a")
        await trio.sleep(30)
        fetches = cluster.node("n1").metrics.requests.of("fetch", "ok")
        before = fetches.value
        await trio.sleep(60)
        assert fetches.value - before < 40  # two followers, every five seconds
        assert all(len(cluster.leadership("orders", n).isr) == 3 for n in range(60))

    clustered(main)


def test_writes_go_on_when_the_leader_is_gone_and_nothing_acknowledged_is() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        first = leader_of(cluster, "orders")
        async with cluster.client() as client:
            await send_some(client, "orders", 30)
            await cluster.kill(first)
            await send_some(client, "orders", 30)
        assert leader_of(cluster, "orders") != first
        for copy in copies(cluster, "orders").values():
            assert copy.log.flushed == 60
        await cluster.start(first)
        await in_sync(cluster, "orders")
        await cluster.until(lambda: equal(cluster, "orders"))

    clustered(main)


def test_what_only_the_old_leader_had_is_cut_off() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b", b"c")
        first = leader_of(cluster, "orders")
        for name in others(cluster, "orders"):  # it stays alone, with its lease
            cluster.sim.net.cut(first, name)
        async with cluster.sim.client(close_timeout=0.5) as client:
            producer = client.producer(timeout=2.0)
            with suppress(SendTimeout):
                await producer.send("orders", b"lost")
        assert cluster.partition(first, "orders").log.end == 4
        await cluster.kill(first)
        cluster.sim.net.heal()
        await cluster.send("orders", b"d")
        await cluster.start(first)
        await in_sync(cluster, "orders")
        await cluster.until(lambda: equal(cluster, "orders"))
        assert cluster.partition(first, "orders").log.epochs == [(1, 0), (2, 3)]

    clustered(main)


def test_who_does_not_answer_leaves_the_in_sync_set_and_comes_back() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        silent = others(cluster, "orders")[0]
        leader = leader_of(cluster, "orders")
        cluster.sim.net.cut(leader, silent)
        cluster.sim.net.cut(silent, leader)
        async with cluster.client() as client, client.producer() as producer:
            began = trio.current_time()
            await producer.send("orders", b"a")
            assert 5.0 < trio.current_time() - began < 20.0  # replica_lag_max is 10 s
            assert silent not in cluster.leadership("orders", at=leader).isr
            began = trio.current_time()
            await producer.send("orders", b"b")
            assert trio.current_time() - began < 1.0
            cluster.sim.net.heal()
            await cluster.until(lambda: silent in cluster.leadership("orders").isr)
            await producer.send("orders", b"c")
            assert cluster.partition(silent, "orders").log.flushed == 3

    clustered(main)


def test_too_few_in_sync_take_nothing() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        leader = leader_of(cluster, "orders")
        for name in others(cluster, "orders"):
            await cluster.kill(name)
        await cluster.until(lambda: cluster.leadership("orders", at=leader).isr == (leader,))
        async with cluster.client() as client:
            producer = client.producer(timeout=3.0)
            async with producer:
                error = None
                try:
                    await producer.send("orders", b"b")
                except SendTimeout as raised:
                    error = raised
        assert error is not None
        assert "T030" in str(error)
        assert cluster.partition(leader, "orders").log.end == 1

    clustered(main)


def test_a_disk_that_was_exchanged_is_filled_again() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await cluster.send("orders", *(b"%d" % number for number in range(30)))
        await cluster.kill("n2")
        cluster.machine("n2").platter.wipe()
        await cluster.send("orders", *(b"%d" % number for number in range(30)))
        await cluster.start("n2")
        for number in range(3):
            await in_sync(cluster, "orders", number=number)
            await cluster.until(partial(equal, cluster, "orders", number))

    clustered(main)


def test_a_follower_that_is_too_far_behind_begins_where_the_leader_does() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", segment_size="64KiB")
        await cluster.send("orders", b"a")
        behind = others(cluster, "orders")[0]
        await cluster.kill(behind)
        leader = leader_of(cluster, "orders")
        await cluster.until(lambda: behind not in cluster.leadership("orders", at=leader).isr)
        await cluster.send("orders", *(b"%d" % number * 9000 for number in range(30)))
        async with cluster.client() as client:
            await client.admin.delete_records("orders", {0: 20})
        await cluster.start(behind)
        await in_sync(cluster, "orders")
        copy: Log = cluster.partition(behind, "orders").log
        await cluster.until(lambda: copy.start == 20)
        await cluster.until(lambda: equal(cluster, "orders"))

    clustered(main)


def test_a_damaged_copy_is_given_up_and_filled_again() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", segment_size="64KiB")
        await cluster.send("orders", *(Random(n).randbytes(9000) for n in range(20)))
        broken = others(cluster, "orders")[0]
        await cluster.kill(broken)
        name = partition_name(topic.topic_id, 0)
        path = f"{DATA_DIR}/topics/{name}/{0:020}.log"
        path = f"{DATA_DIR}/topics/{name}/{0:020}.log"
        cluster.machine(broken).platter.content(path).flip(30_000, 4)
        await cluster.start(broken)
        copy = cluster.partition(broken, "orders")
        assert len(copy.log.quarantined) == 1
        await cluster.until(lambda: broken not in cluster.leadership("orders").isr)
        await in_sync(cluster, "orders")
        assert copy.log.quarantined == []
        assert equal(cluster, "orders")

    clustered(main, settings={"storage.verify_on_start": "full"})


def test_catching_up_may_be_slow_and_being_in_sync_is_not() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        slow = others(cluster, "orders")[0]
        await cluster.kill(slow)
        leader = leader_of(cluster, "orders")
        await cluster.until(lambda: slow not in cluster.leadership("orders", at=leader).isr)
        noise = [Random(number).randbytes(50_000) for number in range(40)]
        await cluster.send("orders", *noise)
        began = trio.current_time()
        await cluster.start(slow)
        await in_sync(cluster, "orders")
        assert trio.current_time() - began > 5.0  # 2 MB at 256 KiB/s
        began = trio.current_time()
        await cluster.send("orders", *noise)
        assert trio.current_time() - began < 2.0

    clustered(main, settings={"cluster.catch_up_rate": "256KiB"})


async def keep_sending(producer: Producer[bytes, bytes], partition: int) -> None:
    while True:
        await producer.send("orders", b"x", partition=partition)


def test_a_busy_copy_is_in_sync_soon_beside_one_that_takes_long() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=6)
        leader, slow = leader_of(cluster, "orders", 0), others(cluster, "orders", 0)[0]
        busy = next(n for n in range(1, 6) if leader_of(cluster, "orders", n) == leader)

        def in_sync_for(number: int) -> bool:
            return slow in cluster.leadership("orders", number, at=leader).isr

        await cluster.kill(slow)
        await cluster.until(lambda: not in_sync_for(0) and not in_sync_for(busy))
        async with cluster.client() as client, client.producer() as producer:
            for number in range(80):
                await producer.send("orders", Random(number).randbytes(50_000), partition=0)
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(keep_sending, producer, busy)
                await cluster.start(slow)
                await cluster.until(lambda: in_sync_for(busy), seconds=3.0)
                nursery.cancel_scope.cancel()
        assert in_sync_for(busy)
        assert not in_sync_for(0)

    clustered(main, settings={"cluster.catch_up_rate": "256KiB"})


def test_a_consumer_reads_from_the_follower_in_its_rack() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", *(b"%d" % number for number in range(10)))
        near = others(cluster, "orders")[0]
        rack = cluster.view(near).brokers[near].rack
        served = cluster.partition(near, "orders").metrics.bytes_out.value
        async with cluster.sim.client(rack=rack) as client:
            consumer = client.consumer("orders", start="earliest")
            async with consumer:
                found = [record.value async for record in take(consumer, 10)]
                await cluster.send("orders", b"new")
                found += [record.value async for record in take(consumer, 1)]
        assert found == [*(b"%d" % number for number in range(10)), b"new"]
        assert cluster.partition(near, "orders").metrics.bytes_out.value > served

    clustered(main, own={name: {"broker.rack": f"rack {name}"} for name in BROKERS})


async def take(records: AsyncIterable[R], count: int) -> AsyncIterator[R]:
    async for record in records:
        yield record
        count -= 1
        if not count:
            return


def test_a_follower_without_room_rests_and_goes_on_when_there_is_some() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        full = others(cluster, "orders")[0]
        leader = leader_of(cluster, "orders")
        cluster.machine(full).platter.full = True
        async with cluster.client() as client, client.producer() as producer:
            await producer.send("orders", Random(1).randbytes(100_000))
            assert full not in cluster.leadership("orders", at=leader).isr
            assert cluster.partition(full, "orders").log.end == 1
            cluster.machine(full).platter.full = False
            await in_sync(cluster, "orders")
            await producer.send("orders", b"c")
        assert equal(cluster, "orders")

    clustered(main)


def test_a_sync_that_fails_ends_a_follower_like_a_leader() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        broken = others(cluster, "orders")[0]
        cluster.machine(broken).platter.failing_syncs = 1
        await cluster.send("orders", b"b")
        await cluster.until(lambda: not cluster.machine(broken).running)
        assert "T093" in str(cluster.failure(cluster.machine(broken)))
        await cluster.start(broken)
        await in_sync(cluster, "orders")
        await cluster.until(lambda: equal(cluster, "orders"))

    clustered(main)


def test_what_is_synced_after_its_link_changed_is_told_all_the_same() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", min_isr=3)
        await cluster.send("orders", b"a")
        leader, slow = leader_of(cluster, "orders"), others(cluster, "orders")[0]
        log = cluster.partition(slow, "orders").log
        cluster.sim.nodes[slow].pace.stall = 4.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.send, "orders", b"b")
            await cluster.until(lambda: log.end == 2)
            cluster.sim.nodes[slow].pace.stall = 0.0  # but for the sync that is under way
            await cluster.until(lambda: slow not in cluster.leadership("orders", at=leader).isr)
            assert log.flushed == 1
            await in_sync(cluster, "orders")

    clustered(main, settings={"cluster.replica_lag_max": "2s"})


def test_a_cut_that_another_one_came_before_is_asked_about_anew() -> None:
    """One for the leader before was still under way when this one's leader said where to cut."""

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b", b"c")
        [name, *_] = others(cluster, "orders")
        partition = cluster.partition(name, "orders")
        await cluster.until(lambda: partition.log.end == 3)
        link = cluster.node(name).replicator.links[leader_of(cluster, "orders"), True]
        one = link.followed[partition.topic_id, 0]
        async with partition.maintenance:
            for _ in range(2):
                link.cut_soon(one, partial(partition.log.cut_back, 1), committed=True)
        await cluster.until(lambda: not one.busy and partition.log.end == 3)
        await in_sync(cluster, "orders")
        assert equal(cluster, "orders")

    clustered(main)


def test_damage_of_a_quiet_copy_is_filled_from_others_before_it_could_lead() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", segment_size="64KiB")
        await cluster.send("orders", *(Random(n).randbytes(9_000) for n in range(20)))
        await in_sync(cluster, "orders")
        [broken, *_] = others(cluster, "orders")
        copy = cluster.partition(broken, "orders")
        await cluster.until(lambda: copy.log.end == 20)
        path = f"{DATA_DIR}/topics/{partition_name(topic.topic_id, 0)}/{0:020}.log"
        cluster.machine(broken).platter.content(path).flip(30_000, 4)
        await copy.doubt(3, cluster.node(broken).world.offload)
        await cluster.until(lambda: not copy.log.quarantined and copy.log.end == 20)
        await in_sync(cluster, "orders")
        assert equal(cluster, "orders")

    clustered(main)
