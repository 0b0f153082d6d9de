"""A network between named hosts, in memory and on virtual time.

``SimNet`` is the fabric all hosts hang on; ``SimClientNet`` and ``SimServerNet`` are the seams of
one process on one host. Faults: slow, clogged and one-way cut links, connections reset at once or
after a random byte, a machine that lost power (its peers notice nothing until it is back), nobody
listening. Everything here is plaintext.
"""

import itertools
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import trio

from tailrace.protocol.seams import Buffer
from tailrace.simulation.chance import seeded
from tailrace.simulation.life import Life
from tailrace.simulation.link import Link, Pipe, Signal

BACKLOG = 128
FIRST_FREE_PORT = 49_152

Tap = Callable[["Connection", bool, bytes], None]  # connection, to the client?, bytes
Wall = Callable[[str, str], bool]  # source, target -> whether nothing passes


class Connection:
    """Both directions of one connection, and who stands at its ends."""

    def __init__(self, number: int, client: Life, server: Life, there: Pipe, back: Pipe) -> None:
        self.number = number
        self.client = client
        self.server = server
        self.there = there  # client to server
        self.back = back
        self.half_open = False  # one machine lost power

    @property
    def alive(self) -> bool:
        return not self.there.reset and not (self.there.ended and self.back.ended)

    def reset(self) -> None:
        """Both ends get ``ConnectionResetError`` after what had already arrived."""
        self.there.break_off()
        self.back.break_off()

    def lose(self) -> None:
        """One machine is gone without a word: what is sent now vanishes."""
        self.half_open = True
        for pipe in (self.there, self.back):
            pipe.void = True


