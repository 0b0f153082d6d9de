"""Groups in a cluster of three: who coordinates them, before and after a broker goes."""

from contextlib import suppress

import pytest
import trio

from tailrace.broker.catalog import Deletion
from tailrace.broker.coordinator import OFFSETS
from tailrace.broker.gateway import Gateway
from tailrace.broker.local import LocalCaller
from tailrace.protocol.errors import CoordinatorLoading, NotLeader, TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitPartition,
    DescribeGroupRequest,
    DescribeGroupResponse,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    ListGroupsRequest,
    ListGroupsResponse,
    Request,
    Response,
)
from tests.broker.cluster_harness import Cluster, clustered

GROUPS = ("billing", "mail", "search", "audit")


async def ask(cluster: Cluster, broker: str, request: Request) -> Response:
    """What a broker answers to a client."""
    answer, _ = await LocalCaller(cluster.node(broker), "test").ask(request, bytearray())
    return answer


async def coordinator(cluster: Cluster, group: str, at: str) -> str:
    """As soon as there is one."""
    for _ in range(2_000):
        try:
            found = await ask(cluster, at, FindCoordinatorRequest(group))
        except CoordinatorLoading:
            await trio.sleep(0.01)
            continue
        assert isinstance(found, FindCoordinatorResponse)
        return found.broker_id
    raise AssertionError(f"nobody coordinates {group}")


async def insist(cluster: Cluster, group: str, at: str, request: Request) -> Response:
    """As a client does: ask whoever coordinates the group, until it answers."""
    for _ in range(2_000):
        broker = await coordinator(cluster, group, at)
        if broker in cluster.running:
            with suppress(CoordinatorLoading, NotLeader):
                return await ask(cluster, broker, request)
        await trio.sleep(0.01)
    raise AssertionError(f"nobody answers for {group}")


async def commit(cluster: Cluster, group: str, offset: int, at: str = "n1") -> None:
    topic_id = cluster.topic("orders").topic_id
    one = CommitPartition(topic_id, 0, offset, -1, -1, -1, -1, "")
    answer = await insist(cluster, group, at, CommitOffsetsRequest(group, "", (one,)))
    assert isinstance(answer, CommitOffsetsResponse)
    assert answer.results[0].error is None


async def committed(cluster: Cluster, group: str, at: str) -> int:
    answer = await insist(cluster, group, at, FetchOffsetsRequest(group, None))
    assert isinstance(answer, FetchOffsetsResponse)
    return answer.offsets[0].offset if answer.offsets else -1


def test_every_broker_names_the_same_coordinator_and_only_that_one_answers() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        for offset, group in enumerate(GROUPS, 1):
            await commit(cluster, group, offset)
        assert len(set(cluster.leadership(OFFSETS, n).leader for n in range(16))) == 3
        for offset, group in enumerate(GROUPS, 1):
            where = {await coordinator(cluster, group, at) for at in ("n1", "n2", "n3")}
            assert len(where) == 1
            for broker in {"n1", "n2", "n3"} - where:
                with pytest.raises(NotLeader):
                    await ask(cluster, broker, FetchOffsetsRequest(group, None))
            assert await committed(cluster, group, "n2") == offset

    clustered(main)


def test_a_commit_is_acknowledged_when_every_in_sync_replica_has_it() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await commit(cluster, "billing", 7)
        found = await ask(cluster, "n1", FindCoordinatorRequest("billing"))
        assert isinstance(found, FindCoordinatorResponse)
        ends = [
            cluster.partition(broker, OFFSETS, found.partition).log.flushed
            for broker in ("n1", "n2", "n3")
        ]
        assert min(ends) == max(ends) > 0

    clustered(main)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_groups_go_on_with_another_coordinator_when_theirs_goes(how: str) -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        for offset, group in enumerate(GROUPS, 1):
            await commit(cluster, group, offset)
        gone = await coordinator(cluster, "billing", "n1")
        left = next(one for one in cluster.running if one != gone)
        await (cluster.stop(gone) if how == "stop" else cluster.kill(gone))
        for offset, group in enumerate(GROUPS, 1):
            assert await committed(cluster, group, left) == offset
            assert await coordinator(cluster, group, left) != gone
            await commit(cluster, group, offset + 10, left)
        await cluster.start(gone)
        await cluster.until(lambda: cluster.knows(gone, OFFSETS))
        for offset, group in enumerate(GROUPS, 1):
            assert await committed(cluster, group, gone) == offset + 10

    clustered(main)


