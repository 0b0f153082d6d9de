"""Any broker of three describes all of them, erases on all of them, and says where it cannot."""

import pytest
import trio

from tailrace.broker.gateway import Gateway
from tailrace.broker.local import LocalCaller
from tailrace.protocol.errors import NotLeader, OffsetOutOfRange, TopicNotFound
from tailrace.protocol.messages import (
    DeleteRecordsRequest,
    DeleteRecordsResponse,
    DescribeClusterRequest,
    DescribeClusterResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    EraseRequest,
    ErasureResponse,
    ExplainRequest,
    ExplainResponse,
    GetErasureRequest,
    MetadataRequest,
    MetadataResponse,
    RecordPosition,
    StartOffset,
    TopicDescription,
)
from tests.broker.cluster_harness import Cluster, clustered
from tests.broker.test_cluster_groups import ask, commit

BROKERS = ("n1", "n2", "n3")
ID = b"e" * 16


async def describe(cluster: Cluster, at: str, topic: str = "orders") -> TopicDescription:
    answer = await ask(cluster, at, DescribeTopicsRequest((topic,), True))
    assert isinstance(answer, DescribeTopicsResponse)
    return answer.topics[0]


async def describe_cluster(cluster: Cluster, at: str) -> DescribeClusterResponse:
    answer = await ask(cluster, at, DescribeClusterRequest())
    assert isinstance(answer, DescribeClusterResponse)
    return answer


async def in_sync(cluster: Cluster, topic: str, partitions: int) -> None:
    """Wait until every broker knows every replica to be."""
    await cluster.until(
        lambda: all(
            cluster.knows(at, topic) and len(cluster.leadership(topic, number, at).isr) == 3
            for at in BROKERS
            for number in range(partitions)
        )
    )


# ── metadata ─────────────────────────────────────────────────────────────────────────────────


def test_every_broker_names_all_brokers_and_the_same_leaders() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        for at in BROKERS:
            answer = await ask(cluster, at, MetadataRequest(("orders",), False))
            assert isinstance(answer, MetadataResponse)
            assert [one.broker_id for one in answer.brokers] == list(BROKERS)
            assert len({(one.host, one.port) for one in answer.brokers}) == 3
            (topic,) = answer.topics
            assert {one.leader for one in topic.partitions} == set(BROKERS)
            assert all(len(one.isr) == len(one.replicas) == 3 for one in topic.partitions)

    clustered(main)


def test_a_topic_that_another_broker_made_just_now_is_known() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("first")
        node = cluster.node("n1")
        for number in range(5):
            name = f"orders-{number}"
            await node.topics.create(name, partitions=1)
            answer = await ask(cluster, "n3", MetadataRequest((name,), False))
            assert isinstance(answer, MetadataResponse)
            assert answer.topics[0].error is None
            assert (await describe(cluster, "n2", name)).name == name
        with pytest.raises(TopicNotFound):
            await describe(cluster, "n2", "nothing")

    clustered(main)


# ── describing ───────────────────────────────────────────────────────────────────────────────


def test_any_broker_describes_what_others_lead() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        for number in range(3):
            await cluster.send("orders", *[b"x"] * (number + 1), partition=number)
        await commit(cluster, "billing", 1)
        for at in BROKERS:
            topic = await describe(cluster, at)
            assert [one.log_end for one in topic.partitions] == [1, 2, 3]
            assert [one.status for one in topic.partitions] == ["ok"] * 3
            assert all(one.size_bytes for one in topic.partitions)
            assert topic.groups == ("billing",)
            assert (topic.replicas, topic.min_isr) == (3, 2)

    clustered(main)


def test_a_leader_that_is_silent_costs_its_own_partitions_alone() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        gone = cluster.leader("orders", 1)
        assert gone is not None
        left = next(one for one in BROKERS if one != gone)
        await cluster.kill(gone)
        topic = await describe(cluster, left)  # its lease has not ended yet
        statuses = {one.partition: one.status for one in topic.partitions}
        assert statuses.pop(1) == "offline"
        assert set(statuses.values()) == {"ok"}

        def taken_over() -> bool:
            leader = cluster.leadership("orders", 1, left).leader
            if leader in (None, gone):
                return False
            return cluster.partition(leader, "orders", 1).role == "leader"  # it heard of it, too

        await cluster.until(taken_over)
        topic = await describe(cluster, left)
        assert {one.status for one in topic.partitions} == {"under_replicated"}

    clustered(main)


