"""Another chain of faults that chance alone seldom makes: an epoch that one broker alone knows.

All brokers that hold a partition of the clients go down at once, as their rack does. Its leader is
back first, and has written something in its new epoch when it goes down again; so nobody else has
heard of that epoch when one of the others comes back and is elected. Nor does that one know what
is committed: it was told by nobody since its start, and learns it only once enough of the others
are back. Then the first leader returns, with batches of an epoch that its leader's log does not
have (R1, R8).
"""

import trio

from tailrace.broker.catalog import Leadership
from tailrace.broker.members import BROKERS
from tailrace.simulation.log_files import PartitionKey
from tailrace.simulation.world import SESSION_S, SimNode
from tests.simulation.cluster_chain import Chain

STRIKES_PER_S = 1.0
PAUSE_MAX_S = 30.0
LOOK_EVERY_S, LOOKS_MAX = 0.01, 300  # for what the leader writes
EARLY = 0.7  # share of the leases


class EpochChaos(Chain):
    """All but the leader go down, it follows once it has written, and others come back first."""

    NAME = "epoch"
    SHARE = 0.2

    async def run(self) -> None:
        """See ``Chain``."""
        while True:
            await trio.sleep(self._rng.expovariate(STRIKES_PER_S))
            where = self._partition()
            if where is not None:
                await self._strike(where, self._led(where))
                await trio.sleep(self._rng.uniform(0.0, PAUSE_MAX_S))  # others have a turn

    def _partition(self) -> PartitionKey | None:
        """One of the clients, written to, of which all replicas are there."""
        found = [
            where
            for where, facts in sorted(self._common.judge.partitions.items())
            if not facts.compacted
            and facts.leadership.leader is not None
            and len(facts.leadership.isr) > 1
            and all(self._nodes[name].running for name in facts.leadership.replicas)
            and self._common.judge.true_end(where) > 0
        ]
        return self._rng.choice(found) if found else None

    def _led(self, where: PartitionKey) -> Leadership:
        return self._common.judge.partitions[where].leadership

    async def _strike(self, where: PartitionKey, led: Leadership) -> None:
        self._note()
        assert led.leader is not None, "chosen by it"
        rng, leader = self._rng, self._nodes[led.leader]
        others = [self._nodes[name] for name in led.replicas if name != led.leader]
        rng.shuffle(others)
        for number, node in enumerate(others):
            self._rests[node.name] = rng.uniform(1.5, 3.0) + number * rng.uniform(4.0, 12.0)
            rng.choice((node.kill, node.power_cut))()
        self._rests[leader.name] = 0.1 * rng.random()
        rng.choice((leader.kill, leader.power_cut))()
        for _ in range(LOOKS_MAX):
            if self._has_written(where, led):
                break
            await trio.sleep(LOOK_EVERY_S)
        if leader.running:
            await self._end(leader)

    async def _end(self, leader: SimNode) -> None:
        """Let it die again, and stay away until another one has been elected, most likely: when
        its lease is over, which may be early, by the store's own clock."""
        keep, early = self._common.keep, self._rng.random() < EARLY
        self._rests[leader.name] = self._rng.uniform(4.5, 6.5) + (0.0 if early else SESSION_S)
        leader.kill()
        if early:
            await trio.sleep(self._rng.random())
            for number, lease in sorted(keep.leases.items()):
                if BROKERS + leader.name in lease.keys and not leader.running:
                    keep.end_lease(number)

    def _has_written(self, where: PartitionKey, before: Leadership) -> bool:
        """Whether there is a batch of a later epoch, on the leader's disk at least."""
        entries = self._common.logs[before.leader or ""].log(where).entries
        return bool(entries) and entries[-1].epoch > before.leader_epoch
