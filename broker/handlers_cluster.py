"""Moving leaders and copies between brokers: what operators ask of any of them.

What is decided is in ``electing.py`` and ``moving.py``. A change is stored by compare-and-swap on
the view it was decided by. If somebody else was faster, a reassignment is decided anew, and an
election is told as one that was not held.
"""

import json
import logging
from collections.abc import Mapping, Sequence

from tailrace.broker import electing, election, moving
from tailrace.broker.asking import ask_brokers
from tailrace.broker.call import Call, Later
from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.electing import Election
from tailrace.broker.limits import PARTITIONS_PER_REQUEST_MAX, check_count
from tailrace.broker.members import DRAINS
from tailrace.broker.metadata import TXN_CHANGES_MAX
from tailrace.broker.moving import Chosen
from tailrace.broker.node import Node
from tailrace.broker.registry import Conflict
from tailrace.protocol import texts
from tailrace.protocol.limits import pieces
from tailrace.protocol.messages import (
    DescribeMovesRequest,
    DescribeMovesResponse,
    DescribeReplicasRequest,
    DescribeReplicasResponse,
    DrainBrokerRequest,
    DrainBrokerResponse,
    ElectLeadersRequest,
    ElectLeadersResponse,
    PartitionRange,
    ReassignRequest,
    ReassignResponse,
    ReplicaDescription,
    ReplicaMove,
    Response,
)

log = logging.getLogger("tailrace.broker.handlers_cluster")

ATTEMPTS = 5  # to change something that others change, too


# ── leaders ──────────────────────────────────────────────────────────────────────────────────


def elect_leaders(node: Node, call: Call, request: ElectLeadersRequest) -> Later:
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")
    check_count(len(request.confirmed or ()), PARTITIONS_PER_REQUEST_MAX, of="confirmed")

    async def work() -> Response:
        await node.latest.read()
        if request.unclean:
            found = await _unclean(node, moving.chosen(node.views.view, request.partitions))
        else:
            view = node.views.view
            named = moving.chosen(view, request.partitions) or list(moving.everything(view))
            found = [one for each in named if (one := electing.preferred(view, each)) is not None]
        found = electing.as_confirmed(found, request.confirmed)
        if not request.dry_run:
            wanted = [one for one in found if one.error is None]
            stored = await _elect(node, wanted, request.unclean)
            found = electing.as_stored(found, stored, unclean=request.unclean)
        return ElectLeadersResponse(tuple(map(electing.leader_move, found)))

    return work


async def _unclean(node: Node, named: Sequence[Chosen]) -> list[Election]:
    asked = tuple(PartitionRange(one.topic.name, one.number) for one in named)
    copies = await _replicas(node, DescribeReplicasRequest(asked, local=False))
    found: list[Election] = []
    for one in named:
        here = [c for c in copies if (c.topic, c.partition) == (one.topic.name, one.number)]
        found.append(electing.unclean(node.views.view, one, here))
    return found


async def _elect(
    node: Node, found: Sequence[Election], unclean: bool
) -> Mapping[PartitionId, Leadership]:
    """Store it as far as nobody else has changed it meanwhile; what was stored. T100."""
    lead = election.unclean if unclean else Leadership.elected
    stored: dict[PartitionId, Leadership] = {}
    for some in pieces(found, TXN_CHANGES_MAX):
        wanted: dict[PartitionId, Leadership] = {}
        for one in some:
            assert one.leader is not None, "it is to lead"
            wanted[one.chosen.where] = lead(one.current, one.leader)
        done = wanted  # if nobody says (R16): a loss is told rather once too often
        try:
            done = await node.registry.change(wanted)
        finally:
            for one in some if unclean else ():
                if one.chosen.where in done:
                    _tell_loss(node, one)
        stored |= done
    return stored


def _tell_loss(node: Node, one: Election) -> None:
    """S3: an operator gave up what nobody who is up has."""
    topic, partition = one.chosen.topic.name, one.chosen.number
    node.metrics.data_loss_possible.inc()
    log.error(
        "%s: %s was made the leader although it may lack acknowledged records: what %s have beyond"
        " offset %d is lost",
        texts.partition_name(topic, partition),
        *(one.leader, ", ".join(one.missing) or "others", one.log_end),
        extra={
            **{"event": "data-loss-possible", "code": None, "topic": topic},
            **{"partition": partition, "leader": one.leader, "log_end": one.log_end},
            **{"missing": list(one.missing), "alike": f"{topic}:{partition}"},
        },
    )