def test_the_cluster_is_described_by_all_of_it() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        for at in BROKERS:
            found = await describe_cluster(cluster, at)
            assert [one.broker_id for one in found.brokers] == list(BROKERS)
            assert [one.leaders for one in found.brokers] == [1, 1, 1]
            assert [one.replicas for one in found.brokers] == [3, 3, 3]
            assert {one.state for one in found.brokers} == {"running"}
            assert all(one.disk_total_bytes for one in found.brokers)
            assert (found.topics, found.partitions, found.problems) == (1, 3, ())
            assert found.metadata == "etcd"

    clustered(main)


def test_a_broker_that_is_gone_is_shown_with_what_misses_it() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        await cluster.kill("n3")
        silent = await describe_cluster(cluster, "n1")
        assert any("n3 is registered, but does not answer" in one for one in silent.problems)
        await cluster.until(lambda: "n3" not in cluster.view("n1").brokers)
        await cluster.until(
            lambda: all(cluster.leader("orders", n) in ("n1", "n2") for n in range(3))
        )
        found = await describe_cluster(cluster, "n1")
        gone = found.brokers[2]
        assert (gone.broker_id, gone.state, gone.replicas) == ("n3", "offline", 3)
        assert gone.last_seen > 0
        assert (found.under_replicated, found.offline) == (3, 0)
        assert any(one.startswith("broker n3 is offline (was last seen") for one in found.problems)
        assert any("3 partitions are under-replicated" in one for one in found.problems)

    clustered(main)


# ── what a leader does ───────────────────────────────────────────────────────────────────────


def test_a_leader_alone_moves_a_log_start_and_says_who_it_is() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await in_sync(cluster, "orders", 1)
        await cluster.send("orders", b"1", b"2", b"3")
        leader = cluster.leader("orders")
        request = DeleteRecordsRequest("orders", (StartOffset(0, 2),))
        for at in BROKERS:
            if at != leader:
                with pytest.raises(NotLeader, match=f"broker {leader} does"):
                    await ask(cluster, at, request)
                node = cluster.node(at)
                gateway = Gateway(node, node.peers)
                answer, _ = await gateway.ask_leader("orders", 0, request, DeleteRecordsResponse)
                assert answer.partitions == (StartOffset(0, 2),)
        await cluster.until(
            lambda: all(cluster.partition(at, "orders").log.start == 2 for at in BROKERS)
        )

    clustered(main)


def test_an_explanation_is_the_leaders_or_tells_why_there_is_none() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3, replicas=1)
        await cluster.until(lambda: all(cluster.knows(at, "orders") for at in BROKERS))
        gone = cluster.leader("orders", 0)
        assert gone is not None
        left = next(one for one in BROKERS if one != gone)
        with pytest.raises(NotLeader):
            await ask(cluster, left, ExplainRequest("orders", 0, None, None))
        whole = await ask(cluster, left, ExplainRequest("orders", None, None, None))
        assert isinstance(whole, ExplainResponse)
        assert whole.verdict == "ok"
        await cluster.kill(gone)
        await cluster.until(lambda: cluster.leader("orders", 0) is None)
        found = await ask(cluster, left, ExplainRequest("orders", 0, None, None))
        assert isinstance(found, ExplainResponse)
        assert found.verdict == "offline"
        assert f"it has no leader: {gone} holds all that was acknowledged" in found.summary

    clustered(main)


# ── erasures ─────────────────────────────────────────────────────────────────────────────────


async def erase(cluster: Cluster, at: str, *records: tuple[int, int]) -> ErasureResponse:
    positions = tuple(RecordPosition(*one) for one in records)
    keys = () if records else (b"alice",)
    answer = await ask(cluster, at, EraseRequest(ID, "orders", keys, positions))
    assert isinstance(answer, ErasureResponse)
    return answer


async def receipt(cluster: Cluster, at: str) -> ErasureResponse:
    answer = await ask(cluster, at, GetErasureRequest("orders", ID, 20_000))
    assert isinstance(answer, ErasureResponse)
    return answer


async def write(cluster: Cluster, partitions: int) -> None:
    async with cluster.client() as client, client.producer() as producer:
        for number in range(partitions):
            for key in (b"alice", b"bob", b"alice"):
                await producer.send("orders", b"of " + key, key=key, partition=number)


def holds_alice(cluster: Cluster, broker: str, number: int) -> bool:
    log = cluster.partition(broker, "orders", number).log
    piece = log.read(log.start, 1 << 20, log.end)
    return b"alice" in b"".join(bytes(one.view()) for one in piece.ranges)


