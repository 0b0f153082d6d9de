"""``connect()`` and ``Client``: one cluster, its background tasks, and what is opened on it.

The client owns a task group; every task of its connections, producers and consumers lives there
and ends with it. A cancellation from outside ends the body only, not them: closing needs them to
hear the answers (C7). No ``ExceptionGroup`` leaves (C10): the body's exception goes on unchanged,
else the first failure does, with further ones as its notes.
"""

import ssl
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import anyio
from anyio.abc import TaskGroup

from tailrace.client.cluster import Cluster
from tailrace.client.events import EventName, Events, Hook
from tailrace.client.guard import Guard
from tailrace.client.memory import keep_large_blocks
from tailrace.client.net import TcpNet
from tailrace.client.opening import Opening
from tailrace.client.options import ClientOptions, resolve
from tailrace.client.runtime import Runtime, SystemClock
from tailrace.client.shapes import ClientHealth
from tailrace.protocol import texts_client
from tailrace.protocol.seams import ClientNet, Clock

if TYPE_CHECKING:
    from tailrace.client.admin import Admin
    from tailrace.client.heart import Heart


def connect(
    url: str | Sequence[str] | None = None,
    *,
    client_id: str | None = None,
    tls: bool | ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    request_timeout: float = 10.0,
    max_outage: float | None = None,
    close_timeout: float = 10.0,
    rack: str | None = None,
) -> "Client":
    """A client of the cluster at ``url``; it connects at ``async with``.

    ``url``: None is ``$TAILRACE_URL``, else ``tailrace://localhost:7400``. ``client_id``: None is
    ``<program>-<pid>``. ``tls``: None is as the URL's scheme says. Durations are seconds:
    ``connect_timeout`` over all addresses together, ``request_timeout`` for one request,
    ``max_outage`` None to reconnect for ever, ``close_timeout`` for flushing at the end. ``rack``:
    where this client is, as brokers' ``broker.rack`` has it; consumers then read from an in-sync
    replica in the same rack where there is one.

    Raises ConfigError T080 or T082 for a URL or an argument that cannot be.
    """
    options = resolve(
        url,
        client_id=client_id,
        tls=tls,
        connect_timeout=connect_timeout,
        request_timeout=request_timeout,
        max_outage=max_outage,
        close_timeout=close_timeout,
        rack=rack,
    )
    return Client(options)


class Closable(Protocol):
    """A producer or consumer as the client sees it when it closes."""

    async def aclose(self) -> None:
        """Flush, commit, end; safe to call again."""
        ...


