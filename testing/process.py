"""The process of a test broker: a thread that runs trio and a ``Server``."""

import threading
from collections.abc import Awaitable, Callable, Mapping
from queue import SimpleQueue
from typing import TypeVar

import trio

from tailrace.broker.config import from_mapping
from tailrace.broker.server import Ready, Server
from tailrace.simulation.life import single
from tailrace.testing import events
from tailrace.testing.blocking import outside_loops
from tailrace.testing.machine import Machine

T = TypeVar("T")

CLEAN_S = 1.0  # a broker that is busy for longer cleans while the test goes on
GRACE_S = 2.0  # for requests in hand at a graceful stop
STOP_S = 10.0  # a broker that takes longer to end is broken


class Process:
    """One run of a broker on a machine."""

    def __init__(
        self,
        machine: Machine,
        settings: Mapping[str, str | int | float | bool],
        defaults: Mapping[str, str],
        name: str = "test",
    ) -> None:
        """``name``: of the broker, in its log lines."""
        self._machine = machine
        self._config = from_mapping(settings, defaults=defaults)
        self._started: SimpleQueue[Ready | BaseException] = SimpleQueue()
        self._events = events.EventLog(name)
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._server: Server | None = None
        self._running = threading.Event()  # cleared: the loop stands still
        self._running.set()
        self._thread = threading.Thread(
            target=self._run, name=f"tailrace-{name}-broker", daemon=True
        )
        self._failure: BaseException | None = None

    def start(self) -> Ready:
        """Return once it serves; raises what the start raised."""
        events.install(self._events)
        self._thread.start()
        result = self._started.get()
        if isinstance(result, BaseException):
            self._thread.join()
            events.remove(self._events)
            raise result
        return result

    def stop(self) -> None:
        """Stop gracefully; raises what the broker ended with, if that was an error.

        Requests that a fault holds back are never answered: after a while they are given up.
        """
        self.pause(False)
        if self._server is not None:
            self._soon(self._server.stop)
            self._thread.join(GRACE_S)
        if self._thread.is_alive():
            self._soon(self._scope.cancel)
        self._join()
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """End at once: nothing is flushed or written any more."""
        self._machine.life.dead = True
        self.pause(False)
        self._soon(self._scope.cancel)
        self._join()

    @outside_loops
    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run ``function`` in the broker's thread and wait for what it returns."""
        assert self._token is not None
        return trio.from_thread.run(function, trio_token=self._token)

    @outside_loops
    def call_sync(self, function: Callable[[], T]) -> T:
        """As ``call``, for a plain function."""
        assert self._token is not None
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def pause(self, on: bool) -> None:
        """Stand still, timers included, or go on."""
        if not on:
            self._running.set()
        elif self._running.is_set():
            self._running.clear()
            standing = threading.Event()

            def stand() -> None:
                standing.set()
                self._running.wait()

            self._soon(stand)
            standing.wait()

    def run_janitor(self) -> None:
        """Let the housekeeping look at clock and disk now, and wait until it has."""
        server = self._server
        assert server is not None

        async def clean() -> None:
            with trio.move_on_after(CLEAN_S):
                await server.clean()

        self.call(clean)

    def expire_member(self, group: str, member_id: str) -> None:
        """See ``Broker.expire_member``."""
        server = self._server
        assert server is not None
        self.call_sync(lambda: server.expire_member(group, member_id))

    def known_brokers(self) -> frozenset[str]:
        """Ids of the brokers of its cluster, itself included, as it knows them."""
        server = self._server
        assert server is not None

        def look() -> frozenset[str]:
            gateway = server.gateway
            return frozenset() if gateway is None else frozenset(gateway.node.views.view.brokers)

        return self.call_sync(look)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def events(self, last: int) -> list[dict[str, object]]:
        return self._events.last(last)

    def _soon(self, function: Callable[[], object]) -> None:
        assert self._token is not None
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            self._running.set()

    def _join(self) -> None:
        self._thread.join(STOP_S)
        events.remove(self._events)
        assert not self._thread.is_alive(), f"the broker did not stop within {STOP_S:g} s"

    def _run(self) -> None:
        self._events.thread = threading.get_ident()
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
            self._started.put(error)  # nobody reads it, if it had started before

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._server = Server(self._machine.world(), self._config)
                    self._started.put(await nursery.start(self._server.run))
        except BaseException as error:
            # Killed: what unwinding met at the seams of a dead process has no meaning.
            if not self._machine.life.dead:
                raise single(error) from None
