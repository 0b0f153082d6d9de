"""Brokers do what the metadata store says: three of them, on virtual time."""

from functools import partial
from unittest.mock import patch

import pytest
import trio

from tailrace.broker import members
from tailrace.broker.catalog import DELETED
from tailrace.broker.controller import Controller
from tailrace.broker.local import LocalCaller
from tailrace.protocol import texts
from tailrace.protocol.errors import MetadataUnavailable, NotLeader, from_wire
from tailrace.protocol.messages import (
    OFFSET_LATEST,
    ListOffsetsRequest,
    ListOffsetsResponse,
    OffsetFound,
    OffsetQuery,
)
from tests.broker.cluster_harness import Cluster, clustered

BROKERS = ("n1", "n2", "n3")


async def opened(cluster: Cluster, topic: str, partitions: int = 1) -> None:
    """Wait until everybody has a copy, and knows its role."""

    def everywhere() -> bool:
        return all(
            cluster.held(broker, topic, number)
            and cluster.partition(broker, topic, number).role != "none"
            for number in range(partitions)
            for broker in cluster.running
        )

    await cluster.until(everywhere)


def test_a_topic_is_opened_by_all_its_replicas_and_led_by_one() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", partitions=3)
        assert {len(one.replicas) for one in topic.partitions} == {3}
        leaders = [cluster.leader("orders", number) for number in range(3)]
        assert sorted(filter(None, leaders)) == ["n1", "n2", "n3"]
        await opened(cluster, "orders", 3)
        for number, leader in enumerate(leaders):
            for broker in BROKERS:
                role = cluster.partition(broker, "orders", number).role
                assert role == ("leader" if broker == leader else "follower")
        assert cluster.leadership("orders").leader_epoch == 1
        assert cluster.leadership("orders").isr == topic.partitions[0].replicas

    clustered(main)


def test_what_is_sent_to_the_leader_is_on_every_replica() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", *(b"%d" % number for number in range(20)))
        await cluster.until(
            lambda: {cluster.partition(broker, "orders").log.end for broker in BROKERS} == {20}
        )

    clustered(main)


def test_who_does_not_lead_says_who_does() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", replicas=1)
        leader = cluster.leader("orders")
        for broker in set(BROKERS) - {leader}:
            node = cluster.node(broker)
            await cluster.until(partial(cluster.knows, broker, "orders"))
            with pytest.raises(NotLeader, match=f"broker {leader} does"):
                node.shelf.find(topic.topic_id, 0)
            assert not cluster.held(broker, "orders")

    clustered(main)


def test_a_leader_that_restarts_leads_in_a_new_epoch() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", replicas=1)
        leader = cluster.leader("orders")
        assert leader is not None
        await cluster.send("orders", b"a")
        await cluster.kill(leader)
        await cluster.start(leader)
        assert cluster.leadership("orders", at=leader).leader_epoch == 2
        assert cluster.partition(leader, "orders").role == "leader"
        await cluster.send("orders", b"b")
        assert cluster.partition(leader, "orders").log.end == 2

    clustered(main)


def test_a_topic_that_was_deleted_leaves_nothing() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", partitions=3)
        await opened(cluster, "orders", 3)
        await cluster.node("n2").topics.delete("orders")
        again = await cluster.create("orders")
        assert again.topic_id != topic.topic_id
        await cluster.until(
            lambda: not any(key.startswith(DELETED) for key in cluster.keep.entries)
        )
        assert not any(topic.topic_id.hex() in key for key in cluster.keep.entries)
        for broker in BROKERS:
            assert not cluster.directories(broker, topic.topic_id)

    clustered(main)


def test_a_broker_that_was_away_removes_what_was_deleted_meanwhile() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders")
        await opened(cluster, "orders")
        await cluster.kill("n3")
        await cluster.node("n1").topics.delete("orders")
        assert cluster.directories("n3", topic.topic_id) == 1
        assert any(key.startswith(DELETED) for key in cluster.keep.entries)
        await cluster.start("n3")
        await cluster.until(
            lambda: not any(key.startswith(DELETED) for key in cluster.keep.entries)
        )
        assert cluster.directories("n3", topic.topic_id) == 0

    clustered(main)


def test_a_copy_that_is_gone_leaves_the_isr_and_is_filled_again() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a", b"b")
        [lost] = [one for one in BROKERS if one != cluster.leader("orders")][:1]
        await cluster.until(lambda: cluster.partition(lost, "orders").log.end == 2)
        await cluster.stop(lost)
        await cluster.start(lost)
        await cluster.until(lambda: lost in cluster.leadership("orders").isr)
        await cluster.stop(lost)
        cluster.lose_directory(lost, "orders")
        await cluster.start(lost)
        await cluster.until(lambda: cluster.partition(lost, "orders").log.end == 2)
        await cluster.until(lambda: lost in cluster.leadership("orders", at=lost).isr)

    clustered(main)


