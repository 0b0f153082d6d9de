"""One broker, from start to stop. Read this file first.

    run
    └ services     http, timers, appender, flusher (and its rounds ahead), groups (writing and
                   loading), watcher, janitor, cleaner, eraser, sweep
      └ connections    one accept loop per listener, one task per connection

Start: read the certificate, lock the data directory, open the metadata store, open and recover
every log, take the lead in new epochs, bind, serve. HTTP is there before recovery begins, to tell
how far it is.

Stop, in stages: ``drain`` (nothing new is accepted), ``handover`` (leaderships; none on a single
node), ``finish`` (requests in hand are answered), ``flush`` (all logs synced), ``release`` (the
``clean`` file, the lock). ``kill`` skips what is left of them, and a stop before anything was
served needs none of them.

A failed sync ends the broker with T093, also at its start: whoever waits is told, the directory is
marked suspect, nothing is tried again (R21).
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

import trio

from tailrace.broker import listener
from tailrace.broker.assembly import assemble
from tailrace.broker.config import Config, SecurityConfig
from tailrace.broker.eraser import Eraser
from tailrace.broker.flusher import ROUND_PARTITIONS_MAX
from tailrace.broker.gateway import Gateway
from tailrace.broker.groups import first_of
from tailrace.broker.health import Health
from tailrace.broker.http import serve_http
from tailrace.broker.janitor import Janitor
from tailrace.broker.kinds import Address
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metrics import Metrics
from tailrace.broker.node import Node, State
from tailrace.broker.opener import tell_recovered
from tailrace.broker.peer import Peers
from tailrace.broker.registry import Registry
from tailrace.broker.security import Certificate
from tailrace.broker.world import Listener, World
from tailrace.protocol import texts_config
from tailrace.protocol.errors import BrokerError, MetadataUnavailable, TailraceError
from tailrace.protocol.version import VERSION
from tailrace.storage.ballast import Ballast
from tailrace.storage.directory import DataDirectory

log = logging.getLogger("tailrace.broker.server")

T = TypeVar("T")

ROLE = "broker"
CLOSE_S = 5.0  # for closing what is left, also when cancelled (R41)


@dataclass(frozen=True, slots=True)
class Ready:
    """A broker that serves."""

    url: str  # of its first listener, as clients take it
    addresses: dict[str, tuple[str, int]]  # by listener: what clients are told
    http: str | None
    broker_id: str
    cluster_id: str
    data_dir: str


class Server:
    """``run`` it once. The other methods may be called from any task of the same trio run."""

    def __init__(self, world: World, config: Config) -> None:
        self._world = world
        self._config = config
        self.config = config  # as it is now: SIGHUP changes what may change
        self.health = Health()
        self.metrics = Metrics(
            version=VERSION, topics_max=config.metrics.topics_max, clock=world.clock.now
        )
        self.gateway: Gateway | None = None  # while the broker serves
        self._stopping: Gateway | None = None  # the same from then on
        self._state: State = "starting"
        self._scope = trio.CancelScope()
        self._stop_asked = trio.Event()
        self._stop_asked_at = 0.0  # trio's time
        self.stage = ""  # of the stop: the one it is in
        self._certificate: Certificate | None = None  # where a listener has TLS
        self._node: Node | None = None
        self._janitor: Janitor | None = None
        self._eraser: Eraser | None = None
        self._directory: DataDirectory | None = None
        self._began = 0.0
        self._failed = False  # a sync failed, and everybody was told
        self.metrics.read_state(lambda: self.state)

    @property
    def state(self) -> State:
        if self._state == "running" and self.health.disk_low:
            return "read_only"
        return self._state

    async def run(self, *, task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop`` has come to its end, or ``kill``.

        Raises BrokerError T090-T094, ConfigError T082 (an address, a certificate), T100 and
        ``OSError`` if it cannot start, T093 if a sync failed. Cancelled: like ``kill``.
        """
        self._began = trio.current_time()
        try:
            with self._scope:
                await self._run(task_status)
        except BaseExceptionGroup as group:
            reason = first_of(group)
            if not isinstance(reason, TailraceError):
                raise
            raise reason from reason.__cause__
        finally:
            self._state = "draining"

    def stop(self) -> None:
        """Begin to stop gracefully. Before anything is served, that is to end at once."""
        self._stop_asked_at = trio.current_time()
        self._stop_asked.set()
        if self._state == "starting":
            self.health.draining = True
            self._enter("release")
            self._scope.cancel()

    def kill(self) -> None:
        """End at once: nothing is flushed or handed over; the next start recovers."""
        self._scope.cancel()

    async def renew_certificate(self, security: SecurityConfig) -> None:
        """Show new connections what the files hold now.

        ConfigError T082 if they are of no use; then everything stays as it was.
        """
        if self._certificate is not None:
            await self._world.offload.run(self._certificate.renew, security)

    def clean_now(self) -> None:
        """Let the housekeeping look at once: a test has moved the clock or filled the disk."""
        if self._janitor is not None:
            self._janitor.now()
        if self._node is not None:
            self._node.cleaner.now()
        if self._eraser is not None:
            self._eraser.now()

    async def clean(self) -> None:
        """The same, and return when retention and compaction are through."""
        if self._janitor is not None:
            await self._janitor.clean()
        if self._node is not None:
            await self._node.cleaner.clean()

    async def look_at_groups(self) -> None:
        """Let the watcher look at once: a test has moved the clock."""
        if self._node is not None:
            await self._node.lag.look()

    def expire_member(self, group: str, member_id: str) -> None:
        """As if a session had run out now, for tests. T043 T036; ValueError: no such member."""
        assert self._node is not None, "not started"
        self._node.groups.expire_member(group, member_id)

    def open_requests(self) -> list[str]:
        """What every connection is waiting for, one line each."""
        if self._node is None:
            return []
        gateway = self.gateway or self._stopping
        over_http = [] if gateway is None else gateway.open_requests()
        return [
            *(line for one in self._node.connections for line in one.open_requests()),
            *over_http,
        ]

    # ── start ────────────────────────────────────────────────────────────────────────────────

    async def _run(self, task_status: trio.TaskStatus[Ready]) -> None:
        async with trio.open_nursery() as services:
            http = None
            if self._config.http.bind is not None:
                http = await services.start(serve_http, self, self._config, self._world.net)
            run = self._world.offload.run
            if any(one.tls for one in self._config.listeners):
                self._certificate = await run(Certificate, self._config.security)
            directory = await self._watched(lambda: run(self._open_directory))
            try:
                await self._watched(lambda: run(self._prepare, directory))
                store = await self._world.open_metadata(directory.path, services)
                try:
                    await self._run_on(directory, store, http, services, task_status)
                finally:
                    with trio.move_on_after(CLOSE_S, shield=True):
                        await store.aclose()
            finally:
                directory.release()
            services.cancel_scope.cancel()

    def _open_directory(self) -> DataDirectory:
        new_id = UUID(bytes=self._world.rng("cluster id").randbytes(16), version=4)
        directory = DataDirectory.open(
            self._world.disk,
            self._config.storage.data_dir,
            broker_id=self._config.broker.id,
            cluster_id=None,
            new_cluster_id=str(new_id),
            role=ROLE,
            pid=self._world.pid,
        )
        self._directory = directory
        return directory

    def _prepare(self, directory: DataDirectory) -> None:
        ballast = Ballast(self._world.disk, directory.path, self._world.ballast_bytes_max)
        free_bytes, _ = self._world.disk.usage(directory.path)
        if ballast.held and free_bytes < ballast.size_bytes:
            ballast.drop()  # so that there is room to start
        if directory.was_suspect:
            directory.sync_names_anew()

    async def _run_on(
        self,
        directory: DataDirectory,
        store: MetadataStore,
        http: str | None,
        services: trio.Nursery,
        task_status: trio.TaskStatus[Ready],
    ) -> None:
        """With the directory locked and the store open."""
        registry = Registry(
            *(store, self._config.broker.id, self._world.clock),
            *(self.metrics, self.health),
        )
        about = {"version": VERSION, "since": self._world.clock.wall_ms()}
        epoch = await registry.join(directory.cluster_id, directory.path, about)
        node, janitor, eraser, watcher = assemble(
            *(self._world, self._config, self.metrics, self.health, directory, registry),
            broker_epoch=epoch,
            http=http,
            began=self._began,
            state=lambda: self.state,
            storage_failed=self._storage_failed,
            look_soon=self.clean_now,
        )
        try:
            await self._watched(partial(self._recover, node, directory))
            janitor.room.now()
            self._node, self._janitor, self._eraser = node, janitor, eraser
            for work in (
                *(node.timers.run, node.appender.run, node.flusher.run),
                *(node.groups.run, node.groups.run_loading, watcher.run),
                partial(self._watched, eraser.run),
                partial(self._watched, node.cleaner.run),
                partial(self._watched, node.flusher.run_ahead),
                node.flusher.run_lazy,
                partial(self._watched, janitor.run),
                partial(self._watched, janitor.run_room),
                partial(listener.sweep, node),
            ):
                services.start_soon(work)
            peers = Peers(self._world.net, node.broker_id, node.cluster_id)
            services.start_soon(peers.run)
            await self._serve(node, directory, registry, eraser, peers, task_status)
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._world.heavy.aclose()
            node.shelf.close()

    async def _recover(self, node: Node, directory: DataDirectory) -> None:
        await node.topics.start(clean=directory.was_clean, suspect=directory.was_suspect)
        await node.erasures.load(node.topics.catalog.by_id)
        node.groups.start()
        if node.shelf.untrusted:
            await self._world.offload.run(self._mark_suspect, directory)
        elif directory.was_suspect:
            await self._world.offload.run(directory.clear_suspect)
        times = [partition.log.segments()[0].first_append_time for partition in node.shelf]
        node.time.begin(min((at for at in times if at is not None), default=None))
        await node.time.keep_beat(self._world.offload)  # before anything is stamped
        seconds = trio.current_time() - self._began
        self.metrics.recovery_duration.set(seconds)
        self.health.recovered = True
        tell_recovered(
            [partition.log.recovery for partition in node.shelf],
            seconds=seconds,
            clean=directory.was_clean,
        )

    # ── serve, stop ──────────────────────────────────────────────────────────────────────────

    async def _serve(
        self,
        node: Node,
        directory: DataDirectory,
        registry: Registry,
        eraser: Eraser,
        peers: Peers,
        task_status: trio.TaskStatus[Ready],
    ) -> None:
        bound = await self._bind(node)
        try:
            async with trio.open_nursery() as connections:
                for name, one in bound.items():
                    connections.start_soon(
                        listener.accept_connections, node, one, name, connections
                    )
                self._state = "running"
                self.gateway = Gateway(node, peers)
                if self._config.http.bind is not None:
                    await connections.start(self.gateway.records.run)
                self.health.listening = tuple(
                    str(Address(one.host, one.port)) for one in bound.values()
                )
                ready = self._ready(node, directory)
                log.info(
                    "broker %s serves %s",
                    *(node.broker_id, ready.url),
                    extra={"event": "broker.ready", "code": None, "url": ready.url},
                )
                task_status.started(ready)
                await self._stop_asked.wait()
                await self._drain(node, bound)
        finally:
            for one in bound.values():
                one.close()
        await eraser.stop()
        await node.cleaner.stop()
        if self._janitor is not None:
            await self._janitor.stop()
        await self._flush(node)
        await self._release(node, directory, registry)

    async def _bind(self, node: Node) -> dict[str, Listener]:
        """Bind every listener; ConfigError T082 if one cannot be."""
        tls = None if self._certificate is None else self._certificate.context
        bound: dict[str, Listener] = {}
        for one in self._config.listeners:
            try:
                opened = await self._world.net.listen(*one.bind, tls=tls if one.tls else None)
            except OSError as error:
                for other in bound.values():
                    other.close()
                raise texts_config.settings_contradict(
                    f"listeners.{one.name}.bind",
                    origin=self._config.values[f"listeners.{one.name}.bind"].origin,
                    problem=f"{one.bind} cannot be bound: {error.strerror or error}",
                    hint=f"Stop what listens there, or set listeners.{one.name}.bind"
                    f"{' (tailrace dev: --port)' if one.name == 'client' else ''}.",
                ) from error
            bound[one.name] = opened
            told = one.advertise or Address(opened.host, 0)
            node.addresses[one.name] = (told.host, told.port or opened.port)
        return bound

    def _ready(self, node: Node, directory: DataDirectory) -> Ready:
        first = next(one for one in self._config.listeners if one.name == "client")
        scheme = "tailraces" if first.tls else "tailrace"
        return Ready(
            url=f"{scheme}://{Address(*node.addresses[first.name])}",
            addresses=dict(node.addresses),
            http=node.http,
            broker_id=node.broker_id,
            cluster_id=node.cluster_id,
            data_dir=directory.path,
        )

    async def _drain(self, node: Node, bound: dict[str, Listener]) -> None:
        """The stages up to ``finish``."""
        self._state = "draining"
        gateway, self.gateway = self.gateway, None
        assert gateway is not None, "it serves"
        self._stopping = gateway
        gateway.stop()
        self.health.draining = True
        self.health.listening = ()
        self._enter("drain")
        for one in bound.values():
            one.close()
        for connection in list(node.connections):
            connection.stop_taking()
        self._enter("handover")
        for fetch in list(node.parked):
            fetch.finish()
        node.erasures.release()
        node.groups.release()
        node.outbox.flush()
        self._enter("finish")
        while node.connections or gateway.in_hand:
            await node.left.wait()

    async def _flush(self, node: Node) -> None:
        self._enter("flush")
        partitions = [one for one in node.shelf if one.serving]
        for partition in partitions:
            partition.log.settle()
        for first in range(0, len(partitions), ROUND_PARTITIONS_MAX):
            await node.flusher.flush(partitions[first : first + ROUND_PARTITIONS_MAX])

    async def _release(self, node: Node, directory: DataDirectory, registry: Registry) -> None:
        self._enter("release")
        node.shelf.close()
        await self._watched(partial(node.time.keep_beat, self._world.offload))
        try:
            await self._world.offload.run(directory.mark_clean)
        except OSError as error:
            log.warning(
                "the clean file could not be written, the next start checks the logs: %s",
                error,
                extra={"event": "broker.stopping", "code": None, "stage": "release"},
            )
        try:
            await registry.leave()
        except MetadataUnavailable as error:  # a full disk, say: the next start sees to it
            log.warning(
                "%s",
                error,
                extra={"event": "broker.stopping", "code": error.code, "stage": "release"},
            )

    def _enter(self, stage: str) -> None:
        """Say that a stage of the stop begins, and how long after the stop was asked for."""
        self.stage = stage
        elapsed_ms = int((trio.current_time() - self._stop_asked_at) * 1000)
        log.info(
            "stopping: %s",
            stage,
            extra={
                "event": "broker.stopping",
                "code": None,
                "stage": stage,
                "elapsed_ms": elapsed_ms,
            },
        )

    async def _watched(self, work: Callable[[], Awaitable[T]]) -> T:
        """Work that a failed sync (T093) ends, or that may find a log with one behind it."""
        try:
            return await work()
        except BrokerError as error:
            if error.code == "T093":
                self._storage_failed(error)
            raise

    def _storage_failed(self, error: BrokerError) -> None:
        """A sync failed: tell everybody who waits, and remember it on the disk."""
        if self._failed:
            return
        self._failed = True
        log.error("%s", error, extra={"event": "storage.failed", "code": error.code})
        if self._node is not None:  # else it has not served anybody yet
            for partition in self._node.shelf:
                partition.fail(error)
            self._node.outbox.flush()
        if self._directory is not None:
            with suppress(BrokerError):  # it is marked, but for a power cut
                self._mark_suspect(self._directory)

    def _mark_suspect(self, directory: DataDirectory) -> None:
        """BrokerError T093, if that could not be synced."""
        try:
            directory.mark_suspect()
        except OSError as error:
            log.error(
                "the directory could not be marked suspect: %s",
                error,
                extra={"event": "storage.failed", "code": "T093"},
            )
