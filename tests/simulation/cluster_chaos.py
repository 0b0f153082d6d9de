"""What goes wrong in a cluster. A seed chooses which kinds there are, and when each strikes.

Faults of different kinds overlap; of one kind only one strikes at a time. Time has periods, and a
quarter of them is quiet: whatever lasts ends there. Every broker that is not running is started
again after a while, by whoever looks after it (``_attend``).

No more is broken than the cluster is made to bear: of all disks one at most is wiped, and only
while every partition has all its replicas in sync, and none where a single copy may acknowledge;
all may lose power at once, as everything that was promised is synced by then.
"""

from collections.abc import Awaitable, Callable
from random import Random

import trio

from tailrace.broker.catalog import PARTITIONS, Leadership
from tailrace.protocol.errors import TailraceError
from tailrace.simulation.chance import seeded
from tailrace.simulation.checkers import Violation
from tailrace.simulation.life import single
from tailrace.simulation.net import Wall
from tailrace.simulation.run import SimCluster
from tailrace.simulation.walls import (
    bridge,
    by_all,
    by_chance,
    deaf,
    isolate,
    one_way,
    ring,
)
from tailrace.simulation.world import SESSION_S, Common, SimNode
from tests.simulation.cluster_epochs import EpochChaos
from tests.simulation.cluster_joins import JoinChaos

PERIOD_S = 8.0
QUIET = 0.25  # share of the periods
STRIKES_PER_S = 0.7
START_LIMIT_S = 60.0

Strike = Callable[[], Awaitable[None]]


