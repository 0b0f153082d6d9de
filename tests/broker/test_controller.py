"""The controller replaces leaders that are gone, moves copies, and gives leaders back."""

import trio

from tailrace.broker import placement
from tailrace.broker.catalog import partition_key
from tailrace.broker.controller import CALM_S, GRACE_S
from tailrace.broker.members import DRAINS
from tests.broker.cluster_harness import Cluster, clustered

SESSION_S = 6.0


def leaders(cluster: Cluster, topic: str, partitions: int) -> list[str | None]:
    return [cluster.leader(topic, number) for number in range(partitions)]


def controller(cluster: Cluster) -> str | None:
    return cluster.view(cluster.running[0]).controller


async def led_by_others(cluster: Cluster, topic: str, partitions: int, gone: str) -> float:
    """Wait until nobody waits for a broker that is gone; the seconds it took."""
    began = trio.current_time()
    await cluster.until(
        lambda: not {None, gone} & set(leaders(cluster, topic, partitions)), seconds=30
    )
    return trio.current_time() - began


async def target(cluster: Cluster, topic: str, *targets: str) -> None:
    """As an operator wants it: 'n1 n2' for partition 0, and so on."""
    node = cluster.node(cluster.running[0])
    await node.views.now()
    known = node.topics.find(topic)
    wanted = {number: one.split() for number, one in enumerate(targets)}
    await node.registry.update(placement.retargeted(known, wanted))


def test_a_leader_that_is_killed_is_replaced_when_its_lease_ends() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=6)
        await cluster.send("orders", b"a", b"b", b"c")
        await cluster.until(lambda: controller(cluster) is not None)
        victim = next(one for one in cluster.running if one != controller(cluster))
        led = [n for n in range(6) if cluster.leader("orders", n) == victim]
        await cluster.kill(victim)
        assert await led_by_others(cluster, "orders", 6, victim) <= SESSION_S + 2
        for number in range(6):
            one = cluster.leadership("orders", number)
            assert victim not in one.isr
            assert one.leader_epoch == (2 if number in led else 1)
            assert len(one.isr) == 2
        await cluster.send("orders", *(b"d" for _ in range(6)))

    clustered(main)


def test_a_controller_that_is_killed_is_replaced_as_well() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await cluster.until(lambda: controller(cluster) is not None)
        victim = controller(cluster)
        assert victim is not None
        await cluster.kill(victim)
        assert await led_by_others(cluster, "orders", 3, victim) <= SESSION_S + 2
        assert controller(cluster) not in (None, victim)
        await cluster.send("orders", b"a", b"b", b"c")

    clustered(main)


def test_without_candidates_nobody_leads_until_one_is_back() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", replicas=1)
        leader = cluster.leader("orders")
        assert leader is not None
        await cluster.send("orders", b"a")
        await cluster.kill(leader)
        await cluster.until(lambda: cluster.leader("orders") is None)
        assert cluster.leadership("orders").elr == (leader,)
        await cluster.start(leader)
        await cluster.until(lambda: cluster.leader("orders") == leader)
        await cluster.send("orders", b"b")
        assert cluster.partition(leader, "orders").log.end == 2

    clustered(main)


def test_a_store_that_was_away_makes_nobody_a_new_leader() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=6)
        await cluster.until(lambda: controller(cluster) is not None)
        await trio.sleep(GRACE_S)
        cluster.keep.down = True
        await trio.sleep(3 * SESSION_S)  # every lease ends, and each broker has to register again
        cluster.keep.down = False
        await trio.sleep(GRACE_S + 3)
        assert controller(cluster) is not None
        for number in range(6):
            assert cluster.leadership("orders", number).leader_epoch == 1
            assert len(cluster.leadership("orders", number).isr) == 3
        await cluster.send("orders", *(b"a" for _ in range(6)))

    clustered(main)


def test_leaders_go_back_to_where_they_belong_when_all_is_calm() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", partitions=6)
        preferred = [one.replicas[0] for one in topic.partitions]
        await cluster.stop("n2")
        await led_by_others(cluster, "orders", 6, "n2")
        await cluster.start("n2")
        await cluster.until(lambda: leaders(cluster, "orders", 6) == preferred)

    clustered(main)


def test_copies_move_to_where_an_operator_wants_them() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", replicas=2)
        await target(cluster, "orders", "n1 n2")
        await cluster.until(lambda: cluster.leadership("orders").replicas == ("n1", "n2"))
        await cluster.send("orders", b"a", b"b")
        await target(cluster, "orders", "n3 n4")
        await cluster.until(lambda: cluster.leadership("orders").replicas == ("n3", "n4"))
        one = cluster.leadership("orders")
        assert one.leader == "n3"
        assert set(one.isr) == {"n3", "n4"}
        await cluster.until(lambda: not cluster.directories("n1", topic.topic_id))
        await cluster.until(lambda: not cluster.directories("n2", topic.topic_id))
        assert cluster.partition("n3", "orders").log.end == 2
        await cluster.send("orders", b"c")

    clustered(main, brokers=4)


def test_how_many_must_be_in_sync_follows_the_copies_that_are_wanted() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", replicas=1)
        await target(cluster, "orders", "n1 n2 n3")
        await cluster.until(lambda: len(cluster.leadership("orders").isr) == 3)
        await cluster.until(lambda: cluster.leader("orders") == "n1")
        leading = cluster.partition("n1", "orders")
        await cluster.until(lambda: leading.replica.min_isr == 2)
        await target(cluster, "orders", "n1")
        await cluster.until(lambda: cluster.leadership("orders").isr == ("n1",))
        await cluster.send("orders", b"a")
        assert leading.role == "leader"
        assert leading.replica.min_isr == 1

    clustered(main)


def test_a_drained_broker_loses_all_its_copies() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", partitions=4)
        await cluster.send("orders", *(b"%d" % n for n in range(20)))
        cluster.keep.transact([], {DRAINS + "n2": b'{"broker":"n2"}'}, [], None)
        await cluster.until(
            lambda: all("n2" not in cluster.leadership("orders", n).replicas for n in range(4))
        )
        await cluster.until(lambda: not cluster.directories("n2", topic.topic_id))
        for number in range(4):
            assert len(cluster.leadership("orders", number).isr) == 3
        await cluster.send("orders", b"more")

    clustered(main, brokers=4)


def test_auto_topics_get_more_copies_when_a_broker_has_joined() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.stop("n3")
        await cluster.until(lambda: "n3" not in cluster.view("n1").brokers)
        topic = await cluster.create("orders", partitions=2)
        assert {len(one.replicas) for one in topic.partitions} == {2}
        await cluster.start("n3")
        began = trio.current_time()
        await cluster.until(
            lambda: all(len(cluster.leadership("orders", n).isr) == 3 for n in range(2))
        )
        assert trio.current_time() - began >= CALM_S - 1

    clustered(main)


def test_what_somebody_else_changed_is_left_out_of_a_transaction() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=8)
        await cluster.until(lambda: controller(cluster) is not None)
        victim = next(one for one in cluster.running if one != controller(cluster))
        node = cluster.node(controller(cluster) or "")
        changed = node.topics.find("orders")
        led = [n for n in range(8) if cluster.leader("orders", n) == victim]
        await cluster.kill(victim)
        await cluster.until(lambda: victim not in cluster.view(node.broker_id).brokers)
        # A leader's change of the ISR comes first: the controller's view of this one is old.
        key = partition_key(changed.topic_id, led[0])
        entry = cluster.keep.entries[key]
        cluster.keep.transact([], {key: entry.value}, [], None)
        await led_by_others(cluster, "orders", 8, victim)

    clustered(main)
