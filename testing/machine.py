"""What a test broker runs on: the world of ``broker.world``, with handles for faults.

Real time and real sockets; the log is in memory (the simulation's disk without its dice) or in a
data directory. Everything here belongs to the broker's thread but for ``Machine.clock``.
"""

import os
import random
import ssl
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import trio

from tailrace.broker.heavy import OffloadHeavy
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.net import TrioNet
from tailrace.broker.threads import ThreadOffload
from tailrace.broker.world import (
    BrokerTransport,
    Listener,
    Offload,
    ServerNet,
    ServerTransport,
    World,
)
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.simulation.meta import MetaKeep, SimMeta
from tailrace.storage.disk import OsDisk
from tailrace.testing.faults import Rules
from tailrace.testing.real_disk import ProbedDisk, Unsynced
from tailrace.testing.shared_store import SharedKeep, SharedStore
from tailrace.testing.wires import METADATA, WiredNet, Wiring

P = ParamSpec("P")
T = TypeVar("T")

MEMORY_DIR = "/memory"
BROKER_FILES = ("LOCK", "meta.json", "clean", "suspect", "clock", "metadata.sqlite")


class MovableClock:
    """The system's clocks, shifted by ``Broker.advance``.

    Both of them: retention moves with the monotonic one, so that a step of the wall clock alone
    removes nothing (S29). Timeouts and leases are trio's and the metadata store's, not moved.
    """

    def __init__(self) -> None:
        self.shift_ms = 0

    def now(self) -> float:
        return time.monotonic() + self.shift_ms / 1000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.shift_ms


class Gate:
    """Whether new connections are let in, and which are open."""

    def __init__(self) -> None:
        self.closed = False
        self.opened = trio.Event()
        self.listeners: list[GatedListener] = []
        self.transports: weakref.WeakSet[ServerTransport] = weakref.WeakSet()

    def shut(self) -> None:
        """Stop listening: the system refuses whoever connects."""
        self.closed = True
        self.opened = trio.Event()
        for listener in self.listeners:
            listener.inner.close()

    async def open(self) -> None:
        """Listen again, on the same ports."""
        for listener in self.listeners:
            await listener.listen_again()
        self.closed = False
        self.opened.set()

    def drop_all(self) -> None:
        for transport in list(self.transports):
            transport.close()


class GatedNet:
    """``ServerNet`` behind a gate."""

    def __init__(self, inner: ServerNet, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> Listener:
        inner = await self._inner.listen(host, port, tls=tls)
        listener = GatedListener(inner, self._inner, self._gate, tls)
        self._gate.listeners.append(listener)
        return listener

    async def connect(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> BrokerTransport:
        return await self._inner.connect(host, port, tls=tls)


class GatedListener:
    """A listener that can be away for a while."""

    def __init__(
        self, inner: Listener, net: ServerNet, gate: Gate, tls: ssl.SSLContext | None
    ) -> None:
        self.inner = inner
        self.host = inner.host
        self.port = inner.port
        self._net = net
        self._gate = gate
        self._tls = tls
        self._closed = False

    async def accept(self) -> ServerTransport:
        while True:
            while self._gate.closed and not self._closed:
                await self._gate.opened.wait()
            try:
                transport = await self.inner.accept()
            except ConnectionAbortedError:
                if self._closed or not self._gate.closed:
                    raise
            else:
                self._gate.transports.add(transport)
                return transport

    async def listen_again(self) -> None:
        if not self._closed:
            self.inner = await self._net.listen(self.host, self.port, tls=self._tls)

    def close(self) -> None:
        self._closed = True
        self.inner.close()


class PacedOffload:
    """Worker threads, or none (``inner`` None: inline, for a disk in memory); ``delay`` seconds
    are added to what has a thread of its own, which is the sync."""

    def __init__(self, inner: Offload | None, delay: Callable[[], float]) -> None:
        self._inner = inner
        self._delay = delay
        self._paced = False

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        if self._paced and (seconds := self._delay()):
            with trio.CancelScope(shield=True):  # a sync under way is waited for (R32)
                await trio.sleep(seconds)
        if self._inner is None:
            return work(*args, **kwargs)
        return await self._inner.run(work, *args, **kwargs)

    def dedicated(self, name: str) -> "PacedOffload":
        inner = self._inner.dedicated(name) if self._inner is not None else None
        offload = PacedOffload(inner, self._delay)
        offload._paced = name != "metadata"
        return offload


@dataclass(frozen=True, slots=True)
class Among:
    """A machine's place in a cluster of them."""

    broker_id: str
    keep: SharedKeep
    wiring: Wiring


class Machine:
    """Disk and metadata that outlive the processes on them; each process gets a ``world``."""

    def __init__(self, data_dir: str | None, among: Among | None = None) -> None:
        """``among``: None: the broker is alone, and has its own metadata."""
        self.data_dir = data_dir
        self._among = among
        self.clock = MovableClock()
        self.rules = Rules()
        self.sync_delay_s = 0.0
        self.gate: Gate | None = None  # of the running process
        self.life = Life("test broker")
        self._platter = Platter(ordered=False)
        self._keep = _new_keep()
        self._unsynced = Unsynced()
        self._disk: ProbedDisk | None = None

    def world(self) -> World:
        """The seams of a new process; call it in the process's trio thread."""
        self.life = life = Life("test broker")
        self.gate = Gate()
        among = self._among
        threads = ThreadOffload()
        offload = PacedOffload(threads if self.data_dir else None, lambda: self.sync_delay_s)
        if self.data_dir:
            self._disk = ProbedDisk(self._unsynced, life)

        async def open_metadata(directory: str, _: trio.Nursery) -> MetadataStore:
            if among is not None:
                return SharedStore(among.keep, life, partial(_cut_off, among))
            if self.data_dir is None:
                self._keep.end_all_leases()
                return SimMeta(self._keep, life)
            from tailrace.broker.metadata_embedded import EmbeddedStore

            unmoved = MovableClock()
            return await EmbeddedStore.open(f"{directory}/metadata.sqlite", offload, unmoved)

        disk = self._disk or SimDisk(self._platter, life)
        net: ServerNet = TrioNet(threads)
        if among is not None:
            net = WiredNet(net, among.wiring, among.broker_id)
        return World(
            clock=self.clock,
            net=GatedNet(net, self.gate),
            disk=disk,
            offload=offload,
            heavy=OffloadHeavy(offload, disk),
            open_metadata=open_metadata,
            rng=lambda name: random.SystemRandom(),
            faults=self.rules,
            pid=os.getpid(),
        )

    def fill(self, on: bool) -> None:
        """Not a byte more fits, or all of the disk is there again."""
        if self._disk is not None:
            self._disk.full = on
        self._platter.full = on

    def lose_unsynced(self) -> None:
        """A power cut that keeps nothing of what was not synced. The process must be dead."""
        self._platter.power_cut(lambda options: 0)
        self._unsynced.take_back(OsDisk())

    def wipe(self) -> None:
        """A new, empty disk; in a data directory only what a broker makes there is removed."""
        self._platter = Platter(ordered=False)
        self._keep = _new_keep()
        self._unsynced = Unsynced()
        disk = OsDisk()
        for name in disk.list(self.data_dir or ""):
            path = f"{self.data_dir}/{name}"
            if name == "topics":
                disk.remove_directory(path)
            elif name.startswith(BROKER_FILES):
                disk.remove(path)


def _cut_off(among: Among) -> bool:
    return among.wiring.apart(among.broker_id, METADATA)


def _new_keep() -> MetaKeep:
    keep = MetaKeep(random.Random())
    keep.delay_mean = 0.0
    return keep
