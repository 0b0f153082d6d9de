"""In-sync sets of what this broker leads: who falls behind leaves, who has caught up comes in.

Each change is a compare-and-swap on the partition's key, and on the registration of every one that
comes in (S30, S31, R6); while it is under way the *maximal* set counts (R4). What the store has
made of it is learnt from its answer, or from the next view; after silence nobody knows, and the
union stays until somebody does (R16).

Looked at: every partition each half of ``replica_lag_max``, and at once one where somebody who is
not in sync has fetched. Many changes go in few transactions: one dead broker is in many sets.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BROKERS, BrokerRecord
from tailrace.broker.partition import Partition
from tailrace.broker.registry import Conflict
from tailrace.broker.replica import IsrChange
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.limits import pieces

if TYPE_CHECKING:
    from tailrace.broker.node import Node

log = logging.getLogger("tailrace.broker.isr_keeper")

TOGETHER_MAX = 40  # changes of one transaction: each has a put and one or two compares
AT_ONCE = 4  # transactions
STOOD_STILL_S = 1.0  # this process did, if a look comes so late
AGAIN_S = 0.2  # after the store was away

Change = tuple[Partition, IsrChange]


class IsrKeeper:
    def __init__(self, node: "Node") -> None:
        self._node = node
        self._lag_max_s = node.config.cluster.replica_lag_max_s
        self._due: dict[Partition, None] = {}
        self._bell = Bell()
        self._brokers: Mapping[str, BrokerRecord] = {}
        self._around_at = 0.0  # when all partitions are looked at, in trio's time
        node.views.on_view.append(self._seen)

    def _seen(self, view: ClusterView) -> None:
        """Who has come is fit again, and may have fetched before that was known here."""
        if view.brokers != self._brokers:
            self._brokers, self._around_at = view.brokers, trio.current_time()
            self._bell.ring()

    def look(self, partition: Partition) -> None:
        """Somebody who is not in its in-sync set may be ready for it."""
        self._due[partition] = None
        self._bell.ring()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with trio.move_on_at(self._around_at):
                await self._bell.wait()
            due, self._due = self._due, {}
            now = trio.current_time()
            if now >= self._around_at + STOOD_STILL_S:
                for partition in self._node.shelf:
                    partition.replica.watch_anew(now)
            if now >= self._around_at:
                self._around_at = now + self._lag_max_s / 2
                due = dict.fromkeys(self._node.shelf)
            await self._change(list(self._wanted(due)))

    def _wanted(self, due: Iterable[Partition]) -> Iterable[Change]:
        now = trio.current_time()
        for partition in due:
            if partition.role == "leader" and partition.serving and not partition.frozen:
                unfit = self._unfit(partition)
                change = partition.replica.isr_change(now, self._lag_max_s, unfit)
                if change is not None:
                    yield partition, change

    def _unfit(self, partition: Partition) -> list[str]:
        """Followers whom the store would refuse to let in, or who are about to leave: each of
        them would cost a transaction, for each of its partitions."""
        view, followers = self._node.views.view, partition.replica.followers
        return [
            one
            for one, known in followers.items()
            if one in view.draining
            or (registered := view.brokers.get(one)) is None
            or registered.epoch > known.broker_epoch
        ]

    async def _change(self, changes: Sequence[Change]) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for some in pieces(changes, TOGETHER_MAX):
                for partition, change in some:
                    partition.replica.begin_change(change)
                nursery.start_soon(self._store, some, limit)

    async def _store(self, some: Sequence[Change], limit: trio.CapacityLimiter) -> None:
        """In one transaction; if somebody was faster with one of them, each by itself."""
        try:
            async with limit:
                await self._alter(some)
        except Conflict:
            if len(some) == 1:
                async with limit:
                    await self._refused(*some[0])
                return
            for one in some:
                await self._store([one], limit)

    async def _alter(self, some: Sequence[Change]) -> None:
        wanted = {(one.topic_id, one.number): change.leadership for one, change in some}
        added = {pair for _, change in some for pair in change.added.items()}
        also = [(BROKERS + who, epoch) for who, epoch in sorted(added)]
        try:
            stored = await self._node.registry.alter(wanted, also)
        except MetadataUnavailable as error:
            for one in some:
                self._unknown(*one, error)
            return
        for partition, change in some:
            self._tell(partition, change)
            leadership = stored[partition.topic_id, partition.number]
            if partition.role == "leader" and _same_epoch(partition, leadership):
                partition.learn(leadership)
        self._node.outbox.flush()  # what waited for a replica that left is acknowledged

    async def _refused(self, partition: Partition, change: IsrChange) -> None:
        """Somebody else changed it, or who was to come in has registered anew."""
        try:
            view = await self._node.views.read()
        except MetadataUnavailable as error:
            self._unknown(partition, change, error)
            return
        self._node.views.refresh()
        stored = view.leaderships.get((partition.topic_id, partition.number))
        if partition.role != "leader" or stored is None or not _same_epoch(partition, stored):
            return  # it is not for this broker to say any more
        if stored.revision > partition.leadership.revision:
            partition.learn(stored)
            self._node.outbox.flush()
        else:
            partition.refuse_change(change)

    def _unknown(self, partition: Partition, change: IsrChange, error: MetadataUnavailable) -> None:
        """It may be stored or not (R16): both count until it is known."""
        log.debug("%s[%d]: a change of the ISR: %s", partition.topic, partition.number, error)
        partition.replica.doubt_change(change)
        self._node.views.refresh()
        self._node.timers.at(trio.current_time() + AGAIN_S, lambda: self.look(partition))

    def _tell(self, partition: Partition, change: IsrChange) -> None:
        isr = change.leadership.isr
        for direction, who in (("shrink", change.removed), ("expand", tuple(change.added))):
            if not who:
                continue
            self._node.metrics.families["isr_changes_total"].of(direction).inc()
            log.log(
                logging.WARNING if direction == "shrink" else logging.INFO,
                "%s[%d]: %s %s; in sync: %s",
                *(partition.topic, partition.number, ", ".join(who)),
                "left the in-sync set" if direction == "shrink" else "is in sync again",
                ", ".join(isr),
                extra={
                    **{"event": "partition.isr_changed", "code": None, **partition.where},
                    **{"direction": direction, "isr": list(isr)},
                },
            )


def _same_epoch(partition: Partition, leadership: Leadership) -> bool:
    return partition.leadership.leader_epoch == leadership.leader_epoch
