"""Copies that are not to be here any more go, and nothing waits for that: on virtual time."""

from dataclasses import replace

import trio

from tailrace.broker.catalog import DELETED
from tests.broker.cluster_harness import Cluster, clustered


async def created(cluster: Cluster, topic: str, partitions: int = 1) -> bytes:
    """A topic that everybody has opened; its id."""
    made = await cluster.create(topic, partitions)
    await cluster.until(
        lambda: all(
            cluster.held(broker, topic, number)
            for number in range(partitions)
            for broker in cluster.running
        )
    )
    return made.topic_id


def test_a_copy_that_is_wanted_elsewhere_goes_with_its_directory() -> None:
    async def main(cluster: Cluster) -> None:
        topic_id = await created(cluster, "orders")
        leader = cluster.leader("orders")
        [gone, *_] = [one for one in cluster.running if one != leader]
        made = cluster.topic("orders")
        [record] = made.partitions
        kept = tuple(broker for broker in record.replicas if broker != gone)
        wanted = replace(made, partitions=(replace(record, replicas=kept),))
        await cluster.node("n1").registry.update(wanted)  # the controller does the rest
        await cluster.until(lambda: not cluster.held(gone, "orders"), seconds=10.0)
        await cluster.until(lambda: not cluster.directories(gone, topic_id), seconds=1.0)
        assert cluster.knows(gone, "orders")
        assert all(cluster.directories(broker, topic_id) == 1 for broker in kept)

    clustered(main)


def test_nothing_waits_for_a_copy_that_is_being_rewritten_when_it_goes() -> None:
    async def main(cluster: Cluster) -> None:
        topic_id = await created(cluster, "orders")
        partition, over = cluster.partition("n1", "orders"), trio.Event()

        async def rewrite(task_status: trio.TaskStatus[None]) -> None:
            async with partition.maintenance:
                task_status.started()
                await over.wait()

        async with trio.open_nursery() as nursery:
            await nursery.start(rewrite)
            await cluster.node("n2").topics.delete("orders")
            await cluster.until(lambda: not cluster.knows("n1", "orders"), seconds=5.0)
            await created(cluster, "more", partitions=3)
            assert "n1" in {cluster.leader("more", number) for number in range(3)}
            await trio.sleep(30)
            assert cluster.directories("n1", topic_id) == 1
            over.set()
        await cluster.until(lambda: not cluster.directories("n1", topic_id), seconds=5.0)
        await cluster.until(
            lambda: not any(key.startswith(DELETED) for key in cluster.keep.entries)
        )

    clustered(main)


def test_a_directory_of_a_topic_that_went_without_a_word_is_left_alone() -> None:
    async def main(cluster: Cluster) -> None:
        topic_id = await created(cluster, "orders")
        entry = cluster.keep.entries["topics/orders"]
        cluster.keep.transact([], {}, ["topics/orders"], None)
        await cluster.until(
            lambda: not any(cluster.knows(one, "orders") for one in cluster.running)
        )
        assert [cluster.directories(one, topic_id) for one in cluster.running] == [1, 1, 1]
        cluster.keep.transact([], {"topics/orders": entry.value}, [], None)
        await cluster.until(lambda: all(cluster.held(one, "orders") for one in cluster.running))

    clustered(main)


def test_leftovers_of_a_creation_go_after_a_while() -> None:
    async def main(cluster: Cluster) -> None:
        key = f"partitions/{bytes(16).hex()}/0"
        value = b'{"leader":"n1","leader_epoch":0,"isr":["n1"],"elr":[],"replicas":["n1"]}'
        cluster.keep.transact([], {key: value}, [], None)
        await trio.sleep(30)
        assert key in cluster.keep.entries  # somebody may be about to complete it
        await cluster.until(lambda: key not in cluster.keep.entries, seconds=180.0)
        assert not any(cluster.directories(one, bytes(16)) for one in cluster.running)

    clustered(main)
