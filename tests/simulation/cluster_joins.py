"""A chain of faults that chance alone seldom makes: about the moment in which somebody joins.

A follower stops and comes back. As soon as the metadata store has taken it into an in-sync set, its
leader hears nothing of that for a while, or much later, and the follower stands still or dies:
now it counts, lacks what is written, and only the store knows of both (R4, R16). Sometimes the
leader dies of it, and whoever has joined may be the next one.
"""

import trio

from tailrace.broker.catalog import PARTITIONS, Leadership, parse_partition_key
from tailrace.simulation.meta import StoreChange
from tailrace.simulation.world import Common, SimNode
from tests.simulation.cluster_chain import Chain

STRIKES_PER_S = 0.4
STOPS_WITHIN_S = 3.0
JOINS_WITHIN_S = 6.0

Joined = tuple[SimNode, list[SimNode]]  # a leader, and whom it let in


class JoinChaos(Chain):
    """A follower is renewed; its leader is cut off from the store once it is back in sync."""

    NAME = "join"
    SHARE = 0.35

    _joined: Joined | None = None

    async def run(self) -> None:
        """See ``Chain``."""
        while True:
            await trio.sleep(self._rng.expovariate(STRIKES_PER_S))
            found = self._follower()
            joined = None if found is None else await self._renew(found)
            if joined is not None:
                await self._part(*joined)

    async def _renew(self, follower: SimNode) -> Joined | None:
        """Stop it, wait until somebody has come into an in-sync set, and cut the leader off."""
        self._joined, self._heard = None, trio.Event()
        taps = self._common.keep.taps
        taps.append(self._tap)
        try:
            self._rests[follower.name] = self._rng.random()
            follower.stop()
            with trio.move_on_after(STOPS_WITHIN_S) as stopping:
                await follower.ended()
            if stopping.cancelled_caught:
                follower.kill()
            with trio.move_on_after(JOINS_WITHIN_S):
                await self._heard.wait()
        finally:
            taps.remove(self._tap)
        return self._joined

    def _follower(self) -> SimNode | None:
        """Somebody who follows in a partition of the clients."""
        names = sorted(
            {
                one
                for facts in self._common.judge.partitions.values()
                for one in facts.leadership.replicas
                if not facts.compacted and one != facts.leadership.leader
            }
        )
        there = [self._nodes[name] for name in names if self._nodes[name].running]
        return self._rng.choice(there) if there else None

    def _tap(self, change: StoreChange) -> None:
        """Right when the store has changed, before anybody can hear of it."""
        if self._joined is not None:
            return
        added = _added(self._common, change)
        if added is None or change.host is None:
            return
        leader, rng = self._nodes[change.host], self._rng
        if rng.random() < 0.15:
            leader.link.cut_back = True
        else:
            leader.link.delay_mean = rng.choice((0.2, 0.4, 0.8))
            leader.link.lost_replies = rng.choice((0, 1, 1, 1))
        self._joined = leader, [self._nodes[name] for name in sorted(added)]
        self._heard.set()

    async def _part(self, leader: SimNode, joined: list[SimNode]) -> None:
        self._note()
        seconds = self._rng.uniform(1.0, 5.0)
        for node in joined:
            how = self._rng.choice((node.kill, node.power_cut, None, None, None))
            if how is None:
                node.freeze(seconds)
            else:
                self._rests[node.name] = seconds
                how()
        await trio.sleep(seconds * self._rng.uniform(0.5, 1.0))
        if self._rng.random() < 0.3:
            leader.kill()
        leader.link.heal()


def _added(common: Common, change: StoreChange) -> set[str] | None:
    """Whom a leader has let into the in-sync set of a partition of clients; None: it has not."""
    for path, now in change.after.items():
        before = change.before[path]
        if before is None or now is None or not path.startswith(PARTITIONS):
            continue
        facts = common.judge.partitions.get(parse_partition_key(path))
        if facts is None or facts.compacted:
            continue
        old = Leadership.from_json(before.value, before.revision)
        new = Leadership.from_json(now.value, now.revision)
        added = {*new.isr} - {*old.isr}
        if added and new.leader == change.host and new.leader_epoch == old.leader_epoch:
            return added
    return None