class ClusterChaos:
    """Sets off faults on a cluster, and looks after its brokers."""

    def __init__(self, cluster: SimCluster, rng: Random, *, disks_lost: int) -> None:
        """``disks_lost``: how many the topics are made to bear, by their ``min_isr``."""
        assert cluster.common is not None
        self.disks_lost = disks_lost
        self.cluster = cluster
        self.common: Common = cluster.common
        self.names = tuple(cluster.nodes)
        self.nodes = list(cluster.nodes.values())
        self.rng = rng
        self.struck: dict[str, int] = {}
        self.healed = False
        self.crashed: list[Violation] = []  # brokers that ended by themselves for no good reason
        self._striking: set[str] = set()
        self._rests: dict[str, float] = {}  # how long a broker that is down stays so
        self._swarms = 0
        kinds: dict[str, Strike] = {
            "partition": self._partition,
            "clog": self._clog,
            "reset": self._reset,
            "break": self._break,
            "swizzle": self._swizzle,
            "flip": self._flip,
            "store cut off": self._cut_store,
            "store down": self._stop_store,
            "store full": self._fill_store,
            "replies lost": self._lose_replies,
            "leases": self._leases,
            "watches": self._watches,
            "kill": self._kill,
            "power": self._power,
            "power of all": self._power_of_all,
            "restart": self._restart,
            "freeze": self._freeze,
            **({"wipe": self._wipe} if disks_lost else {}),
            "stall": self._stall,
            "sync": self._fail_sync,
            "full": self._fill,
            "clock": self._clock,
        }
        self._chains = (
            JoinChaos(cluster, seeded(cluster.seed, "joins"), self._rests, self.struck),
            EpochChaos(cluster, seeded(cluster.seed, "rack"), self._rests, self.struck),
        )
        # A swarm: half of the kinds, another half for each seed.
        self.kinds = {kind: strike for kind, strike in kinds.items() if rng.random() < 0.5}

    async def until(self, end: float) -> None:
        """Let faults strike until that moment of virtual time, then heal everything."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self._attend, node)
            async with trio.open_nursery() as striking:
                for chain in self._chains:
                    if chain.on:
                        striking.start_soon(chain.run)
                while trio.current_time() < end:
                    period = min(end, trio.current_time() + self.rng.uniform(0.5, 1.5) * PERIOD_S)
                    if self.rng.random() < QUIET:
                        await trio.sleep_until(period)
                    else:
                        await self._strike_until(striking, period)
                striking.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        await self.heal()

    async def heal(self) -> None:
        """No fault any more, and all brokers serve."""
        self.healed = True
        self.cluster.net.heal()
        self.common.keep.heal()
        for node in self.nodes:
            node.link.heal()
            node.freezer.thaw()
            node.pace.stall = 0.0
            node.clock.skew_ms, node.clock.rate = 0, 1.0
            node.platter.full = False
            node.platter.failing_syncs = 0
            # A broker that a failed sync ends, or that was told to stop, may not be at its end yet.
            if "sync" in self.struck or node.stopping:
                node.kill()
        with trio.fail_after(START_LIMIT_S):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(self._bring_back, node)

    async def _strike_until(self, nursery: trio.Nursery, end: float) -> None:
        while self.kinds:
            await trio.sleep(self.rng.expovariate(STRIKES_PER_S))
            if trio.current_time() >= end:
                return
            kind = self.rng.choice(list(self.kinds))
            if kind not in self._striking:
                self.cluster.trace.note(kind)
                self.struck[kind] = self.struck.get(kind, 0) + 1
                self._striking.add(kind)
                nursery.start_soon(self._strike, kind)
        await trio.sleep_until(end)

    async def _strike(self, kind: str) -> None:
        await self.kinds[kind]()
        self._striking.discard(kind)

    # ── who looks after the brokers ──────────────────────────────────────────────────────────

    async def _attend(self, node: SimNode) -> None:
        """Start a broker again whenever it is down."""
        while True:
            await node.ended()
            self._note_failure(node)
            await trio.sleep(self._rests.pop(node.name, self.rng.expovariate(1.0)))
            if not node.running:
                await node.start()

    async def _bring_back(self, node: SimNode) -> None:
        while not node.running or node.ready is None:
            if node.running:  # it is starting
                await trio.sleep(0.05)
                continue
            await node.start()
            if not node.running:
                self._note_failure(node)
                await trio.sleep(0.5)

    def _note_failure(self, node: SimNode) -> None:
        """A broker may end because of its disk or of the store, and says so; else it is a bug."""
        error = None if node.failure is None else single(node.failure)
        # One that starts may be stopped, or find no room, and says so.
        starting = node.ready is None and (node.stopping or isinstance(error, OSError))
        if error is not None and not starting and not isinstance(error, TailraceError):
            self.crashed.append(Violation("R40", f"{node.name} ended by itself: {error!r}"))
        node.failure = None

    # ── the network ──────────────────────────────────────────────────────────────────────────

    async def _partition(self) -> None:
        self.cluster.net.wall(self._wall())
        await trio.sleep(self.rng.expovariate(0.15))
        self.cluster.net.wall(None)

    def _wall(self) -> Wall:
        rng, names = self.rng, self.names
        self._swarms += 1
        chance = seeded(self.cluster.seed, "clients", str(self._swarms))
        beside = rng.choice((by_all, by_chance(chance, names)))
        one = rng.choice((rng.choice(names), self._leader()))
        some = set(rng.sample(names, rng.randrange(1, len(names))))
        return rng.choice(
            (
                isolate(names, {one}, beside),
                isolate(names, {one}, beside),
                isolate(names, some, beside),
                bridge(names, some, one, beside),
                ring(names, beside),
                one_way(names, one, beside),
                deaf(names, one, beside),
            )
        )

    def _leader(self) -> str:
        """Some broker that leads a partition, by the metadata store."""
        leaders = [led.leader for led in self._leaderships() if led.leader is not None]
        return self.rng.choice(leaders or list(self.names))

    def _leaderships(self) -> list[Leadership]:
        entries = self.common.keep.entries
        return [
            Leadership.from_json(entry.value, entry.revision)
            for key, entry in sorted(entries.items())
            if key.startswith(PARTITIONS)
        ]

    async def _clog(self) -> None:
        for link in list(self.cluster.net.links()):
            if self.rng.random() < 0.3:
                link.clogged_until = trio.current_time() + self.rng.expovariate(0.5)
        await trio.lowlevel.checkpoint()

    async def _reset(self) -> None:
        one, other = self.rng.sample(self.names, 2)
        if self.rng.random() < 0.5:
            self.cluster.net.reset_between(one, other)
        else:
            self.cluster.net.reset_some(self.rng.choice((0.1, 0.5, 1.0)))
        await trio.lowlevel.checkpoint()

    async def _break(self) -> None:
        self.cluster.net.reset_share = self.rng.uniform(0.05, 0.3)
        await trio.sleep(self.rng.expovariate(0.3))
        self.cluster.net.reset_share = 0.0

    async def _swizzle(self) -> None:
        """Some hosts fall silent one by one, and come back in another order."""
        some = self.rng.sample(self.names, self.rng.randrange(1, len(self.names) + 1))
        for name in some:
            self.cluster.net.hold(name, True)
            await trio.sleep(self.rng.expovariate(2.0))
        for name in self.rng.sample(some, len(some)):
            self.cluster.net.hold(name, False)
            await trio.sleep(self.rng.expovariate(2.0))

    async def _flip(self) -> None:
        """Bits change on their way from one broker to the others."""
        source = self.cluster.nodes[self._leader()].name
        links = [self.cluster.net.link(source, one) for one in self.names if one != source]
        share = self.rng.choice((0.05, 0.3))
        for link in links:
            link.flips = share
        await trio.sleep(self.rng.expovariate(0.2))
        for link in links:
            link.flips = 0.0

    # ── the metadata store ───────────────────────────────────────────────────────────────────

    async def _cut_store(self) -> None:
        """Some brokers lose the store, and keep their peers."""
        if self.rng.random() < 0.5:
            some = [self.cluster.nodes[self._leader()]]
        else:
            some = self.rng.sample(self.nodes, self.rng.randrange(1, len(self.nodes) + 1))
        for node in some:
            node.link.cut_there = self.rng.random() < 0.5
            node.link.cut_back = not node.link.cut_there or self.rng.random() < 0.5
            node.link.late = self.rng.choice((0.0, 0.5))
        await trio.sleep(self.rng.choice((0.5, 2.0, 8.0, 20.0)) * self.rng.random())
        for node in some:
            node.link.heal()

    async def _stop_store(self) -> None:
        self.common.keep.down = True
        await trio.sleep(self.rng.choice((1.0, 8.0, 20.0)) * self.rng.random())
        self.common.keep.down = False

    async def _fill_store(self) -> None:
        self.common.keep.full = True
        await trio.sleep(self.rng.expovariate(0.2))
        self.common.keep.full = False

    async def _lose_replies(self) -> None:
        self.common.keep.lost_replies = self.rng.choice((0.2, 0.6))
        await trio.sleep(self.rng.expovariate(0.3))
        self.common.keep.lost_replies = 0.0

    async def _leases(self) -> None:
        """They end early, by the store's own clock; or late, as it changed its leader."""
        keep = self.common.keep
        what = self.rng.randrange(3)
        if what == 0 and keep.leases:
            keep.end_lease(self.rng.choice(sorted(keep.leases)))
        elif what == 1:
            keep.extend_all_leases()
        else:
            keep.lease_rate = 4.0
            await trio.sleep(self.rng.expovariate(0.2))
            keep.lease_rate = 1.0
        await trio.lowlevel.checkpoint()

    async def _watches(self) -> None:
        keep = self.common.keep
        keep.watch_lag, keep.wakes = self.rng.choice((0.1, 1.0)), self.rng.choice((0.0, 5.0))
        keep.delay_mean = self.rng.choice((0.0005, 0.05))
        await trio.sleep(self.rng.expovariate(0.1))
        keep.watch_lag, keep.wakes, keep.delay_mean = 0.0, 0.0, 0.0005

    # ── processes and machines ───────────────────────────────────────────────────────────────

    def _victim(self) -> SimNode:
        """Any broker, or one that leads."""
        return self.rng.choice((self.rng.choice(self.nodes), self.cluster.nodes[self._leader()]))

    def _rest(self, node: SimNode) -> None:
        self._rests[node.name] = self.rng.choice((0.1, 1.0, 10.0)) * self.rng.random()

    async def _kill(self) -> None:
        node = self._victim()
        self._rest(node)
        node.kill()
        await trio.lowlevel.checkpoint()

    async def _power(self) -> None:
        node = self._victim()
        self._rest(node)
        node.power_cut()
        await trio.lowlevel.checkpoint()

    async def _power_of_all(self) -> None:
        for node in self.nodes:
            self._rest(node)
            node.power_cut()
        await trio.lowlevel.checkpoint()

    async def _restart(self) -> None:
        """A graceful stop; it is killed where that takes too long."""
        node = self._victim()
        self._rest(node)
        node.stop()
        with trio.move_on_after(self.rng.choice((1.0, 30.0))):
            await node.ended()
            return
        node.kill()

    async def _freeze(self) -> None:
        node = self._victim()
        seconds = self.rng.uniform(1.0, 3 * SESSION_S)
        node.freeze(seconds)
        await trio.sleep(seconds * self.rng.random())

    async def _wipe(self) -> None:
        """Only while everything has all its copies (f = 1), and more than the one of a topic that
        was made when a single broker was there."""
        whole = all(
            len(led.isr) > 1 and {*led.isr} == {*led.replicas} for led in self._leaderships()
        )
        if not whole or self.common.judge.wiped or not all(node.running for node in self.nodes):
            return
        node = self._victim()
        self._rest(node)
        node.wipe()
        await trio.lowlevel.checkpoint()

    async def _stall(self) -> None:
        node = self._victim()
        node.pace.stall = self.rng.uniform(0.1, 3.0)
        await trio.sleep(self.rng.expovariate(0.5))
        node.pace.stall = 0.0

    async def _fail_sync(self) -> None:
        node = self._victim()
        node.platter.failing_syncs = 1
        await trio.sleep(self.rng.random())
        node.platter.failing_syncs = 0

    async def _fill(self) -> None:
        node = self._victim()
        node.platter.full = True
        await trio.sleep(self.rng.expovariate(0.5))
        node.platter.full = False

    async def _clock(self) -> None:
        """The wall clock is wrong from now on; all clocks of a machine go a little faster."""
        node = self.rng.choice(self.nodes)
        minutes = self.rng.choice((-30, 0, 1, 50, 24 * 60))
        node.clock.skew_ms = minutes * 60_000
        node.clock.rate = self.rng.choice((1.0, 0.999, 1.001))
        await trio.lowlevel.checkpoint()
