"""A simulated machine and the broker process on it.

The machine (disk, metadata, clock) outlives its processes. A process ends by ``kill`` (the page
cache survives), by ``power_cut`` (what was not synced is subject to chance) or by itself; it is
marked dead before its tasks are cancelled. ``freeze`` lets it stand still as SIGSTOP does.

A machine alone has a metadata store of its own; those of a cluster share one (``Common``), to
which each has a ``link`` that may fail.
"""

from collections.abc import Callable, Mapping
from random import Random

import trio

from tailrace.broker.config import from_mapping
from tailrace.broker.heavy import OffloadHeavy
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.server import Ready, Server
from tailrace.broker.world import Fault, World
from tailrace.protocol.messages import Api
from tailrace.simulation.chance import Pick, random_pick, seeded
from tailrace.simulation.clock import SimClock
from tailrace.simulation.cluster_judge import ClusterJudge
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.freeze import FREEZER, Freezer
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, MetaLink, SimMeta
from tailrace.simulation.net import SimNet
from tailrace.simulation.offload import Pace, SimOffload
from tailrace.simulation.oracle import Oracle, Shown
from tailrace.simulation.replica_logs import LogWitness
from tailrace.simulation.seeding import Trace
from tailrace.simulation.store_judge import StoreJudge

DATA_DIR = "/data"
PORT = 7400
SESSION_S = 6.0  # cluster.session_timeout

Settings = Mapping[str, str | int | float | bool]


class Common:
    """What the brokers of one cluster share, and who judges them."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.keep = MetaKeep(seeded(seed, "metadata"))
        self.logs: dict[str, LogWitness] = {}  # of each broker
        self.shown: Shown = {}
        self.judge = ClusterJudge(self.logs)
        self.store_judge = StoreJudge(self.judge, str(settings.get("topic.min_isr", "auto")))
        self.keep.taps.append(self.store_judge.tap)


class SimNode:
    """One machine and, at times, a broker on it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        seed: int,
        name: str,
        net: SimNet,
        trace: Trace,
        settings: Settings,
        common: Common | None = None,
    ) -> None:
        self.name = name
        self.platter = Platter()
        self.keep = common.keep if common is not None else MetaKeep(seeded(seed, name, "metadata"))
        self.link = MetaLink()
        self.clock = SimClock()
        self.freezer = Freezer()
        self.pace = Pace()
        self.faults: Callable[[Api], Fault | None] = lambda api: None
        self.buggify = 0.0  # share of the product's ``maybe`` points that fire
        self.life: Life | None = None
        self.ready: Ready | None = None  # of the running process, once it serves
        self.failure: BaseException | None = None  # why the last process ended by itself
        self.starts = 0
        self.server: Server | None = None  # of the last process
        self.stopping = False  # it was asked to
        self._common = common
        self._nursery = nursery
        self._seed = seed
        self._net = net
        self._trace = trace
        self._rng = seeded(seed, name, "fate")
        self._config = from_mapping(
            {
                "broker.id": name,
                "listeners.client.bind": f"127.0.0.1:{PORT}",
                "listeners.client.advertise": f"{name}:{PORT}",
                "storage.data_dir": DATA_DIR,
                "http.bind": "",
                **settings,
            }
        )
        if common is None:
            self.oracle = Oracle(name, self.platter, DATA_DIR)
        else:
            self.oracle = Oracle(
                *(name, self.platter, DATA_DIR, common.judge, common.shown),
                lease_ends=lambda: common.keep.heard.get(name, 0.0) + SESSION_S,
            )
            common.logs[name] = LogWitness(name, self.platter, DATA_DIR, common.judge)
        net.taps.append(self.oracle.tap)
        self._ended = trio.Event()
        self._ended.set()
        self._scope = trio.CancelScope()

    @property
    def address(self) -> str:
        return f"{self.name}:{PORT}"

    @property
    def running(self) -> bool:
        return self.life is not None and not self.life.dead

    async def start(self) -> bool:
        """Start a broker; whether it came so far as to serve (it may be killed meanwhile)."""
        assert not self.running, "one process at a time"
        await self._ended.wait()
        self._net.power_on(self.name)
        self.starts += 1
        self.life = Life(self.name)
        self.ready, self.failure, self.stopping = None, None, False
        self._ended, self._scope = trio.Event(), trio.CancelScope()
        serving = trio.Event()
        self._nursery.start_soon(self._run, self.life, self._ended, self._scope, serving)
        await serving.wait()
        return self.ready is not None

    def kill(self) -> None:
        """SIGKILL: the system closes its sockets, what was written stays written."""
        if self.life is not None and not self.life.dead:
            self._died(self.life)
            self._net.process_died(self.life)

    def power_cut(self, pick: Pick | None = None) -> None:
        """The machine stops; its disk keeps what ``pick`` says of what was not synced."""
        if self.life is not None and not self.life.dead:
            self._died(self.life)
        if self.life is not None:
            self._net.power_off(self.life)
        self.platter.power_cut(pick or random_pick(self._rng))

    def stop(self) -> None:
        """SIGTERM: it hands over what it leads, and ends by itself."""
        if self.running and self.server is not None:
            self.stopping = True
            self.server.stop()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP: for so long it does nothing."""
        self.freezer.freeze(seconds)

    def wipe(self) -> None:
        """The machine stops and gets another, empty disk."""
        self.power_cut()
        if self._common is not None:
            self._common.judge.disk_lost(self.name)
        self.oracle.forget()
        self.platter.wipe()

    async def ended(self) -> None:
        """Wait until the process is gone."""
        await self._ended.wait()

    def world(self, life: Life) -> World:
        """The seams of one process on this machine."""
        start = str(self.starts)

        async def open_metadata(directory: str, _: trio.Nursery) -> MetadataStore:
            if self._common is None:
                self.keep.end_all_leases()
            return SimMeta(self.keep, life, self.link)

        def rng(name: str) -> Random:
            return seeded(self._seed, self.name, start, name)

        chance = rng("maybe")
        offload = SimOffload(life, rng("offload"), self.pace)
        disk = SimDisk(self.platter, life)
        return World(
            clock=self.clock,
            net=self._net.server(life),
            disk=disk,
            offload=offload,
            heavy=OffloadHeavy(offload, disk),
            open_metadata=open_metadata,
            rng=rng,
            boottime=self.clock.boottime,
            maybe=lambda name, probability: chance.random() < probability * self.buggify,
            faults=lambda api: self.faults(api),
            pid=self.starts,
        )

    async def _run(
        self, life: Life, ended: trio.Event, scope: trio.CancelScope, serving: trio.Event
    ) -> None:
        if self._common is not None:
            FREEZER.set(self.freezer)  # of this task and those it starts
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    self.server = Server(self.world(life), self._config)
                    self.ready = await nursery.start(self.server.run)
                    self.oracle.process_serves()
                    if self._common is not None:
                        self._common.judge.serves(self.name)
                    serving.set()
        except BaseException as error:
            # After its death nothing a process does or raises has any meaning.
            if not life.dead:
                self.failure = error
                if not isinstance(error, Exception):
                    raise
        finally:
            if not life.dead:
                self._died(life)
                self._net.process_died(life)
            ended.set()
            serving.set()

    def _died(self, life: Life) -> None:
        """First dead, then cancelled: what unwinds must not do what a dead process could not."""
        life.dead = True
        self.oracle.process_ended()
        self._trace.note("died", self.name, self.starts)
        self.freezer.thaw()
        self._scope.cancel()