class Client(Opening):
    """Use as ``async with tailrace.connect() as client``; see ``connect``.

    ``net``, ``clock`` and ``random`` are for the simulation.
    """

    def __init__(
        self,
        options: ClientOptions,
        *,
        net: ClientNet | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.options = options
        self.clock: Clock = clock or SystemClock()
        self.random = random or Random()
        self.events = Events(self.clock, self._start_soon)
        self.runtime = Runtime(
            net=net or TcpNet(),
            clock=self.clock,
            random=self.random,
            options=options,
            events=self.events,
            start_soon=self._start_soon,
            alive=self._tasks_run,
        )
        self.cluster = Cluster(self.runtime)
        self._guard: Guard | None = None
        self._closed = False
        self._tasks: TaskGroup | None = None
        self._shields: dict[anyio.CancelScope, None] = {}  # of its tasks; in order, to repeat
        self._consumers: list[Closable] = []
        self.fetch_sessions = count(1)  # numbers: no two of its consumers share one
        self._producers: list[Closable] = []
        self._admin: Admin | None = None
        self._hearts: dict[str, Heart] = {}

    # ── opening and closing ──────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        """Reach the cluster within ``connect_timeout``; raises ConnectError T001-T004, T120."""
        if self._guard is not None or self._closed:
            raise texts_client.already_closed("Client")
        self._guard = Guard("Client")
        keep_large_blocks()
        self._tasks = await anyio.create_task_group().__aenter__()
        try:
            await self.cluster.open()
        except BaseException as error:
            self.cluster.close()
            await self._end_tasks(error)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure: BaseException | None = None
        try:
            await self.aclose()
        except BaseException as error:
            failure = error
        await self._end_tasks(exc if exc is not None else failure)
        if failure is not None:
            if exc is None:
                raise failure
            _add_note(exc, failure)

    async def aclose(self) -> None:
        """Close the consumers, then flush and close the producers, then the connections.

        Consumers close at the same time, then so do producers: each of the two takes no more than
        ``close_timeout``. Raises CloseTimeout T026 or FlushError T025 for what was not
        delivered. Cancelled: 2 s more, shielded, for what is under way. Safe to call again.
        """
        if self._closed:
            return
        if self._guard is not None:
            self._guard.check()
        failures = await _close_all(list(self._consumers))
        failures += await _close_all(list(self._producers))
        self._closed = True
        if self._guard is not None:
            self._guard.close()
        self.cluster.close()
        if failures:
            first, *others = failures
            for other in others:
                _add_note(first, other)
            raise first

    async def _end_tasks(self, exc: BaseException | None) -> None:
        """Stop the background tasks; raises the failure of one if that is what ended the body."""
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        crashed = tasks.cancel_scope.cancel_called
        tasks.cancel_scope.cancel()
        for shield in list(self._shields):
            shield.cancel()
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        try:
            # A cancellation from outside must leave as it came: only one that a background task
            # caused is the task group's to take back.
            if exc is not None and crashed and cancelled:
                await tasks.__aexit__(type(exc), exc, exc.__traceback__)
            else:
                await tasks.__aexit__(None, None, None)
        except BaseExceptionGroup as group:
            first, *others = _leaves(group)
            for other in others:
                _add_note(first, other)
            if exc is None or cancelled:
                raise first from None
            _add_note(exc, first)

    # ── what users call ──────────────────────────────────────────────────────────────────────

    @property
    def admin(self) -> "Admin":
        """Topics, and what the cluster looks like."""
        from tailrace.client.admin import Admin

        if self._admin is None:
            self._admin = Admin(self)
        return self._admin

    @property
    def cluster_id(self) -> str:
        """The id of the cluster; UsageError T055 before ``async with``."""
        self.check()
        return self.cluster.cluster_id

    def health(self) -> ClientHealth:
        """Whether a broker can be reached right now; never fails, also after the end."""
        return self.cluster.health()

    def on(self, event: EventName, hook: Hook) -> None:
        """Call ``hook`` at each such event; one that fails is logged at ERROR."""
        self.events.on(event, hook)

    # ── for the parts of the client ──────────────────────────────────────────────────────────

    def check(self) -> None:
        """Raise UsageError T053-T055 unless this is the client's own, open loop."""
        if self._guard is None:
            raise texts_client.not_open("Client")
        self._guard.check()

    def heart(self, kind: Literal["thread", "task"]) -> "Heart":
        """What keeps the memberships of its consumers alive; made at the first one (C13)."""
        heart = self._hearts.get(kind)
        if heart is None:
            from tailrace.client.heart import ThreadHeart
            from tailrace.client.heart_task import TaskHeart

            heart = self._hearts[kind] = (ThreadHeart if kind == "thread" else TaskHeart)(self)
        return heart

    def attach_consumer(self, consumer: Closable) -> None:
        """The client closes it if nobody else does."""
        self._consumers.append(consumer)

    def attach_producer(self, producer: Closable) -> None:
        """The client closes it if nobody else does, after the consumers."""
        self._producers.append(producer)

    def detach(self, closed: Closable) -> None:
        """It is closed."""
        for opened in (self._consumers, self._producers):
            if closed in opened:
                opened.remove(closed)

    def _start_soon(self, fn: Callable[..., Any], *args: object) -> None:
        """Run a background task that ends with the client. After the end: nothing."""
        if self._tasks is not None:
            shield = anyio.CancelScope(shield=True)
            self._shields[shield] = None
            self._tasks.start_soon(self._shielded, shield, fn, args, name=fn)

    async def _shielded(
        self, shield: anyio.CancelScope, fn: Callable[..., Any], args: tuple[object, ...]
    ) -> None:
        try:
            with shield:
                await fn(*args)
        finally:
            del self._shields[shield]

    def _tasks_run(self) -> bool:
        return self._tasks is not None and not self._tasks.cancel_scope.cancel_called


async def _close_all(opened: Sequence[Closable]) -> list[BaseException]:
    """At the same time; what they raised, in their order, and then a cancellation of this."""
    failed: dict[Closable, BaseException] = {}
    cancelled: list[BaseException] = []

    async def close(one: Closable) -> None:
        try:
            await one.aclose()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            failed[one] = error

    if opened:  # without any a cancellation has nothing to end here
        try:
            async with anyio.create_task_group() as tasks:
                for one in opened:
                    tasks.start_soon(close, one)
        except BaseException as error:
            cancelled.append(error)
    return [*(failed[one] for one in opened if one in failed), *cancelled]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(cast(BaseExceptionGroup[BaseException], error))
        else:
            yield error


def _add_note(error: BaseException, other: BaseException) -> None:
    if other is not error:
        error.add_note(f"also failed: {type(other).__name__}: {other}")