# ── copies ───────────────────────────────────────────────────────────────────────────────────


def reassign(node: Node, call: Call, request: ReassignRequest) -> Later:
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")

    async def work() -> Response:
        told: dict[tuple[str, int], ReplicaMove] = {}
        for attempt in range(ATTEMPTS):
            await node.latest.read()
            view = node.views.view
            topics = moving.reassigned(
                view, request, lambda topic: node.topics.config_of(topic).min_isr
            )
            moves = tuple(
                moving.replica_move(view, Chosen(before, number), one.replicas)
                for topic in topics
                if (before := view.catalog.by_id[topic.topic_id])
                for number, one in enumerate(topic.partitions)
                if one.replicas != before.partitions[number].replicas
            )
            if request.dry_run:
                return ReassignResponse(moves)
            told |= {(one.topic, one.partition): one for one in moves}
            try:
                for topic in topics:
                    await node.registry.update(topic)
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise texts.metadata_unavailable("the topic", "others change it") from None
                continue
            break
        node.views.refresh()
        return ReassignResponse(tuple(told.values()))

    return work


def drain_broker(node: Node, call: Call, request: DrainBrokerRequest) -> Later:
    async def work() -> Response:
        await node.latest.read()
        view, broker_id = node.views.view, request.broker_id
        found = moving.drain(view, broker_id, lambda topic: node.topics.config_of(topic).min_isr)
        draining = broker_id in view.drains
        if not request.dry_run and draining is request.cancel:
            await _put_drain(node, broker_id, wanted=not request.cancel)
            draining = not request.cancel
        if request.cancel:
            return DrainBrokerResponse(broker_id, draining, found.leads, found.holds, (), ())
        return DrainBrokerResponse(
            *(broker_id, draining, found.leads, found.holds, found.moves, found.stuck)
        )

    return work


async def _put_drain(node: Node, broker_id: str, *, wanted: bool) -> None:
    """Twice is once: nothing is compared. T100."""
    key = DRAINS + broker_id
    if wanted:
        value = {"broker": broker_id, "requested_at": node.world.clock.wall_ms()}
        await node.registry.store.txn([], {key: json.dumps(value).encode()})
    else:
        await node.registry.store.txn([], {}, [key])
    node.views.refresh()
    log.info(
        "broker %s is %s",
        *(broker_id, "being drained" if wanted else "drained no longer"),
        extra={"event": "broker.drain", "code": None, "drained": broker_id, "wanted": wanted},
    )


# ── how it stands ────────────────────────────────────────────────────────────────────────────


def describe_moves(node: Node, call: Call, request: DescribeMovesRequest) -> Later:
    async def work() -> Response:
        await node.latest.read()
        view = node.views.view
        return DescribeMovesResponse(tuple(moving.moves(view)), tuple(sorted(view.drains)))

    return work


def describe_replicas(node: Node, call: Call, request: DescribeReplicasRequest) -> Later:
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="partitions")

    async def work() -> Response:
        return DescribeReplicasResponse(tuple(await _replicas(node, request)))

    return work


async def _replicas(node: Node, request: DescribeReplicasRequest) -> list[ReplicaDescription]:
    view = node.views.view
    named = moving.chosen(view, request.partitions)
    found = [copy for one in named if (copy := _copy(node, one)) is not None]
    if request.local:
        return found
    asked = DescribeReplicasRequest(request.partitions, local=True)
    others = [broker for broker in view.brokers if broker != node.broker_id]
    answers = await ask_brokers(
        *(node.peers, view, node.config.cluster.peer_listener),
        dict.fromkeys(others, asked),
        DescribeReplicasResponse,
    )
    for broker in sorted(answers):
        found += answers[broker].replicas
    return found


def _copy(node: Node, one: Chosen) -> ReplicaDescription | None:
    """This broker's own, if it has one that can be counted on."""
    held = node.shelf.get(*one.where)
    if held is None or not held.serving:
        return None
    return ReplicaDescription(
        topic=one.topic.name,
        partition=one.number,
        broker_id=node.broker_id,
        last_epoch=held.log.last_epoch,
        log_start=held.log.start,
        log_end=held.log.end,
        high_watermark=held.high_watermark,
    )
