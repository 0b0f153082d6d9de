"""A whole world in one thread: brokers, clients, network and time, all by one seed."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from tailrace.client.client import Client
from tailrace.client.options import resolve
from tailrace.simulation.chance import seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.life import Life, single
from tailrace.simulation.net import SimNet
from tailrace.simulation.seeding import Outcome, Trace, run_seeded
from tailrace.simulation.world import Common, Settings, SimNode

T = TypeVar("T")
C = TypeVar("C", bound=Client)

CLUSTERED: Settings = {"cluster.metadata": "etcd", "cluster.etcd": "http://store:2379"}


class SimCluster:
    """What a scenario is given: machines, their network, and clients for them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        trace: Trace,
        seed: int,
        brokers: int,
        settings: Settings,
        own: Mapping[str, Settings] | None = None,
    ) -> None:
        self.seed = seed
        self.trace = trace
        self.net = SimNet(seed)
        self.common = Common(seed, settings) if brokers > 1 else None
        if brokers > 1:
            settings = {**CLUSTERED, **settings}
        self.nodes = {
            name: SimNode(
                *(nursery, seed, name, self.net, trace),
                {**settings, **(own or {}).get(name, {})},
                self.common,
            )
            for name in (f"n{number}" for number in range(1, brokers + 1))
        }
        self.clock = SimClock()
        self._clients = 0

    def client(self, name: str | None = None, rack: str | None = None, **options: float) -> Client:
        """A client on a host of its own; ``options`` are the durations of ``connect``."""
        self._clients += 1
        return self.process(Client, Life(name or f"c{self._clients}"), rack, **options)

    async def start(self) -> None:
        """Start all brokers; what keeps one from serving is raised."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes.values():
                nursery.start_soon(node.start)
        for node in self.nodes.values():
            if node.failure is not None:
                raise node.failure

    def process(self, kind: type[C], life: Life, rack: str | None = None, **options: float) -> C:
        """A client of some kind in a process that can be killed."""
        name = life.name
        return kind(
            resolve(
                [node.address for node in self.nodes.values()],
                client_id=name,
                tls=None,
                rack=rack,
                connect_timeout=options.pop("connect_timeout", 5.0),
                request_timeout=options.pop("request_timeout", 10.0),
                max_outage=options.pop("max_outage", None),
                close_timeout=options.pop("close_timeout", 10.0),
                **options,
            ),
            net=self.net.client(life),
            clock=self.clock,
            random=seeded(self.seed, "client", name),
        )


def run_cluster(
    main: Callable[[SimCluster], Awaitable[T]],
    *,
    seed: int,
    brokers: int = 1,
    settings: Settings | None = None,
    own: Mapping[str, Settings] | None = None,
) -> Outcome[T]:
    """Run ``main`` beside running brokers; what it returns, and the hash of the whole course.

    ``settings`` are all brokers', ``own`` those of some of them, by name.
    """

    async def beside_brokers(trace: Trace) -> T:
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(nursery, trace, seed, brokers, settings or {}, own)
            cluster.net.taps.append(lambda connection, back, data: trace.note(back, data))
            if cluster.common is not None:
                nursery.start_soon(cluster.common.keep.run)
            await cluster.start()
            result = await main(cluster)
            for node in cluster.nodes.values():
                node.kill()
                await node.ended()
            nursery.cancel_scope.cancel()
        return result

    async def run(trace: Trace) -> T:
        try:
            return await beside_brokers(trace)
        except BaseExceptionGroup as group:
            raise single(group) from None  # what main raised leaves as it was

    return run_seeded(run, seed)
