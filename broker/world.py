"""Everything outside the broker, in one value: the five seams.

The broker touches clocks, network, disk, metadata store and threads only through a ``World``, so
that the same code runs on the real system (``system.py``) and in the simulation. ``rng``,
``maybe`` and ``faults`` are no further seams: the code is the same everywhere, only seeds,
probabilities and planned faults differ.

Sleeping and deadlines go through trio, whose clock the simulation replaces as a whole.
"""

import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import trio

from tailrace.broker.metadata import MetadataStore
from tailrace.protocol.messages import Api, WireError
from tailrace.protocol.seams import Clock, Transport
from tailrace.storage.disk import Disk
from tailrace.storage.jobs import Job, Result

P = ParamSpec("P")
T = TypeVar("T")


# ── Network ──────────────────────────────────────────────────────────────────────────────────


class ForeignProtocol(Exception):
    """The peer opened with something that is not what this listener speaks."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


class BrokerTransport(Transport, Protocol):
    """One open connection, of a client's or to another broker."""

    async def receive_into(self, room: memoryview) -> int:
        """How many bytes were written to the beginning of ``room``; 0 when the peer ended.

        Need not let others run first: whoever calls it again and again sees to that.
        """
        ...


class ServerTransport(BrokerTransport, Protocol):
    """One accepted connection."""

    @property
    def sent_bytes(self) -> int:
        """Bytes the system has taken so far: tells a slow reader from one that stalls."""
        ...

    async def handshake(self) -> None:
        """Make the transport ready: TLS if the listener has it, else nothing.

        Raises ``ForeignProtocol`` if the peer speaks no TLS to a TLS listener, ``OSError`` if
        the handshake fails. Bounded by the caller.
        """
        ...


class Listener(Protocol):
    """One bound address."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int:
        """The port really bound, also if 0 was asked for."""
        ...

    async def accept(self) -> ServerTransport:
        """The next connection; ``ConnectionAbortedError`` once the listener was closed."""
        ...

    def close(self) -> None: ...


class ServerNet(Protocol):
    """The network as a broker sees it."""

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> Listener:
        """Bind, or raise ``OSError``."""
        ...

    async def connect(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> BrokerTransport:
        """An open connection to another broker, after the TLS handshake if there is one.

        Raises ``OSError``; ``ssl.SSLError`` is one. Cancelled: nothing stays open.
        """
        ...


# ── Threads ──────────────────────────────────────────────────────────────────────────────────


class Offload(Protocol):
    """Work that would block the event loop.

    A cancelled ``run`` still waits for the work to end: its result would be unknown (R32).
    """

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    def dedicated(self, name: str) -> "Offload":
        """The same, but in one thread of its own, in order."""
        ...


# ── Heavy work ───────────────────────────────────────────────────────────────────────────────

Progress = Callable[[int], None]  # told of bytes read or written, also of none; may raise to end it


def no_progress(size_bytes: int) -> None:
    """Nobody wants to know."""


class WorkerLost(Exception):
    """Whoever did the work is gone; what it left is half-made files, in which nobody believes."""


class Heavy(Protocol):
    """Compaction and erasure: work that takes seconds of a processor, one job at a time."""

    async def run(
        self, job: Job, *, rate_bytes: int | None = None, progress: Progress = no_progress
    ) -> Result:
        """The job's own kind of result. At most ``rate_bytes`` are read and written per second.

        Raises ``RewriteRefused`` and ``OSError`` as the job does, and ``WorkerLost``. Cancelled:
        the work is given up, its half-made files may stay.
        """
        ...

    async def rest(self) -> None:
        """To be called now and then: ends what was idle for long."""
        ...

    async def aclose(self) -> None:
        """Give up what is being done, end everything."""
        ...


# ── Planned faults ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Delay:
    """Take the request up only after so long; what follows on the connection waits behind it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with this error, do nothing."""

    error: WireError


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection, do nothing."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Do nothing and never answer."""


Fault = Delay | Fail | Drop | Hold


def no_faults(api: Api) -> Fault | None:
    """Production: nothing is ever planned."""
    return None


def never(name: str, probability: float) -> bool:
    """Production: no ``maybe`` point ever fires."""
    return False


@dataclass(frozen=True, slots=True)
class World:
    """What a broker is given instead of the operating system.

    ``open_metadata`` takes the data directory's path and a nursery that outlives the store, for
    what the store does in the background; the broker closes it. ``pid`` names the process in the
    lock file; ``rng(name)`` gives one stream of random numbers per name; ``boottime`` is a clock
    in seconds that goes on while the machine is suspended: leases are measured by it (R14).
    """

    clock: Clock
    net: ServerNet
    disk: Disk
    offload: Offload
    heavy: Heavy
    open_metadata: Callable[[str, trio.Nursery], Awaitable[MetadataStore]]
    rng: Callable[[str], random.Random]
    boottime: Callable[[], float] = trio.current_time
    maybe: Callable[[str, float], bool] = never
    faults: Callable[[Api], Fault | None] = no_faults
    pid: int = 0
    ballast_bytes_max: int = 0  # kept back on the disk for when it is full; 0: nothing
