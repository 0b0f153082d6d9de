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
from tailrace.simulation.disk import SimDisk
from tailrace.simulation.life import Life, single
from tailrace.simulation.meta import MetaKeep
from tailrace.simulation.run import CLUSTERED, SimCluster, run_cluster
from tailrace.simulation.world import DATA_DIR, Settings, SimNode
from tailrace.storage.directory import partition_name

T = TypeVar("T")

WAIT_S = 60.0  # of virtual time, for anything
LOOK_EVERY_S = 0.01


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
        if self.machine(name).failure is not None:
            raise self.failure(self.machine(name))

    async def start(self, name: str) -> None:
        """Start it again, and wait until it serves."""
        with trio.fail_after(WAIT_S):
            assert await self.machine(name).start(), self.machine(name).failure

    def failure(self, machine: SimNode) -> BaseException:
        """Why the last process on a machine ended by itself."""
        assert machine.failure is not None, "it did not fail"
        return single(machine.failure)

    async def second(self, name: str) -> BaseException:
        """Run another broker with the id of one that is there, on a machine of its own, and return
        what keeps it from serving."""
        sim = self.sim
        async with trio.open_nursery() as nursery:
            machine = SimNode(
                *(nursery, sim.seed + 1, name, sim.net, sim.trace),
                {**CLUSTERED, "listeners.client.bind": "127.0.0.1:7401"},
                sim.common,
            )
            with trio.fail_after(WAIT_S):
                await machine.start()
            machine.kill()
        return self.failure(machine)

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    async def create(self, name: str, partitions: int = 1, **settings: str | int) -> Topic:
        """Create a topic at the first broker that runs, and wait until all know it."""
        replicas = settings.pop("replicas", None)
        assert replicas is None or isinstance(replicas, int)
        topic, _ = await self.node(self.running[0]).topics.create(
            name,
            partitions=partitions,
            replicas=replicas,
            config={key: str(value) for key, value in settings.items()},
        )
        await self.until(lambda: all(self.knows(one, name) for one in self.running))
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

    def knows(self, broker: str, topic: str) -> bool:
        """Whether a broker follows a view that has the topic."""
        return self.node(broker).topics.catalog.find(topic) is not None

    def held(self, broker: str, topic: str, number: int = 0) -> bool:
        """Whether a broker has a copy that it could open."""
        known = self.node(broker).topics.catalog.find(topic)
        return known is not None and self.node(broker).shelf.get(known.topic_id, number) is not None

    def directories(self, broker: str, topic_id: bytes) -> int:
        """How many copies of a topic's partitions are on a broker's disk."""
        names = SimDisk(self.machine(broker).platter, Life("looks")).list(f"{DATA_DIR}/topics")
        return sum(name.startswith(topic_id.hex()) for name in names)

    def lose_directory(self, broker: str, topic: str, topic_id: bytes | None = None) -> None:
        """Let partition 0's directory vanish from the disk of a broker that does not run."""
        topic_id = topic_id or self.topic(topic).topic_id
        disk = SimDisk(self.machine(broker).platter, Life("loses"))
        disk.remove_directory(f"{DATA_DIR}/topics/{partition_name(topic_id, 0)}")
        disk.sync_directory(f"{DATA_DIR}/topics")

    def partition(self, broker: str, topic: str, number: int = 0) -> Partition:
        """A broker's copy."""
        found = self.node(broker).shelf.get(self.topic(topic).topic_id, number)
        assert found is not None, f"{broker} has no copy of {topic}[{number}]"
        return found

    # ── waiting ──────────────────────────────────────────────────────────────────────────────

    async def until(self, condition: Callable[[], object], seconds: float = WAIT_S) -> None:
        """Wait until something is true; so long at most."""
        for _ in range(int(seconds / LOOK_EVERY_S)):
            if condition():
                return
            await trio.sleep(LOOK_EVERY_S)
        raise AssertionError(f"not true after {seconds} s")

    def client(self) -> Client:
        return self.sim.client()

    async def send(self, topic: str, *values: bytes, partition: int | None = None) -> None:
        """Send these, acknowledged, one after another."""
        async with self.client() as client, client.producer() as producer:
            for value in values:
                await producer.send(topic, value, partition=partition)


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