class SimTransport:
    """One end of a connection."""

    def __init__(
        self, net: "SimNet", connection: Connection, life: Life, peer: str, *, is_client: bool
    ) -> None:
        self._net = net
        self._connection = connection
        self._life = life
        self._peer = peer
        self._is_client = is_client
        self._in = connection.back if is_client else connection.there
        self._out = connection.there if is_client else connection.back
        self._closed = False

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def sent_bytes(self) -> int:
        return self._out.carried

    async def handshake(self) -> None:
        """Nothing to agree on: the simulation is plaintext."""
        await trio.lowlevel.checkpoint()

    async def receive(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._life.check()
            if self._closed:
                raise ConnectionAbortedError("closed here")
            data = self._in.take(max_bytes)
            if data is not None:
                for tap in self._net.arrivals:
                    tap(self._connection, self._is_client, data)
                return data
            await self._in.readable.wait(self._in.next_arrival())

    async def receive_into(self, room: memoryview) -> int:
        data = await self.receive(len(room))
        room[: len(data)] = data
        return len(data)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sending()
        data = memoryview(b"".join(_plain(buffer) for buffer in buffers))
        self._seen(bytes(data))
        while data:
            self._check_sending()
            taken = self._put(data)
            data = data[taken:]
            if data:
                await self._out.writable.wait()

    def send_nowait(self, data: bytes) -> int:
        self._check_sending()
        taken = min(len(data), self._out.room)
        if taken:
            self._seen(data[:taken])
            self._put(memoryview(data)[:taken])
        return taken

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._life.dead:
                return  # the system closed it when the process died
            self._out.end()
            self._in.deaf = True
            self._in.writable.send()
            self._in.readable.send()

    def _put(self, data: memoryview) -> int:
        if self._out.deaf or (self._connection.half_open and self._net.is_up(self._connection)):
            self._connection.reset()  # the other side knows of no such connection (any more)
            raise ConnectionResetError("connection reset by peer")
        breaks_at = self._out.breaks_at
        if breaks_at is not None and self._out.carried + len(data) >= breaks_at:
            self._out.put(data[: breaks_at - self._out.carried])
            self._connection.reset()
            raise ConnectionResetError("connection reset by peer")
        return self._out.put(data)

    def _check_sending(self) -> None:
        self._life.check()
        if self._closed:
            raise ConnectionAbortedError("closed here")
        if self._out.reset:
            raise ConnectionResetError("connection reset by peer")

    def _seen(self, data: bytes) -> None:
        for tap in self._net.taps:
            tap(self._connection, not self._is_client, data)


class SimListener:
    """A listening socket."""

    def __init__(self, net: "SimNet", life: Life, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.life = life
        self.arrived: deque[SimTransport] = deque()
        self.changed = Signal()
        self._net = net

    async def accept(self) -> SimTransport:
        """The next connection; ``ConnectionAbortedError`` once closed here."""
        await trio.lowlevel.checkpoint()
        while True:
            self.life.check()
            if self._net.listener(self.life.name, self.port) is not self:
                raise ConnectionAbortedError("closed here")
            if self.arrived:
                self.changed.send()
                return self.arrived.popleft()
            await self.changed.wait()

    def close(self) -> None:
        if not self.life.dead:
            self._net.stop_listening(self)


class SimNet:
    """The fabric: links, listeners and connections, and everything that goes wrong there."""

    def __init__(self, seed: int, *, delay_min: float = 0.0001, delay_mean: float = 0.0004) -> None:
        self.delay_min = delay_min
        self.delay_mean = delay_mean
        self.reset_share = 0.0  # this share of new connections is reset after a random byte
        self.reset_bytes_max = 64 << 10
        self.taps: list[Tap] = []  # of what is sent
        self.arrivals: list[Tap] = []  # of what is received
        self._seed = seed
        self._rng = seeded(seed, "net")
        self._links: dict[tuple[str, str], Link] = {}
        self._listeners: dict[tuple[str, int], SimListener] = {}
        self._connections: list[Connection] = []
        self._off: set[str] = set()  # machines without power
        self._refusing: set[str] = set()
        self._held: set[str] = set()
        self._wall: Wall | None = None
        self._numbers = itertools.count(1)
        self._ports = itertools.count(FIRST_FREE_PORT)

    def client(self, life: Life) -> "SimClientNet":
        return SimClientNet(self, life)

    def server(self, life: Life) -> "SimServerNet":
        return SimServerNet(self, life)

    def link(self, source: str, target: str) -> Link:
        """The directed link between two hosts."""
        key = (source, target)
        if key not in self._links:
            rng = seeded(self._seed, "link", source, target)
            self._links[key] = Link(rng, delay_min=self.delay_min, delay_mean=self.delay_mean)
            self._links[key].cut = bool({source, target} & self._held) or self._walled(*key)
        return self._links[key]

    def links(self) -> Iterable[Link]:
        return self._links.values()

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from one host to the other until ``heal``; the way back stays open."""
        self.link(source, target).cut = True

    def partition(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Cut all links between two groups of hosts, both ways."""
        others = list(others)
        for one in some:
            for other in others:
                self.cut(one, other)
                self.cut(other, one)

    def wall(self, wall: Wall | None) -> None:
        """Cut all links, also those of hosts that come later, of which ``wall`` says so; all others
        pass. One wall at a time; None: no more."""
        self._wall = wall
        for ends, link in self._links.items():
            cut = bool({*ends} & self._held) or self._walled(*ends)
            if cut != link.cut:
                link.cut = cut

    def _walled(self, source: str, target: str) -> bool:
        return self._wall is not None and self._wall(source, target)

    def heal(self) -> None:
        """All links pass again, and no connection breaks by itself any more."""
        self.reset_share = 0.0
        self._wall = None
        self._held.clear()
        for link in self._links.values():
            link.clogged_until = 0.0
            link.flips = 0.0
            link.cut = False
        for connection in self._connections:
            connection.there.breaks_at = connection.back.breaks_at = None

    def clog(self, source: str, target: str, seconds: float) -> None:
        """Bytes sent from now on arrive after that time at the earliest."""
        self.link(source, target).clogged_until = trio.current_time() + seconds

    def reset_some(self, share: float) -> int:
        """Reset about that share of all connections; how many."""
        chosen = [each for each in self._alive() if self._rng.random() < share]
        for connection in chosen:
            connection.reset()
        return len(chosen)

    def reset_host(self, host: str) -> None:
        """Reset every connection of a host."""
        for connection in self._alive():
            if host in (connection.client.name, connection.server.name):
                connection.reset()

    def reset_between(self, some: str, other: str) -> None:
        """Reset every connection between two hosts."""
        for connection in self._alive():
            if {connection.client.name, connection.server.name} == {some, other}:
                connection.reset()

    def refuse(self, host: str, on: bool) -> None:
        """Connections to a host are refused, although somebody may listen there."""
        (self._refusing.add if on else self._refusing.discard)(host)

    def hold(self, host: str, on: bool) -> None:
        """Nothing reaches a host or leaves it; what was sent arrives afterwards."""
        (self._held.add if on else self._held.discard)(host)
        for ends, link in self._links.items():
            if host in ends:
                link.cut = on

    def process_died(self, life: Life) -> None:
        """The system closes the sockets of a killed process."""
        self._close_listeners(life)
        for connection in self._alive():
            if life in (connection.client, connection.server):
                connection.reset()

    def power_off(self, life: Life) -> None:
        """The machine is gone without a word; peers learn of it when it is back and they send."""
        self._close_listeners(life)
        self._off.add(life.name)
        for connection in self._alive():
            if life in (connection.client, connection.server):
                connection.lose()

    def power_on(self, host: str) -> None:
        self._off.discard(host)

    def is_up(self, connection: Connection) -> bool:
        """Whether both machines have power now."""
        return not {connection.client.name, connection.server.name} & self._off

    def listener(self, host: str, port: int) -> SimListener | None:
        return self._listeners.get((host, port))

    def stop_listening(self, listener: SimListener) -> None:
        """Close it; connections not yet accepted are reset."""
        self._listeners.pop((listener.life.name, listener.port), None)
        while listener.arrived:
            listener.arrived.popleft().close()
        listener.changed.send()

    def listen(self, life: Life, host: str, port: int) -> SimListener:
        life.check()
        port = port or next(self._ports)
        if (life.name, port) in self._listeners:
            raise OSError(98, "Address already in use")
        listener = SimListener(self, life, host, port)
        self._listeners[life.name, port] = listener
        return listener

    async def connect(self, life: Life, host: str, port: int) -> SimTransport:
        """As ``ClientNet.connect``; waits for ever where packets are lost."""
        life.check()
        there, back = self.link(life.name, host), self.link(host, life.name)
        for link in (there, back):
            await trio.sleep(link.delay())
            while link.cut or host in self._off:
                await link.healed.wait(trio.current_time() + 1.0)  # the system asks again
        life.check()
        listener = self.listener(host, port)
        if listener is None or host in self._refusing:
            raise ConnectionRefusedError(111, "Connection refused")
        while len(listener.arrived) >= BACKLOG:
            await listener.changed.wait()
        number = next(self._numbers)
        connection = Connection(number, life, listener.life, Pipe(there), Pipe(back))
        if self._rng.random() < self.reset_share:
            pipe = self._rng.choice((connection.there, connection.back))
            pipe.breaks_at = self._rng.randrange(1, self.reset_bytes_max)
        self._remember(connection)
        name = f"{life.name}:{40_000 + number}"
        listener.arrived.append(
            SimTransport(self, connection, listener.life, name, is_client=False)
        )
        listener.changed.send()
        return SimTransport(self, connection, life, f"{host}:{port}", is_client=True)

    def _remember(self, connection: Connection) -> None:
        for each in self._connections:
            if not each.alive:
                each.there.forget()
                each.back.forget()
        self._connections = [*self._alive(), connection]

    def _alive(self) -> list[Connection]:
        return [each for each in self._connections if each.alive]

    def _close_listeners(self, life: Life) -> None:
        for key, listener in list(self._listeners.items()):
            if listener.life is life:
                del self._listeners[key]
                while listener.arrived:
                    listener.arrived.popleft()
                listener.changed.send()


class SimClientNet:
    """``protocol.seams.ClientNet`` for one process."""

    def __init__(self, net: SimNet, life: Life) -> None:
        self._net = net
        self._life = life

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None) -> SimTransport:
        if tls is not None:
            raise OSError("the simulated network is plaintext")
        return await self._net.connect(self._life, host, port)


class SimServerNet:
    """``broker.world.ServerNet`` for one process; it listens by its host's name."""

    def __init__(self, net: SimNet, life: Life) -> None:
        self._net = net
        self._life = life

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None
    ) -> SimListener:
        await trio.lowlevel.checkpoint()
        if tls is not None:
            raise OSError("the simulated network is plaintext")
        return self._net.listen(self._life, host, port)

    async def connect(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None
    ) -> SimTransport:
        if tls is not None:
            raise OSError("the simulated network is plaintext")
        return await self._net.connect(self._life, host, port)


def _plain(buffer: Buffer) -> bytes | bytearray | memoryview:
    if isinstance(buffer, bytes | bytearray | memoryview):
        return buffer
    return buffer.view()


def jittered(rng: Random, seconds: float) -> float:
    """A simulated sleep never ends at the very same moment as another one."""
    return seconds + rng.random() * 1e-6
