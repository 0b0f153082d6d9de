"""``simulate``: brokers, clients and your own code in one thread, on virtual time, by seed.

A test of hours takes a moment, and a seed that fails, fails again. The network has delays of its
own; everything else that goes wrong is yours to choose: ``sim.faults``, ``sim.kill``.

    def test_no_order_is_lost() -> None:
        async def main(sim: Simulation) -> None:
            async with sim.connect() as client:
                ...

        for seed in range(20):
            simulate(main, seed=seed)
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tailrace.client.client import Client
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.world import SimNode
from tailrace.testing.faults import Faults, Rules

T = TypeVar("T")

AUTO_CREATE: dict[str, str | int | float | bool] = {
    "broker.auto_create": True,
    "group.assign_delay": "0ms",
}


class SimulatedBroker:
    """One broker of a simulation. It runs when ``main`` begins."""

    def __init__(self, cluster: SimCluster, node: SimNode) -> None:
        self.name = node.name
        self.faults = Faults(_FaultyNode(cluster, node))
        self._node = node

    @property
    def running(self) -> bool:
        return self._node.running

    async def start(self) -> None:
        """Start it again; returns when it serves. Raises what the start raised."""
        if not self._node.running:
            await self._node.start()
            if self._node.failure is not None:
                raise self._node.failure

    def kill(self, *, crash: bool = False) -> None:
        """End it like SIGKILL; ``crash``: like a power cut, what was not synced is at risk."""
        if crash:
            self._node.power_cut()
        else:
            self._node.kill()


class Simulation:
    """The world ``main`` lives in. Time passes when all tasks wait."""

    def __init__(self, cluster: SimCluster) -> None:
        self.seed = cluster.seed
        self.brokers = {
            name: SimulatedBroker(cluster, node) for name, node in cluster.nodes.items()
        }
        self._cluster = cluster
        self._first = next(iter(self.brokers.values()))

    def connect(
        self, client_id: str | None = None, rack: str | None = None, **options: float
    ) -> Client:
        """A client on a host of its own, as from ``tailrace.connect``: use it ``async with``."""
        return self._cluster.client(client_id, rack, **options)

    @property
    def faults(self) -> Faults:
        """The faults of the (first) broker; the others': ``brokers[name].faults``."""
        return self._first.faults

    def kill(self, broker: str, *, crash: bool = False) -> None:
        """As ``SimulatedBroker.kill``; back by ``await brokers[broker].start()``."""
        self.brokers[broker].kill(crash=crash)

    def now_ms(self) -> int:
        """Milliseconds since the epoch, as every clock of the simulation has it."""
        return self._cluster.clock.wall_ms()


def simulate(main: Callable[[Simulation], Awaitable[T]], *, brokers: int = 1, seed: int = 0) -> T:
    """Run ``main`` beside simulated brokers and return what it returns.

    They are called n1, n2 ... and replicate to each other. Equal seeds (and equal code) take the
    same course. After ``main`` the promises that can be checked from outside are checked;
    AssertionError if one is broken, seed first.
    """
    if not 1 <= brokers <= 9:
        raise ValueError(f"brokers={brokers} is not 1 to 9")

    async def run(cluster: SimCluster) -> T:
        result = await main(Simulation(cluster))
        wrong = [one for node in cluster.nodes.values() for one in node.oracle.violations]
        if cluster.common is not None:
            wrong += cluster.common.judge.violations
        assert not wrong, f"seed {seed}: " + "; ".join(map(str, wrong))
        return result

    return run_cluster(run, seed=seed, brokers=brokers, settings=AUTO_CREATE).value


class _FaultyNode:
    """``FaultTarget`` on a simulated machine."""

    def __init__(self, cluster: SimCluster, node: SimNode) -> None:
        self.rules = Rules()
        node.faults = self.rules
        self._net = cluster.net
        self._node = node

    def refuse(self, on: bool) -> None:
        self._net.refuse(self._node.name, on)

    def drop_all(self) -> None:
        self._net.reset_host(self._node.name)

    def fill_disk(self, on: bool) -> None:
        self._node.platter.full = on

    def slow_disk(self, seconds: float) -> None:
        self._node.pace.stall = seconds

    def pause(self, on: bool) -> None:
        self._net.hold(self._node.name, on)
