"""Members and their commits while the coordinator moves and dies; admin calls while brokers do."""

import math
from collections import deque

import anyio
import pytest

from tailrace.client.commits import fetch_committed
from tailrace.client.coordinator import Coordinator
from tailrace.protocol import texts, texts_group
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    CommittedOffset,
    DescribeClusterRequest,
    DescribeClusterResponse,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    ListGroupsRequest,
    ListGroupsResponse,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_cluster import ClusterBroker, FakeCluster
from tests.client.world import Run, until

ORDERS = TopicPartition("orders", 0)
ID = b"t" * 16


class Grouping(ClusterBroker):
    """A broker that may coordinate."""

    coordinator = "n1"  # of the cluster, as the brokers know
    refusals: deque[TailraceError]

    def _answer(self, message: object) -> Response:
        if isinstance(message, FindCoordinatorRequest):
            return FindCoordinatorResponse(Grouping.coordinator, 0)
        if isinstance(message, FetchOffsetsRequest):
            if self.broker_id != Grouping.coordinator:
                raise texts.not_leader("__offsets", 0, broker=self.broker_id)
            if Grouping.refusals:
                raise Grouping.refusals.popleft()
            return FetchOffsetsResponse((CommittedOffset(ID, 0, 7, 1, 2, 3, 4, "note"),))
        if isinstance(message, ListGroupsRequest):
            return ListGroupsResponse(())
        if isinstance(message, DescribeClusterRequest):
            return DescribeClusterResponse(
                *("cluster", "0.1", "n1", "etcd", True, (), 0, 0, 0, 0, 0, ())
            )
        return super()._answer(message)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster(monkeypatch)
    for broker in made.brokers.values():
        broker.__class__ = Grouping
    Grouping.coordinator, Grouping.refusals = "n1", deque()
    return made


async def committed(coordinator: Coordinator, timeout: float = 4.0) -> int | None:
    found = (await fetch_committed(coordinator, {ORDERS: ID}, timeout=timeout))[ORDERS]
    return None if found is None else found.offset


@pytest.mark.parametrize("how", ["moved", "killed", "left in silence"])
def test_requests_follow_the_coordinator(run: Run, together: FakeCluster, how: str) -> None:
    async def main() -> None:
        async with together.client(request_timeout=60.0) as client:
            coordinator = Coordinator(client, "g")
            assert await committed(coordinator) == 7
            Grouping.coordinator = "n3"
            if how == "killed":
                together.brokers["n1"].kill()
            elif how == "left in silence":
                together.brokers["n1"].black_hole = True
                together.leave("n1")
            with anyio.fail_after(2.0):
                assert await committed(coordinator) == 7

    run(main)


def test_request_waits_for_the_new_coordinator_and_while_it_loads(
    run: Run, together: FakeCluster
) -> None:
    async def main() -> None:
        async with together.client() as client:
            coordinator = Coordinator(client, "g")
            assert await committed(coordinator) == 7
            together.brokers["n1"].kill()  # and is still named as coordinator
            found: list[int | None] = []

            async def ask() -> None:
                found.append(await committed(coordinator, math.inf))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await anyio.sleep(0.05)
                assert not found
                loading = texts_group.coordinator_loading("g", broker="n2")
                Grouping.refusals.extend([loading] * 3)
                Grouping.coordinator = "n2"
                await until(lambda: bool(found))

    run(main)


@pytest.mark.parametrize("how", ["killed", "left in silence", "cut off from the store"])
def test_admin_call_is_answered_by_another_broker(
    run: Run, together: FakeCluster, how: str
) -> None:
    async def main() -> None:
        async with together.client(request_timeout=4.0) as client:
            assert client.health().address == "n1:7400"
            if how == "killed":
                together.brokers["n1"].kill()
            elif how == "left in silence":
                together.brokers["n1"].black_hole = True
                together.leave("n1")
            else:
                together.brokers["n1"].metadata_script.append(
                    texts.metadata_unavailable("etcd", "no answer")
                )
            with anyio.fail_after(3.0):
                assert (await client.admin.describe_cluster()).healthy
                assert await client.admin.list_groups() == []

    run(main)
