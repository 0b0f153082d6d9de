"""Copying what others lead: a ``LeaderLink`` for each broker that leads something here.

There are two for a broker that leads copies of which only some are in sync: the others catch up by
themselves, as producers wait for what is in sync, and not for them. One that has caught up changes
over before it is in sync: of those that catch up it would always be a little behind. If it falls
behind again before that, it goes back.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import trio

from tailrace.broker.catch_up import CatchUp
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.leader_link import LeaderLink
from tailrace.broker.partition import Partition

if TYPE_CHECKING:
    from tailrace.broker.node import Node


class Replicator:
    """Invariant: every partition that follows a living leader is with one link of that leader."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._catch_up = CatchUp(node.config.cluster.catch_up_rate_bytes)
        self.links: dict[tuple[str, bool], LeaderLink] = {}  # by leader, and whether in sync
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._stopped = False

    async def run(self) -> None:
        """Until ``stop``. T093 if a sync fails."""
        if self._stopped:
            return
        self._node.views.on_view.append(self.look)  # who is there
        self._node.views.on_followed.append(self.look)  # whom partitions here follow
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self.look(self._node.views.view)
                    await trio.sleep_forever()
        finally:
            self._nursery = None
            self._over.set()

    async def stop(self) -> None:
        """End it; on return no log is touched any more."""
        self._stopped = True
        if self._nursery is not None:
            self._scope.cancel()
            await self._over.wait()

    def ask_again(self, partition: Partition) -> None:
        """Its log ends elsewhere: let whichever link copies it tell so."""
        where = partition.topic_id, partition.number
        for link in self.links.values():
            if where in link.followed:
                link.ask_again(where)

    def look(self, view: ClusterView) -> None:
        """Follow whom the partitions here are to follow by now."""
        nursery = self._nursery
        if nursery is None:
            return
        wanted: defaultdict[tuple[str, bool], dict[PartitionId, Partition]] = defaultdict(dict)
        for partition in self._node.shelf:
            led = partition.leadership
            if led.leader is None or led.leader not in view.brokers:
                continue
            if partition.role == "follower" and partition.serving:
                in_sync = self._node.broker_id in led.isr
                told = partition.following
                told.near = told.near and not in_sync  # one that leaves them catches up again
                where = partition.topic_id, partition.number
                wanted[led.leader, in_sync or told.near][where] = partition
        for leader_id, in_sync in sorted(wanted.keys() - self.links.keys()):
            self._open(nursery, leader_id, in_sync=in_sync)
        for key, link in self.links.items():
            link.assign(wanted.get(key, {}))

    def _open(self, nursery: trio.Nursery, leader_id: str, *, in_sync: bool) -> LeaderLink:
        link = LeaderLink(
            *(self._node, leader_id, None if in_sync else self._catch_up, nursery),
            self._node.world.rng(f"leader link {leader_id} {in_sync}"),
            change_over=self._change_over,
        )
        self.links[leader_id, in_sync] = link
        nursery.start_soon(link.run)
        return link

    def _change_over(self, partition: Partition) -> None:
        """From one link of its leader to the other: it has caught up, or fell behind again."""
        leader_id, nursery = partition.leadership.leader, self._nursery
        if leader_id is None or nursery is None:
            return  # the next look sees to it
        near = partition.following.near = not partition.following.near
        link = self.links.get((leader_id, near))
        (link or self._open(nursery, leader_id, in_sync=near)).add(partition)