def test_a_coordinator_that_hears_nobody_acknowledges_nothing() -> None:
    """R15: it takes itself for the leader still."""

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await commit(cluster, "billing", 7)
        old = await coordinator(cluster, "billing", "n1")
        others = [one for one in cluster.running if one != old]
        node = cluster.node(old)
        topic_id = cluster.topic("orders").topic_id
        one = CommitPartition(topic_id, 0, 99, -1, -1, -1, -1, "")
        request = CommitOffsetsRequest("billing", "", (one,))
        cluster.sim.net.partition({old}, set(others))
        refused: list[TailraceError] = []

        async def try_it() -> None:
            try:
                await LocalCaller(node, "test").ask(request, bytearray())
            except TailraceError as error:
                refused.append(error)

        cluster.sim.net.partition({old}, set(others))
        cluster.machine(old).link.cut_there = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_it)
            await cluster.until(lambda: _moved(cluster, old, others[0]))
            assert not refused or refused[0].code == "T032"
            cluster.sim.net.heal()
            cluster.machine(old).link.heal()
            await cluster.until(lambda: refused)
        assert refused[0].code == "T032"
        assert await committed(cluster, "billing", others[0]) == 7

    clustered(main)


def _moved(cluster: Cluster, old: str, at: str) -> bool:
    leaders = [cluster.leadership(OFFSETS, number, at).leader for number in range(16)]
    return None not in leaders and old not in leaders


def test_any_broker_lists_the_groups_of_all() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        for group in GROUPS:
            await commit(cluster, group, 1)
        for broker in ("n1", "n2", "n3"):
            node = cluster.node(broker)
            gateway = Gateway(node, node.peers)
            listed = await ask(cluster, broker, ListGroupsRequest())
            assert isinstance(listed, ListGroupsResponse)
            assert [one.name for one in listed.groups] == sorted(GROUPS)
            for group in GROUPS:
                found = await gateway.ask_group(
                    group, DescribeGroupRequest(group), DescribeGroupResponse
                )
                assert found.summary.name == group

    clustered(main)


def test_lag_is_known_of_partitions_that_are_led_and_held_elsewhere() -> None:
    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3, replicas=1)
        for number in range(3):
            await cluster.send("orders", *[b"x"] * (number + 1), partition=number)
        await commit(cluster, "billing", 0)
        answer = await insist(cluster, "billing", "n1", DescribeGroupRequest("billing"))
        assert isinstance(answer, DescribeGroupResponse)
        assert [one.log_end for one in answer.partitions] == [1, 2, 3]
        assert [one.lag_records for one in answer.partitions] == [1, 2, 3]

    clustered(main)


def test_offsets_are_made_anew_where_they_could_not_be_made_whole_before() -> None:
    """Whoever made them found no room, and took them back; others had seen them."""

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders")
        await coordinator(cluster, "mail", "n1")
        made = cluster.node("n1").topics.find(OFFSETS)
        gone = Deletion(made.topic_id, made.name, len(made.partitions), ("n1", "n2", "n3"))
        cluster.keep.transact([], {gone.key: gone.to_json()}, [made.key], None)
        nodes = [cluster.node(name) for name in cluster.running]
        await cluster.until(lambda: all(one.topics.catalog.find(OFFSETS) is None for one in nodes))
        for at in cluster.running:
            await commit(cluster, "mail", 7, at)
            assert await committed(cluster, "mail", at) == 7

    clustered(main)
