"""What a leader makes of the fetches of its followers."""

import trio

from tailrace.broker.asking import address_of
from tailrace.broker.peer import dial
from tailrace.protocol.messages import FetchPartition, FetchRequest
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
        at = address_of(node.views.view.brokers[leader], node.config.cluster.peer_listener)
        assert at is not None
        channel = await dial(node.world.net, name, node.cluster_id, at)
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