def test_the_last_copy_that_is_gone_is_told_and_never_started_empty() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", replicas=1)
        leader = cluster.leader("orders")
        assert leader is not None
        await cluster.kill(leader)
        cluster.lose_directory(leader, "orders", topic.topic_id)
        await cluster.start(leader)
        assert not cluster.held(leader, "orders")
        assert cluster.node(leader).metrics.data_loss_possible.value == 1
        assert cluster.directories(leader, topic.topic_id) == 0

    clustered(main)


def test_settings_of_a_topic_hold_at_every_replica() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await opened(cluster, "orders")
        await cluster.node("n3").topics.alter("orders", {"retention": "1h"})
        copies = [cluster.partition(broker, "orders") for broker in BROKERS]
        await cluster.until(lambda: {one.config.retention_ms for one in copies} == {3_600_000})

    clustered(main)


def test_a_topic_is_made_at_two_brokers_at_once_and_there_is_one() -> None:
    async def main(cluster: Cluster) -> None:
        found: set[bytes] = set()

        async def make(broker: str) -> None:
            topic, _ = await cluster.node(broker).topics.create("orders", exist_ok=True)
            found.add(topic.topic_id)

        async with trio.open_nursery() as nursery:
            for broker in BROKERS:
                nursery.start_soon(make, broker)
        assert len(found) == 1

    clustered(main)


def test_nothing_is_changed_while_the_store_is_away() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        cluster.keep.down = True
        with pytest.raises(MetadataUnavailable):
            await cluster.create("more")
        cluster.keep.down = False
        await cluster.create("others")
        assert cluster.topic("others")

    clustered(main)


def test_a_leader_whose_log_fails_gives_the_lead_up_at_once() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await cluster.send("orders", b"a")
        broken = cluster.leader("orders")
        assert broken is not None
        await cluster.until(lambda: cluster.view(broken).controller is not None)
        reason = "a write failed"
        partition = cluster.partition(broken, "orders")
        partition.fail(texts.partition_offline("orders", 0, reason=reason))
        await cluster.until(lambda: cluster.leader("orders") not in (None, broken), seconds=1.0)
        assert broken not in cluster.leadership("orders").isr
        await cluster.send("orders", b"b")

    clustered(main)


def test_the_only_copy_stays_where_it_failed() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", replicas=1)
        broken = cluster.leader("orders")
        assert broken is not None
        error = texts.partition_offline("orders", 0, reason="a write failed")
        cluster.partition(broken, "orders").fail(error)
        await trio.sleep(1)
        assert cluster.leader("orders") == broken

    clustered(main)


def test_for_want_of_room_nobody_steps_aside_for_a_broker_that_is_gone() -> None:
    """That one may have none of it: it was away already when the topic was made, say."""

    async def looks_away(_: Controller) -> None:
        await trio.lowlevel.checkpoint()

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", min_isr=1)
        await opened(cluster, "orders")
        leader = cluster.leader("orders")
        assert leader is not None, "somebody leads"
        gone, full = (name for name in BROKERS if name != leader)
        with patch.object(Controller, "_look", looks_away):
            await cluster.kill(gone)
            for number, lease in list(cluster.keep.leases.items()):
                if members.BROKERS + gone in lease.keys:
                    cluster.keep.end_lease(number)
            await cluster.until(lambda: not cluster.view(full).alive(gone))
            assert gone in cluster.leadership("orders", at=full).isr
            cluster.machine(full).platter.full = True
            await cluster.stop(leader)
            await cluster.until(lambda: cluster.node(full).shelf.wanting)
            await trio.sleep(1.0)
            assert cluster.leader("orders") == full
        cluster.machine(full).platter.full = False
        await cluster.send("orders", b"a")

    clustered(main)


def test_a_leader_without_a_lease_says_nothing_of_its_offsets() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders")
        leader = cluster.leader("orders")
        assert leader is not None
        query = ListOffsetsRequest(0, (OffsetQuery(topic.topic_id, 0, OFFSET_LATEST),))

        async def latest() -> OffsetFound:
            answer, _ = await LocalCaller(cluster.node(leader), "test").ask(query, bytearray())
            assert isinstance(answer, ListOffsetsResponse)
            return answer.results[0]

        await cluster.send("orders", b"a")
        assert (await latest()).offset == 1
        cluster.machine(leader).link.cut_there = True
        await cluster.until(lambda: not cluster.node(leader).session.valid())
        error = (await latest()).error
        assert error is not None
        assert isinstance(from_wire(error), MetadataUnavailable)

    clustered(main)
