"""One broker, from start to stop. Read this file first.

    run
    └ services     http, session, views (reading and following), timers, appender, flusher (and its
                   rounds ahead), groups (writing and loading), watcher, janitor, cleaner, eraser,
                   sweep
      └ connections    one accept loop per listener, one task per connection

Start: read the certificates, lock the data directory, open the metadata store (first of both, in a
cluster), leave in-sync sets that the directory is not worth, open and recover every log, bind,
register, take the lead in new epochs, serve. HTTP is there before recovery begins, to tell how far
it is; nobody is sent here before the logs are open.

Stop, in stages: ``drain`` (no new connections), ``handover`` (leaderships; none on a single node;
then no new requests), ``finish`` (requests in hand are answered), ``flush`` (all logs synced),
``release`` (the ``clean`` file, the lock). ``kill`` skips what is left of them, and a stop before
anything was served needs none of them.

A failed sync ends the broker with T093, also at its start: whoever waits is told, the directory is
marked suspect, nothing is tried again (R21).
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar
from uuid import UUID

import trio

from tailrace.broker import listener
from tailrace.broker.assembly import assemble
from tailrace.broker.binding import Ready, bind, ready_of
from tailrace.broker.config import Config
from tailrace.broker.eraser import Eraser
from tailrace.broker.gateway import Gateway
from tailrace.broker.groups import first_of
from tailrace.broker.handover import hand_over
from tailrace.broker.health import Health
from tailrace.broker.http import serve_http
from tailrace.broker.janitor import Janitor
from tailrace.broker.joining import (
    check_cluster,
    clustered,
    forget_lost,
    open_store,
    record_of,
    register,
    store_of,
    wait_for_id,
)
from tailrace.broker.kinds import Address
from tailrace.broker.metrics import Metrics
from tailrace.broker.node import Node, State
from tailrace.broker.opener import tell_recovered
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.security import Credentials
from tailrace.broker.session import Session
from tailrace.broker.stopping import flush, leave, mark_clean
from tailrace.broker.world import Listener, World
from tailrace.protocol.errors import BrokerError, TailraceError
from tailrace.protocol.version import VERSION
from tailrace.storage.ballast import Ballast
from tailrace.storage.directory import DataDirectory

log = logging.getLogger("tailrace.broker.server")

T = TypeVar("T")

ROLE = "broker"
PARKED_EVERY_S = 0.1  # how often a stop looks for requests that have come to wait meanwhile
CLOSE_S = 5.0  # for closing what is left, also when cancelled (R41)


class Server:
    """``run`` it once. The other methods may be called from any task of the same trio run."""

    def __init__(self, world: World, config: Config) -> None:
        self._world = world
        self._config = config
        self.config = config  # as it is now: SIGHUP changes what may change
        self.health = Health(metadata=config.cluster.metadata)
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
        self._credentials = Credentials(config)
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

    async def renew_credentials(self, config: Config) -> None:
        """Let new connections go by what the files of certificates hold now.

        ConfigError T082 if they are of no use; then everything stays as it was.
        """
        await self._world.offload.run(self._credentials.renew, config)

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
            if self._credentials.wanted:
                await self._world.offload.run(self._credentials.load)
            if clustered(self._config):  # its store says which cluster's directory it must be
                async with self._store(services) as registry:
                    there = await registry.cluster_id(store_of(self._config), self._new_id())
                    async with self._directory_of(there) as directory:
                        await self._run_on(directory, registry, http, services, task_status)
            else:
                async with (
                    self._directory_of(None) as directory,
                    self._store(services) as registry,
                ):
                    there = await registry.cluster_id(directory.path, directory.cluster_id)
                    check_cluster(directory, there)
                    await self._run_on(directory, registry, http, services, task_status)
            services.cancel_scope.cancel()

    @asynccontextmanager
    async def _store(self, services: trio.Nursery) -> AsyncGenerator[Registry]:
        """The metadata store, open. T100, T082."""
        store = await open_store(self._world, self._config, services)
        try:
            yield Registry(
                *(store, self._config.broker.id, self._world.clock),
                *(self.metrics, self.health),
            )
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await store.aclose()

    @asynccontextmanager
    async def _directory_of(self, cluster_id: str | None) -> AsyncGenerator[DataDirectory]:
        """The data directory, locked. T090-T093."""
        run = self._world.offload.run
        directory = await self._watched(lambda: run(self._open_directory, cluster_id))
        try:
            await self._watched(lambda: run(self._prepare, directory))
            yield directory
        finally:
            directory.release()

    def _new_id(self) -> str:
        return str(UUID(bytes=self._world.rng("cluster id").randbytes(16), version=4))

    def _open_directory(self, cluster_id: str | None) -> DataDirectory:
        new_id = UUID(bytes=self._world.rng("directory id").randbytes(16), version=4)
        directory = DataDirectory.open(
            self._world.disk,
            self._config.storage.data_dir,
            broker_id=self._config.broker.id,
            cluster_id=cluster_id,
            new_cluster_id=self._new_id(),
            new_directory_id=str(new_id),
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
        registry: Registry,
        http: str | None,
        services: trio.Nursery,
        task_status: trio.TaskStatus[Ready],
    ) -> None:
        """With the directory locked and the store open."""
        session = Session(
            registry,
            self._world.boottime,
            timeout_s=self._config.cluster.session_timeout_s if clustered(self._config) else None,
            url=store_of(self._config),
        )
        node, janitor, eraser, watcher, controller = assemble(
            *(self._world, self._config, self.metrics, self.health, directory, registry, session),
            credentials=self._credentials,
            http=http,
            began=self._began,
            state=lambda: self.state,
            storage_failed=self._storage_failed,
            look_soon=self.clean_now,
        )
        bound: dict[str, Listener] = {}
        try:
            await node.views.read()
            if clustered(self._config):
                await wait_for_id(registry, self._config, directory)
                await forget_lost(node, directory)
            await self._watched(partial(self._recover, node, directory))
            janitor.room.now()
            self._node, self._janitor, self._eraser = node, janitor, eraser
            bound = await bind(
                self._world.net, self._config, self._credentials.certificate, node.addresses
            )  # others are told where this broker is
            await self._watched(partial(self._join, node, directory))
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
            services.start_soon(node.peers.run)
            async with trio.open_nursery() as cluster:  # these end before the store is closed
                for work in (
                    *(session.run, node.views.run),
                    partial(self._follow, node),
                    partial(self._watched, node.replicator.run),
                    *(node.isr.run, node.erasures.run),
                ):
                    cluster.start_soon(work)
                if clustered(self._config):
                    cluster.start_soon(controller.run)
                await self._serve(node, bound, directory, eraser, task_status)
                cluster.cancel_scope.cancel()
        finally:
            for one in bound.values():
                one.close()
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._world.heavy.aclose()
            node.shelf.close()

    async def _recover(self, node: Node, directory: DataDirectory) -> None:
        await node.keeper.start(
            node.views.view, clean=directory.was_clean, suspect=directory.was_suspect
        )
        await node.erasures.load(node.topics.catalog.by_id)
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

    async def _join(self, node: Node, directory: DataDirectory) -> None:
        """Be one of the brokers, and lead what is this one's to lead. T093 T100."""
        record = record_of(
            *(self._config, node.addresses),
            http=node.http,
            directory=directory,
            since=self._world.clock.wall_ms(),
        )
        await register(node, record)
        with suppress(Conflict):  # then the next view does the rest
            await node.views.now()
        node.groups.start()

    # ── serve, stop ──────────────────────────────────────────────────────────────────────────

    async def _serve(
        self,
        node: Node,
        bound: Mapping[str, Listener],
        directory: DataDirectory,
        eraser: Eraser,
        task_status: trio.TaskStatus[Ready],
    ) -> None:
        async with trio.open_nursery() as connections:
            for name, one in bound.items():
                connections.start_soon(listener.accept_connections, node, one, name, connections)
            self._state = "running"
            self.gateway = Gateway(node, node.peers)
            if self._config.http.bind is not None:
                await connections.start(self.gateway.records.run)
            self.health.listening = tuple(
                str(Address(one.host, one.port)) for one in bound.values()
            )
            ready = ready_of(node, directory)
            log.info(
                "broker %s serves %s",
                *(node.broker_id, ready.url),
                extra={"event": "broker.ready", "code": None, "url": ready.url},
            )
            task_status.started(ready)
            await self._stop_asked.wait()
            await self._drain(node, bound)
        await eraser.stop()
        await node.cleaner.stop()
        if self._janitor is not None:
            await self._janitor.stop()
        await node.replicator.stop()
        if clustered(self._config):  # nobody is to wait for this broker while it closes its logs
            await leave(node, self.stage)
        self._enter("flush")
        await flush(node)
        self._enter("release")
        node.shelf.close()
        await self._watched(partial(mark_clean, node, directory))
        if not clustered(self._config):  # a full disk may keep it: the next start sees to it
            await leave(node, self.stage)

    async def _drain(self, node: Node, bound: Mapping[str, Listener]) -> None:
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
        # Followers fetch over connections of this broker until they have everything.
        self._enter("handover")
        with trio.move_on_after(self._config.broker.shutdown_timeout_s / 2):
            await hand_over(node)
        for connection in list(node.connections):
            connection.stop_taking()
        node.erasures.release()
        node.groups.release()
        self._enter("finish")
        while node.connections or gateway.in_hand:
            for fetch in list(node.parked):  # some are only on their way there
                fetch.finish()
            node.outbox.flush()
            with trio.move_on_after(PARKED_EVERY_S):
                await node.left.wait()

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

    async def _follow(self, node: Node) -> None:
        """T093, after it was told to whoever made the change that met a failed sync."""
        try:
            await self._watched(node.views.run_following)
        except BrokerError:
            await node.topics.settled()
            raise

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


__all__ = ["Ready", "Server"]
