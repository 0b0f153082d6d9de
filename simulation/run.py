"""A whole world in one thread: brokers, clients, network and time, all by one seed (safety 6)."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from tailrace.client.client import Client
from tailrace.client.options import resolve
from tailrace.simulation.chance import seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.life import Life, single
from tailrace.simulation.net import SimNet
from tailrace.simulation.seeding import Outcome, Trace, run_seeded
from tailrace.simulation.world import Settings, SimNode

T = TypeVar("T")
C = TypeVar("C", bound=Client)


class SimCluster:
    """What a scenario is given: machines, their network, and clients for them."""

    def __init__(
        self, nursery: trio.Nursery, trace: Trace, seed: int, brokers: int, settings: Settings
    ) -> None:
        self.seed = seed
        self.trace = trace
        self.net = SimNet(seed)
        self.nodes = {
            name: SimNode(nursery, seed, name, self.net, trace, settings)
            for name in (f"n{number}" for number in range(1, brokers + 1))
        }
        self.clock = SimClock()
        self._clients = 0

    def client(self, name: str | None = None, **options: float) -> Client:
        """A client on a host of its own; ``options`` are the durations of ``connect``."""
        self._clients += 1
        return self.process(Client, Life(name or f"c{self._clients}"), **options)

    def process(self, kind: type[C], life: Life, **options: float) -> C:
        """A client of some kind in a process that can be killed."""
        name = life.name
        return kind(
            resolve(
                [node.address for node in self.nodes.values()],
                client_id=name,
                tls=None,
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
) -> Outcome[T]:
    """Run ``main`` beside running brokers; what it returns, and the hash of the whole course."""

    async def beside_brokers(trace: Trace) -> T:
        async with trio.open_nursery() as nursery:
            cluster = SimCluster(nursery, trace, seed, brokers, settings or {})
            cluster.net.taps.append(lambda connection, back, data: trace.note(back, data))
            for node in cluster.nodes.values():
                await node.start()
                if node.failure is not None:
                    raise node.failure
            result = await main(cluster)
            for node in cluster.nodes.values():
                node.kill()
                await node.ended()
            return result
        raise AssertionError("unreachable")

    async def run(trace: Trace) -> T:
        try:
            return await beside_brokers(trace)
        except BaseExceptionGroup as group:
            raise single(group) from None  # what main raised leaves as it was

    return run_seeded(run, seed)