def test_an_erasure_asked_of_any_broker_is_done_in_every_copy() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        await write(cluster, 3)
        await erase(cluster, "n2")
        found = await receipt(cluster, "n3")
        assert (found.records, found.completed_at is not None) == (6, True)
        assert [(one.broker_id, one.done) for one in found.replicas] == [
            (at, True) for at in BROKERS
        ]
        assert not any(holds_alice(cluster, at, number) for at in BROKERS for number in range(3))
        await erase(cluster, "n1")  # asked again: it is the same
        assert (await receipt(cluster, "n1")).completed_at == found.completed_at

    clustered(main)


def test_a_replica_that_is_away_is_pending_until_it_has_erased_what_it_has() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await in_sync(cluster, "orders", 1)
        await write(cluster, 1)
        leader = cluster.leader("orders")
        away = next(one for one in BROKERS if one != leader)
        left = next(one for one in BROKERS if one not in (leader, away))
        await cluster.stop(away)
        await erase(cluster, left)
        await cluster.until(lambda: not holds_alice(cluster, left, 0))
        pending = await receipt(cluster, left)
        assert pending.completed_at is None
        assert [one.broker_id for one in pending.replicas if not one.done] == [away]
        await cluster.start(away)
        found = await receipt(cluster, left)
        assert found.completed_at is not None
        assert not holds_alice(cluster, away, 0)

    clustered(main)


def test_a_copy_that_is_filled_anew_is_looked_through_again() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await in_sync(cluster, "orders", 1)
        await write(cluster, 1)
        leader = cluster.leader("orders")
        assert leader is not None
        away, wiped = [one for one in BROKERS if one != leader]
        await cluster.stop(away)
        await erase(cluster, leader)

        async def until_pending(wanted: bool) -> None:
            for _ in range(20_000):
                answer = await ask(cluster, leader, GetErasureRequest("orders", ID, 0))
                assert isinstance(answer, ErasureResponse)
                assert answer.completed_at is None
                if [not one.done for one in answer.replicas if one.broker_id == wiped] == [wanted]:
                    return
                await trio.sleep(0.001)
            raise AssertionError(f"{wiped} is pending: never {wanted}")

        await until_pending(False)
        await cluster.stop(wiped)
        cluster.lose_directory(wiped, "orders")
        await cluster.start(wiped)
        await until_pending(True)  # what it did is gone with its copy
        await until_pending(False)
        await cluster.start(away)
        assert (await receipt(cluster, leader)).completed_at is not None
        assert not any(holds_alice(cluster, at, 0) for at in BROKERS)

    clustered(main)


def test_a_record_outside_of_its_leaders_log_cannot_be_erased() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        await write(cluster, 3)
        for at in BROKERS:
            with pytest.raises(OffsetOutOfRange, match="ends at 3"):
                await erase(cluster, at, (1, 3))

    clustered(main)


def test_no_broker_asks_others_when_another_one_asks_it() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        await in_sync(cluster, "orders", 3)
        caller = LocalCaller(cluster.node("n1"), "test")
        answer, _ = await caller.ask(
            DescribeTopicsRequest(("orders", "unknown"), True, local=True), bytearray()
        )
        assert isinstance(answer, DescribeTopicsResponse)
        (topic,) = answer.topics
        ends = {one.leader: one.log_end for one in topic.partitions}
        assert ends == {"n1": 0, "n2": -1, "n3": -1}
        caller = LocalCaller(cluster.node("n1"), "test")
        answer, _ = await caller.ask(DescribeClusterRequest(local=True), bytearray())
        assert isinstance(answer, DescribeClusterResponse)
        assert [one.broker_id for one in answer.brokers] == ["n1"]

    clustered(main)


def test_a_leader_tells_how_far_its_followers_are_behind() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await in_sync(cluster, "orders", 1)
        await cluster.send("orders", b"1", b"2", b"3")
        leader = cluster.leader("orders")
        assert leader is not None
        one, other = [broker for broker in BROKERS if broker != leader]
        await cluster.kill(other)
        await cluster.send("orders", b"4")

        def lags(at: str) -> dict[str, int]:
            (gauges,) = cluster.node(at).shelf.gauges()
            return dict(gauges.lags)

        await cluster.until(lambda: lags(leader) == {one: 0, other: 1})
        assert lags(one) == {}

    clustered(main)
