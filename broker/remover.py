"""Takes copies away that the metadata store says are not to be here.

Directories are removed only where the store says so: of a deleted topic, or of a partition it
knows and that has other replicas (R26). What belongs to a topic that is gone without a word is
closed and left alone.

Nobody gets hold of such a copy from the moment the view says so. Closing it may have to wait until
whoever rewrites its files comes to an end: that is given up after ``WAIT_S``, and gone on with at
the next view, for leaders must not wait for it.
"""

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress

import trio

from tailrace.broker.catalog import Catalog, Deletion
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.shelf import Shelf
from tailrace.protocol import texts
from tailrace.protocol.errors import PartitionOffline

log = logging.getLogger("tailrace.broker.remover")

WAIT_S = 0.2  # for files to be given up by whoever rewrites them


class Remover:
    """Invariant: a directory in ``_discards`` is of no partition on the shelf."""

    def __init__(self, broker_id: str, registry: Registry, shelf: Shelf, flusher: Flusher) -> None:
        self.stuck: dict[bytes, PartitionOffline] = {}  # deleted topics that could not be removed
        self._broker_id = broker_id
        self._registry = registry
        self._shelf = shelf
        self._flusher = flusher
        self._discards: dict[PartitionId, str] = {}  # to be removed: the topic's name
        self._taken: set[bytes] = set()  # topics of which something was here
        self._orphans: frozenset[PartitionId] = frozenset()  # as of the last whole reading

    # ── first ────────────────────────────────────────────────────────────────────────────────

    def take_off(self, view: ClusterView, mine: Collection[PartitionId], before: Catalog) -> None:
        """Let nobody get hold of what is not to be here, open or broken."""
        for where in sorted(self._shelf.held()):
            if where[0] not in view.catalog.by_id:
                gone = texts.topic_id_not_found(where[0], broker=self._broker_id)
                self._shelf.take_off(where, gone)
                self._taken.add(where[0])
                if where[0] not in view.deletions and where[0] in before.by_id:
                    self._shelf.report_stranger(where)
            elif where in view.leaderships and where not in mine:
                topic = view.catalog.by_id[where[0]].name
                leader = self._shelf.leader_of(*where)
                moved = texts.not_leader(topic, where[1], broker=self._broker_id, leader=leader)
                self._shelf.take_off(where, moved)
                self.discard(where, topic)

    def discard(self, where: PartitionId, topic: str) -> None:
        """Remove the directory of a partition that has other replicas."""
        self._discards[where] = topic

    # ── then ─────────────────────────────────────────────────────────────────────────────────

    async def remove(
        self, view: ClusterView, mine: Collection[PartitionId]
    ) -> tuple[list[PartitionId], bool]:
        """Close and remove; what is removed, and whether that was all of it. T093 T100."""
        removed: list[PartitionId] = []
        await self._put_away()
        left = {(one.topic_id, one.number) for one in self._shelf.leaving}
        for deletion in view.deletions.values():
            here = self._broker_id in deletion.pending or deletion.topic_id in self._taken
            if here and left.isdisjoint(deletion.where):
                await self._remove_deleted(deletion, view.orphans)
                removed += deletion.where
        for where, topic in list(self._discards.items()):
            if where in mine:  # it came back meanwhile
                del self._discards[where]
            elif where not in left:
                await self._discard(where, topic)
                removed.append(where)
        return removed, not left

    async def _put_away(self) -> None:
        """Close what was taken off, as far as nobody is at it."""
        leaving = self._shelf.leaving
        free = [one for one in leaving if not one.maintenance.locked()]
        await self._close(free)
        with trio.move_on_after(WAIT_S):
            for partition in leaving:
                if partition not in free:
                    async with partition.maintenance:
                        pass
                    await self._close([partition])

    async def _close(self, some: Sequence[Partition]) -> None:
        if some:
            await self._flusher.forget(some)
            await self._shelf.put_away(some)

    async def _remove_deleted(self, deletion: Deletion, orphans: Collection[PartitionId]) -> None:
        try:
            await self._shelf.remove(deletion.name, deletion.where)
        except PartitionOffline as error:  # it was told, and is no reason not to go on
            self.stuck[deletion.topic_id] = error
            return
        self.stuck.pop(deletion.topic_id, None)
        self._taken.discard(deletion.topic_id)
        if self._broker_id in deletion.pending:
            left = [where for where in deletion.where if where in orphans]
            with suppress(Conflict):  # another broker was faster: the next view says so
                await self._registry.removed(deletion, left)

    async def _discard(self, where: PartitionId, topic: str) -> None:
        with suppress(PartitionOffline):  # it was told; another try comes with the next view
            await self._shelf.remove(topic, [where])
            del self._discards[where]
            log.info(
                "%s[%d]: broker %s is no replica any more, its copy is removed",
                *(topic, where[1], self._broker_id),
                extra={
                    **{"event": "partition.removed", "code": None},
                    **{"topic": topic, "partition": where[1]},
                },
            )

    # ── keys ─────────────────────────────────────────────────────────────────────────────────

    async def remove_orphans(self, view: ClusterView) -> None:
        """Remove keys of partitions that never got a topic, if a whole reading had them before,
        too: their creation failed half-way. By the controller alone. T100."""
        before, self._orphans = self._orphans, view.orphans
        if view.controller == self._broker_id:
            left = [w for w in view.orphans & before if w[0] not in view.deletions]
            await self._registry.forget_partitions(left)
