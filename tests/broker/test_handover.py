"""A broker that stops gives its leaderships away; one that dies is replaced."""

import trio

from tests.broker.cluster_harness import Cluster, clustered

SESSION_S = 6.0


def leads(cluster: Cluster, broker: str, topic: str, partitions: int) -> list[int]:
    """Partitions of a topic that a broker leads, as somebody else knows it."""
    return [n for n in range(partitions) if cluster.leader(topic, n) == broker]


def test_a_broker_that_stops_hands_its_partitions_over_at_once() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=6)
        await cluster.send("orders", b"a", b"b", b"c")
        epochs = {n: cluster.leadership("orders", n).leader_epoch for n in range(6)}
        led = [n for n in range(6) if cluster.leader("orders", n) == "n3"]
        assert len(led) == 2
        began = trio.current_time()
        await cluster.stop("n3")
        assert trio.current_time() - began < 1.0
        await cluster.until(lambda: "n3" not in cluster.view("n1").brokers)
        assert not leads(cluster, "n3", "orders", 6)
        for number in led:
            assert cluster.leadership("orders", number).leader_epoch == epochs[number] + 1
        assert "draining/n3" not in cluster.keep.entries

    clustered(main)


def test_nobody_notices_a_restart() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        longest, stopped = 0.0, trio.Event()

        async def send() -> None:
            nonlocal longest
            async with cluster.client() as client, client.producer() as producer:
                number = 0
                while not stopped.is_set():
                    began = trio.current_time()
                    await producer.send("orders", b"%d" % number, partition=number % 3)
                    longest = max(longest, trio.current_time() - began)
                    number += 1
                    await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for broker in ("n1", "n2", "n3"):
                await trio.sleep(1)
                await cluster.stop(broker)
                await cluster.start(broker)
                await cluster.until(
                    lambda: all(len(cluster.leadership("orders", n).isr) == 3 for n in range(3))
                )
            stopped.set()
        assert longest < 0.5

    clustered(main)


def test_a_leader_that_dies_is_replaced_when_its_lease_has_ended() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        dead = cluster.leader("orders")
        assert dead is not None
        await cluster.kill(dead)
        began = trio.current_time()
        await cluster.send("orders", b"b")
        assert trio.current_time() - began < SESSION_S + 2.0
        assert cluster.leader("orders") not in (None, dead)
        assert dead not in cluster.leadership("orders").isr
        await cluster.start(dead)
        await cluster.until(lambda: dead in cluster.leadership("orders").isr)
        assert cluster.partition(dead, "orders").log.end == 2

    clustered(main)


def test_the_last_broker_that_stops_keeps_what_it_leads() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        for broker in ("n1", "n2", "n3"):
            await cluster.stop(broker)
        for broker in ("n1", "n2", "n3"):
            await cluster.start(broker)
        await cluster.send("orders", b"b")
        leader = cluster.leader("orders")
        assert leader is not None
        assert cluster.partition(leader, "orders").log.end == 2

    clustered(main)


def test_nothing_waits_for_a_follower_that_stops_while_it_closes_its_logs() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await cluster.send("orders", b"a", b"b", b"c")
        seen: list[bool] = []

        def registered(change: object) -> None:
            gone = "brokers/n2" not in cluster.keep.entries
            if gone and not seen:
                keys = [key for key in cluster.keep.entries if key.startswith("partitions/")]
                isr = [cluster.keep.entries[key].value.split(b'"elr"')[0] for key in keys]
                seen.extend(b'"n2"' in one for one in isr)

        cluster.keep.taps.append(registered)
        await cluster.stop("n2")
        assert seen == [False] * 3

    clustered(main)
