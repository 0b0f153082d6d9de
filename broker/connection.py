"""One connection: bytes to frames, frames to handlers, answers to bytes.

The loop: one receive brings up to 256 KiB, or of a large body up to 1 MiB
(``arrivals.py``); every complete frame in it is decided synchronously; what was answered leaves in
one joined, non-blocking send. A writer task exists only while the peer does not take what it asked
for, or gets ranges of files; another task only while a request must wait for something.

Bounds: 16 requests without answer, 4 MiB of answers not taken, the memory budget of
all connections: beyond any of them the connection is not read. Silence, slowness and stalls have
deadlines (``pulse.py``), which the listener's sweep enforces.

Border (R40): what a peer can cause ends here, as a logged close of this one connection.
AssertionError is our own bug and ends the broker.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from tailrace.broker import handlers, limits
from tailrace.broker.arrivals import Arrivals
from tailrace.broker.bell import Bell
from tailrace.broker.call import Call, Standing
from tailrace.broker.node import Node
from tailrace.broker.pulse import Pulse
from tailrace.broker.world import Delay, Drop, Fail, Hold, ServerTransport
from tailrace.protocol import foreign
from tailrace.protocol.connection import Incoming, ServerConnection
from tailrace.protocol.errors import ConnectError, TailraceError, from_wire
from tailrace.protocol.messages import HelloRequest, Response
from tailrace.protocol.seams import Buffer, FileRange

log = logging.getLogger("tailrace.broker.connection")

COPY_BYTES_MAX = 65_536  # fetched bytes up to this are copied into the joined send
JOIN_BYTES_MAX = 524_288  # answers up to this leave in one joined send
FRAME_BYTES = 128  # what a request costs besides its body
TURN_S = 0.001  # of one connection with many small requests, before others are served


class Connection:
    """Owned by the task that runs ``serve``."""

    def __init__(self, node: Node, transport: ServerTransport, listener: str) -> None:
        self.node = node
        self.listener = listener
        self.who = transport.peer
        self.standing: Standing | None = None
        self.pulse = Pulse(trio.current_time(), node.config.limits.idle_connection_s)
        self._transport = transport
        self._protocol = ServerConnection(
            node.software,
            self.who,
            produce_bytes_max=node.config.limits.request_size_bytes,
            in_flight_max=limits.IN_FLIGHT_MAX,
            spares=node.spares,
        )
        self._arrivals = Arrivals(transport, self._protocol)
        self._calls: dict[Call, None] = {}  # without answer yet
        self._out: list[Buffer] = []
        self._out_bytes = 0  # not taken yet, by the writer's hands included
        self._out_joinable = True  # _out is plain bytes only
        self._flush_wanted = False
        self._writing = False
        self._closed = False
        self._room = Bell()  # something was answered or taken
        self._reserved_bytes = 0  # of the memory budget, for the frame that is arriving
        self._nursery: trio.Nursery
        self._taking = trio.CancelScope()
        self._received = node.metrics.received_bytes.of(listener)
        self._sent = node.metrics.sent_bytes.of(listener)
        self._sent_counted = 0

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    async def serve(self) -> None:
        """Serve until either side ends it. Raises nothing but our own bugs."""
        try:
            async with trio.open_nursery() as self._nursery:
                with self._taking:
                    await self._guarded(self._take_requests)
                if self._taking.cancelled_caught:
                    await self._finish()
                self._nursery.cancel_scope.cancel()
        finally:
            self.close()

    def greeted(self, client_id: str) -> None:
        """The client said hello."""
        self.who = f"{client_id!r} at {self._transport.peer}"
        self.pulse.greeted = True
        self.node.admission.greeted()

    @property
    def hello(self) -> HelloRequest:
        """What the client said of itself, once it did."""
        assert self._protocol.hello is not None, "asked before hello"
        return self._protocol.hello

    @property
    def host(self) -> str:
        """The peer's address without its port."""
        return self._transport.peer.rpartition(":")[0].strip("[]")

    def stop_taking(self) -> None:
        """Take no more requests; answer those in hand, then close."""
        self.pulse.leaving = True
        self._taking.cancel()

    def close(self) -> None:
        """Close at once. What was not answered is abandoned."""
        if self._closed:
            return
        self._closed = True
        self._count_sent()
        self._transport.close()
        self._taking.cancel()
        self._room.ring()
        if not self.pulse.greeted:
            self.node.admission.greeted()
        calls, self._calls = self._calls, {}
        for call in calls:
            call.abandon()
        if self.standing is not None:
            self.standing.close()
        self.node.metrics.requests_in_flight.dec(len(calls))
        self.node.memory.give(self._reserved_bytes + sum(call.held_bytes for call in calls))
        self._reserved_bytes = 0

    def overdue(self, now: float) -> str | None:
        """Why the connection must be closed, if it must."""
        if self._calls and not self._out_bytes and self.pulse.rests(now):
            return None  # most of them, most of the time: each second of every connection counts
        return self.pulse.overdue(
            now,
            waiting=bool(self._calls),
            unsent_bytes=self._out_bytes,
            sent_bytes=self._transport.sent_bytes,
        )

    def open_requests(self) -> list[str]:
        """What has no answer yet, one line each."""
        now = trio.current_time()
        return [
            f"{self.who}: {call.incoming.api.name.lower()} for {now - call.began:.1f} s"
            for call in self._calls
        ]

    def spawn(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        """Run the rest of a call as a task of this connection."""

        async def run() -> None:
            try:
                await work()
            except TailraceError as error:
                if call in self._calls:
                    call.fail(error)
            self.node.outbox.flush()

        self._nursery.start_soon(self._guarded, run)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """The border: whatever a peer can cause ends this connection only."""
        try:
            await work()
        except AssertionError:
            raise
        except OSError as error:
            self._lost(error)
        except ConnectError as error:
            await self._refuse(error)
        except Exception:
            log.exception(
                "connection of %s closed by an unexpected error",
                self.who,
                extra={"event": "connection.failed", "code": None},
            )
            self.close()

    def _lost(self, error: OSError) -> None:
        if not self._closed:
            log.debug("connection of %s lost: %s", self.who, error)
        self.close()

    async def _refuse(self, error: ConnectError) -> None:
        """Say why, in the peer's own protocol where that can be, and close."""
        self.node.metrics.connections_refused.of("protocol").inc()
        log_mismatch(self.who, error)
        found = error.details.get("found")
        if isinstance(found, str):
            farewell = foreign.refusal(found)
        else:
            farewell = self._protocol.refuse(None, error)
        with trio.move_on_after(1.0):
            while self._writing:
                await self._room.wait()
            try:
                await self._transport.send([*self._out, farewell])
            except OSError as lost:
                self._lost(lost)
        self.close()

    async def _finish(self) -> None:
        """Wait until every request in hand is answered and every answer taken."""
        while (self._calls or self._out_bytes) and not self._closed:
            await self._room.wait()

    # ── in ───────────────────────────────────────────────────────────────────────────────────

    async def _take_requests(self) -> None:
        while not self._closed:
            await self._have_room()
            self.pulse.waits(trio.current_time(), self._protocol.missing_bytes)
            before = self._arrivals.received_bytes
            requests = await self._arrivals.take()
            self.pulse.heard(trio.current_time())
            if requests is None:
                return
            self._received.inc(self._arrivals.received_bytes - before)
            while not await self._take_up_some(requests):
                # What else came with this receive waits in the protocol, behind the limits.
                await self._have_room()
                requests = self._protocol.resume()

    async def _take_up_some(self, requests: Iterable[Incoming]) -> bool:
        """Take up what may be in hand and fits into one turn; whether that was all there is."""
        turn_ends = trio.current_time() + TURN_S
        try:
            for incoming in requests:
                if self._closed:
                    return True  # whatever is taken up now would never be given back
                began = await self._take_up(incoming)
                if self._out_bytes > limits.OUT_BYTES_MAX:
                    return False
                if began > turn_ends:
                    break
            else:
                return not self._protocol.full
        finally:
            self.node.outbox.flush()
        await trio.lowlevel.checkpoint()  # others have their turn
        return False

    async def _take_up(self, incoming: Incoming) -> float:
        """See to one request; when that began."""
        self.pulse.completed()
        # What is reserved was for this one: the next that is complete.
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        held = max(reserved, FRAME_BYTES + len(incoming.body))
        self.node.memory.charge(held - reserved)
        call = Call(self, incoming, held)
        self._calls[call] = None
        self.node.metrics.requests_in_flight.inc()
        fault = self.node.world.faults(incoming.api)
        if fault is None or not await self._suffer(fault, call):
            handlers.take_up(self.node, call)
        return call.began

    async def _suffer(self, fault: Delay | Fail | Drop | Hold, call: Call) -> bool:
        """A planned fault; whether that was all that happens to the request."""
        self.node.outbox.flush()
        match fault:
            case Delay(seconds):
                await trio.sleep(seconds)
                return False
            case Fail(error):
                call.fail(from_wire(error))
            case Hold():
                pass
            case Drop():
                raise ConnectionResetError("dropped by a planned fault")
        return True

    async def _have_room(self) -> None:
        """Wait while this connection, or all of them together, have enough in hand."""
        while (self._protocol.full or self._out_bytes > limits.OUT_BYTES_MAX) and not self._closed:
            await self._room.wait()
        if self._closed or self._reserved_bytes:
            return
        missing = self._protocol.missing_bytes
        wanted = missing if missing > limits.RESERVED_BYTES_MIN else 0
        memory = self.node.memory
        if not memory.reserve(wanted):
            granted = trio.Event()
            give_up = memory.wait(wanted, granted.set)
            try:
                await granted.wait()
            except trio.Cancelled:
                if give_up():
                    memory.give(wanted)
                raise
            if self._taking.cancel_called:  # in the same turn: it has given back what it had
                memory.give(wanted)
                return
        self._reserved_bytes = wanted

    # ── out ──────────────────────────────────────────────────────────────────────────────────

    def answer(
        self,
        call: Call,
        outcome: Response | TailraceError,
        ranges: Sequence[FileRange],
        length: int,
        code: str,
    ) -> None:
        """Queue an answer; the wake-up's flush sends it. Nothing happens on a closed connection."""
        if self._closed:
            return
        del self._calls[call]
        self.node.memory.give(call.held_bytes)
        self.node.metrics.requests_in_flight.dec()
        self.node.count(call.incoming.api, code, trio.current_time() - call.began)
        self._room.ring()
        if call.silent:
            self._protocol.drop(call.incoming)
            return
        if isinstance(outcome, TailraceError):
            frame = self._protocol.refuse(call.incoming, outcome)
        else:
            frame = self._protocol.answer(call.incoming, outcome, length)
        self._out.append(frame)
        self._out_bytes += len(frame) + length
        if length <= COPY_BYTES_MAX and all(one.cached() for one in ranges):
            self._out.extend(one.view() for one in ranges)
        else:
            self._out.extend(ranges)
            self._out_joinable = False
        if not self._flush_wanted:
            self._flush_wanted = True
            self.node.outbox.add(self)

    def flush(self) -> None:
        """Send what is queued: at once as far as the peer takes it, the rest by the writer."""
        self._flush_wanted = False
        if self._writing or self._closed or not self._out:
            return
        if self._out_joinable and self._out_bytes <= JOIN_BYTES_MAX:
            data = b"".join(self._out)  # type: ignore[arg-type]  # joinable: no range is in it
            try:
                sent = self._transport.send_nowait(data)
            except OSError as error:
                self._lost(error)
                return
            self._count_sent()
            self._out_bytes -= sent
            self._out = [memoryview(data)[sent:]] if sent < len(data) else []
        if self._out:
            self._writing = True
            self._nursery.start_soon(self._guarded, self._write)

    async def _write(self) -> None:
        try:
            while self._out:
                out, out_bytes = self._out, self._out_bytes
                self._out, self._out_joinable = [], True
                await self._transport.send(out)
                self._count_sent()
                self._out_bytes -= out_bytes
                self._room.ring()
        finally:
            self._writing = False
            self._room.ring()

    def _count_sent(self) -> None:
        sent_bytes = self._transport.sent_bytes
        self._sent.inc(sent_bytes - self._sent_counted)
        self._sent_counted = sent_bytes


def log_mismatch(who: str, error: ConnectError) -> None:
    """The peer spoke what we do not: one line that names it."""
    log.warning(
        "%s: %s",
        who,
        error,
        extra={"event": "client.protocol_mismatch", "code": error.code, "peer": who},
    )
