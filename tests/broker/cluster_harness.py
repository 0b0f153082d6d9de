"""Three brokers of one cluster in one run on virtual time, and ways to look into them.

Their disks, network and metadata store are the simulation's; nothing fails but what a test lets
fail. ``clustered(main)`` runs ``main`` beside them: ::

    async def main(cluster: Cluster) -> None:
        await cluster.create("orders", partitions=3)
        assert cluster.leader("orders", 0) == "n1"

    clustered(main)
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.client.client import Client
from tailrace.simulation.meta import MetaKeep
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.world import Settings, SimNode

T = TypeVar("T")

WAIT_S = 60.0  # of virtual time, for anything


class Cluster:
    """What a test is given. Brokers are ``n1``, ``n2`` and so on."""

    def __init__(self, sim: SimCluster) -> None:
        self.sim = sim
        assert sim.common is not None, "more than one broker"
        self.keep: MetaKeep = sim.common.keep

    # ── brokers ──────────────────────────────────────────────────────────────────────────────

    def machine(self, name: str) -> SimNode:
        return self.sim.nodes[name]

    def node(self, name: str) -> Node:
        """The parts of a running broker."""
        server = self.sim.nodes[name].server
        assert server is not None, f"{name} was never started"
        node = server._node  # pyright: ignore[reportPrivateUsage]
        assert node is not None, f"{name} has not come so far"
        return node

    def view(self, name: str) -> ClusterView:
        """What a broker knows."""
        return self.node(name).views.view

    @property
    def running(self) -> list[str]:
        return [name for name, machine in self.sim.nodes.items() if machine.running]

    async def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.machine(name).kill()
        await self.machine(name).ended()

    async def stop(self, name: str) -> None:
        """SIGTERM, and wait until it has stopped."""
        self.machine(name).stop()
        with trio.fail_after(WAIT_S):
            await self.machine(name).ended()
        failure = self.machine(name).failure
        if failure is not None:
            raise failure

    async def start(self, name: str) -> None:
        """Start it again, and wait until it serves."""
        with trio.fail_after(WAIT_S):
            assert await self.machine(name).start(), self.machine(name).failure

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    async def create(self, name: str, partitions: int = 1, **settings: str | int) -> Topic:
        """Create a topic at the first broker that runs."""
        replicas = settings.pop("replicas", None)
        assert replicas is None or isinstance(replicas, int)
        topic, _ = await self.node(self.running[0]).topics.create(
            name,
            partitions=partitions,
            replicas=replicas,
            config={key: str(value) for key, value in settings.items()},
        )
        return topic

    def topic(self, name: str) -> Topic:
        """As the first broker that runs knows it."""
        return self.node(self.running[0]).topics.find(name)

    def leadership(self, topic: str, number: int = 0, at: str | None = None) -> Leadership:
        """As a broker knows it; None: as the first one that runs."""
        view = self.view(at or self.running[0])
        return view.leaderships[view.catalog.by_name[topic].topic_id, number]

    def leader(self, topic: str, number: int = 0) -> str | None:
        return self.leadership(topic, number).leader

    def partition(self, broker: str, topic: str, number: int = 0) -> Partition:
        """A broker's copy."""
        found = self.node(broker).shelf.get(self.topic(topic).topic_id, number)
        assert found is not None, f"{broker} has no copy of {topic}[{number}]"
        return found

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    async def until(self, condition: Callable[[], object], seconds: float = WAIT_S) -> None:
        """Wait until something is true; so long at most."""
        with trio.move_on_after(seconds):
            while not condition():
                await trio.sleep(0.01)
            return
        raise AssertionError(f"not true after {seconds} s")

    def client(self) -> Client:
        return self.sim.client()


def clustered(
    main: Callable[[Cluster], Awaitable[T]],
    *,
    brokers: int = 3,
    seed: int = 1,
    settings: Settings | None = None,
    own: Mapping[str, Settings] | None = None,
) -> T:
    """What ``main`` returns, run beside brokers that serve."""
    outcome = run_cluster(
        lambda sim: main(Cluster(sim)), seed=seed, brokers=brokers, settings=settings, own=own
    )
    return outcome.value
