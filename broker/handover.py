"""A broker that stops gives what it leads to others, so that nobody waits for its lease to end.

For each partition that it leads: take no more batches, wait until a follower in the in-sync set
has all of them, let that one lead. Then it leaves the in-sync sets it is in, and goes on fetching
until it has: so nothing waits for it when it fetches no more, however long it takes to close.

What cannot be given away in time goes on until the broker ends, and is then taken over as from one
that died: nothing is lost by that, it only takes longer.
"""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.metadata import TXN_CHANGES_MAX
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.limits import pieces

log = logging.getLogger("tailrace.broker.handover")

# For a follower to have everything, they fetch all the time; and for those that were slow.
HOLDER_S = (0.2, 2.0)


async def hand_over(node: Node) -> None:
    """Give away what others can take. Bounded by the caller; cancelled: what is frozen thaws."""
    node.keeper.stopping = True
    if not [one for one in node.views.view.brokers if one != node.broker_id]:
        return
    led = [one for one in node.shelf if one.role == "leader" and one.serving]
    given = 0
    try:
        await node.session.drain()
        for seconds in HOLDER_S:
            left = [one for one in led if one.role == "leader"]
            for some in pieces(left, TXN_CHANGES_MAX):
                given += await _hand_over(node, some, seconds)
        await _leave(node)
    except MetadataUnavailable as error:
        log.warning(
            "leaderships could not be handed over: %s",
            error,
            extra={"event": "broker.stopping", "code": error.code, "stage": "handover"},
        )
    log.info(
        "handed over %d of %d partitions",
        *(given, len(led)),
        extra={"event": "broker.handed_over", "code": None, "given": given, "led": len(led)},
    )


async def _hand_over(node: Node, some: Sequence[Partition], seconds: float) -> int:
    """How many of them were given away. T100."""
    fit = [one for one in some if set(one.leadership.isr) - {node.broker_id}]
    for partition in fit:
        partition.freeze()
    try:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + seconds
            for partition in fit:
                nursery.start_soon(partition.holder)
        wanted: dict[PartitionId, Leadership] = {}
        for partition in fit:
            choose = partial(election.hand_over, may_lead=node.views.view.may_lead)
            changed = choose(partition.leadership, partition.replica.holders())
            if changed is not None and partition.role == "leader":
                wanted[partition.topic_id, partition.number] = _without(node, partition, changed)
        stored = await node.registry.change(wanted)
        for where, leadership in stored.items():
            given = node.shelf.get(*where)
            if given is not None and leadership.revision > given.leadership.revision:
                given.follow(leadership)
        return len(stored)
    finally:
        for partition in fit:
            partition.thaw()


async def _leave(node: Node) -> None:
    """Leave the in-sync sets of what others lead, where there is somebody left. T100."""
    wanted: dict[PartitionId, Leadership] = {}
    for partition in node.shelf:
        one = partition.leadership
        if partition.role == "follower" and node.broker_id in one.isr:
            changed = _without(node, partition, one)
            if changed != one:
                wanted[partition.topic_id, partition.number] = changed
    await node.registry.change(wanted)


def _without(node: Node, partition: Partition, one: Leadership) -> Leadership:
    """The same, with an in-sync set that this broker is not in; unless nobody else of it lives."""
    left = [member for member in one.isr if member != node.broker_id]
    if not any(map(node.views.view.alive, left)):
        return one
    need = election.min_isr(partition.config.min_isr, partition.copies)
    return election.with_isr(one, left, need)
