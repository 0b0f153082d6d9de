"""Brokers do what the metadata store says: three of them, on virtual time."""

from tests.broker.cluster_harness import Cluster, clustered


def test_a_topic_is_opened_by_all_its_replicas_and_led_by_one() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", partitions=3)
        assert {len(one.replicas) for one in topic.partitions} == {3}
        leaders = [cluster.leader("orders", number) for number in range(3)]
        assert sorted(filter(None, leaders)) == ["n1", "n2", "n3"]
        for number, leader in enumerate(leaders):
            for broker in ("n1", "n2", "n3"):
                await cluster.until(
                    lambda b=broker, n=number: cluster.partition(b, "orders", n).role != "none"
                )
                role = cluster.partition(broker, "orders", number).role
                assert role == ("leader" if broker == leader else "follower")
        assert cluster.leadership("orders").leader_epoch == 1
        assert cluster.leadership("orders").isr == topic.partitions[0].replicas

    clustered(main)


def test_what_is_sent_to_the_leader_is_on_every_replica() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        async with cluster.client() as client, client.producer() as producer:
            for number in range(20):
                await producer.send("orders", b"%d" % number)
        for broker in ("n1", "n2", "n3"):
            await cluster.until(lambda b=broker: cluster.partition(b, "orders").log.end == 20)

    clustered(main)
