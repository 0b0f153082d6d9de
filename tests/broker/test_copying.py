"""What a leader makes of the fetches of its followers."""

from collections.abc import Sequence
from functools import partial

import trio

from tailrace.broker.limits import FETCHES_OWED_MAX
from tailrace.broker.partition import Partition
from tailrace.broker.peer import Channel, Reply
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse
from tests.broker.cluster_harness import Cluster, clustered
from tests.broker.test_replicator import leader_of, others


def test_an_old_request_that_comes_late_over_another_connection_is_put_right() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders")
        await cluster.send("orders", b"a", b"b", b"c")
        leader, name = leader_of(cluster, "orders"), others(cluster, "orders")[0]
        led, node = cluster.partition(leader, "orders"), cluster.node(name)
        known = led.replica.followers
        await cluster.until(lambda: known[name].flushed == 3)
        at = node.views.view.brokers[leader].at(node.config.cluster.peer_listener)
        assert at is not None
        channel = await node.peers.dial(at)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.read)
            epoch = led.leadership.leader_epoch
            old = FetchPartition(
                *(topic.topic_id, 0, 0, 1, epoch),
                last_fetched_epoch=-1,
                flushed_end=0,
                high_watermark=0,
            )
            request = FetchRequest(60_000, 1, 1, 0, name, node.broker_epoch, (old,), None, 0)
            told = trio.Event()
            await channel.send(request, told.set)
            await told.wait()
            await cluster.until(lambda: known[name].flushed == 3, seconds=1.0)
            assert known[name].end == 3
            nursery.cancel_scope.cancel()
        channel.close()

    clustered(main)


def test_what_was_on_its_way_when_a_follower_told_of_less_does_not_count() -> None:
    """Over its older connection requests come yet that were sent before that; what is sent after
    its leader's refusal was heard counts again."""

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b", b"c")
        leader, name = leader_of(cluster, "orders"), others(cluster, "orders")[0]
        led = cluster.partition(leader, "orders")
        known = led.replica.followers[name]
        await cluster.until(lambda: known.flushed == 3)
        await cluster.node(name).replicator.stop()
        async with trio.open_nursery() as nursery:
            older, newer = [await connected(cluster, name, leader, nursery) for _ in range(2)]
            ask = partial(fetched, cluster, name, led)
            replies = [await ask(older, 0, 3)]
            await cluster.until(lambda: replies[0].arrived)  # the older one waits for nothing now
            assert codes(replies) == [None]
            waits = await ask(newer, 0, 0)
            await cluster.until(lambda: known.end == 0)
            for sequence in range(1, FETCHES_OWED_MAX + 1):
                replies.append(await ask(older, sequence, 3))
                await trio.sleep(0.1)
                assert known.end == 0
            assert codes(replies[1:]) == [45] * FETCHES_OWED_MAX
            await ask(older, FETCHES_OWED_MAX + 1, 3)
            await cluster.until(lambda: known.end == 3)
            assert waits.arrived
            nursery.cancel_scope.cancel()

    clustered(main)


async def connected(cluster: Cluster, name: str, to: str, nursery: trio.Nursery) -> Channel:
    node = cluster.node(name)
    at = node.views.view.brokers[to].at(node.config.cluster.peer_listener)
    assert at is not None, "it is there"
    channel = await node.peers.dial(at)
    nursery.start_soon(channel.read)
    return channel


async def fetched(
    cluster: Cluster, name: str, led: Partition, channel: Channel, sequence: int, end: int
) -> Reply:
    """Say that the copy ends there, and wait for no answer."""
    epoch = led.leadership.leader_epoch
    asked = FetchPartition(
        *(led.topic_id, led.number, end, 1, epoch),
        last_fetched_epoch=epoch if end else -1,
        flushed_end=end,
        high_watermark=-1 if sequence == 0 else 0,
    )
    broker_epoch = cluster.node(name).broker_epoch
    request = FetchRequest(60_000, 1, 1, 0, name, broker_epoch, (asked,), None, sequence)
    return await channel.send(request, lambda: None)


def codes(replies: Sequence[Reply]) -> list[int | None]:
    """Of the errors in them, one each."""
    found: list[int | None] = []
    for reply in replies:
        assert isinstance(reply.outcome, FetchResponse), "it was answered"
        [result] = reply.outcome.results
        found.append(result.error.code if result.error else None)
    return found
