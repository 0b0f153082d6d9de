"""Leaders and copies as operators move them, by the brokers of a simulated cluster."""

from collections.abc import Mapping
from typing import NoReturn
from unittest.mock import patch

import pytest

from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_view import PartitionId
from tailrace.protocol import texts
from tailrace.protocol.errors import MetadataUnavailable, from_wire
from tailrace.protocol.messages import (
    ConfirmedLeader,
    ElectLeadersRequest,
    ElectLeadersResponse,
    LeaderMove,
    PartitionRange,
)
from tests.broker.cluster_harness import Cluster, clustered
from tests.broker.test_cluster_admin import in_sync
from tests.broker.test_cluster_groups import ask

WHERE = (PartitionRange("orders", 0),)


async def elect(cluster: Cluster, at: str, request: ElectLeadersRequest) -> LeaderMove:
    answer = await ask(cluster, at, request)
    assert isinstance(answer, ElectLeadersResponse)
    (move,) = answer.moves
    return move


async def led_by_another(cluster: Cluster) -> str:
    """One partition, led by a broker that is not the preferred one; who that is."""
    await cluster.create("orders")
    await in_sync(cluster, "orders", 1)
    preferred, another, _ = cluster.topic("orders").partitions[0].replicas
    where = cluster.topic("orders").topic_id, 0
    current = cluster.leadership("orders")
    await cluster.node(preferred).registry.change({where: current.elected(another)})
    return preferred


def test_an_election_that_somebody_else_was_faster_than_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(cluster: Cluster) -> None:
        preferred = await led_by_another(cluster)
        node = cluster.node("n3")
        change = node.registry.change

        async def too_late(
            changed: Mapping[PartitionId, Leadership],
        ) -> dict[PartitionId, Leadership]:
            for where in changed:
                current = node.views.view.leaderships[where]
                await change({where: current.elected(current.leader or "n3")})
            return await change(changed)

        with monkeypatch.context() as patch:
            patch.setattr(node.registry, "change", too_late)
            move = await elect(cluster, "n3", ElectLeadersRequest(WHERE, False, False, None))
        assert move.after is None
        assert move.error is not None
        assert "Try again: tailrace cluster elect orders:0" in str(from_wire(move.error))
        move = await elect(cluster, "n3", ElectLeadersRequest(WHERE, False, False, None))
        assert (move.after, move.error) == (preferred, None)

    clustered(main)


def test_an_election_is_held_as_it_was_confirmed_or_not_at_all() -> None:
    async def main(cluster: Cluster) -> None:
        preferred = await led_by_another(cluster)
        seen = await elect(cluster, "n3", ElectLeadersRequest(WHERE, False, True, None))
        assert seen.after == preferred
        for epoch in (seen.leader_epoch - 1, seen.leader_epoch):
            yes = ConfirmedLeader("orders", 0, preferred, epoch, -1)
            move = await elect(cluster, "n3", ElectLeadersRequest(WHERE, False, False, (yes,)))
            assert (move.error is None) == (epoch == seen.leader_epoch)
        assert move.after == preferred

    clustered(main)


def test_a_loss_is_told_even_if_nobody_says_whether_its_leader_was_stored() -> None:
    async def main(cluster: Cluster) -> None:
        topic = await cluster.create("orders", replicas=2, min_isr=1)
        complete, lacking = topic.partitions[0].replicas
        await cluster.until(lambda: cluster.leadership("orders").isr == (complete, lacking))
        await cluster.kill(lacking)
        await cluster.until(lambda: cluster.leadership("orders", at=complete).isr == (complete,))
        await cluster.kill(complete)
        await cluster.start(lacking)
        await cluster.until(lambda: cluster.leadership("orders").leader is None)
        node = cluster.node(lacking)

        async def silent(changed: object) -> NoReturn:
            raise texts.metadata_unavailable("etcd", "no answer")

        request = ElectLeadersRequest(WHERE, unclean=True, dry_run=False, confirmed=None)
        with patch.object(node.registry, "change", silent), pytest.raises(MetadataUnavailable):
            await ask(cluster, lacking, request)
        assert node.metrics.data_loss_possible.value == 1

    clustered(main)
