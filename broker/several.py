"""Several brokers in one process, for development: ``tailrace dev --brokers 3``.

They replicate to each other over real sockets, each with a data directory of its own, and share one
embedded metadata store, so they live and die together: what a cluster does when one of its brokers
is lost is for ``tailrace.testing.Cluster`` and for real ones. SIGTERM and SIGINT stop them all, a
second one at once.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

import trio

from tailrace.broker.config import Config
from tailrace.broker.groups import first_of
from tailrace.broker.logs import configure
from tailrace.broker.metadata import Entry, MetadataStore, Watch
from tailrace.broker.metadata_embedded import EmbeddedStore
from tailrace.broker.server import Ready, Server
from tailrace.broker.system import SystemClock, system_world
from tailrace.broker.threads import ThreadOffload
from tailrace.protocol import texts_cli, texts_storage
from tailrace.protocol.console import EXIT_FAILED
from tailrace.storage.disk import Lock, OsDisk

STORE = "cluster.sqlite"
ROLE = "dev"
ALONE = "meta.json"  # of a broker whose directory this is itself


def run(configs: Sequence[Config], directory: str, announce: Callable[[Ready], None]) -> int:
    """Run them until they are told to stop; the exit code. Raises what kept one from starting.

    ``directory`` holds theirs. ``announce`` is called once for each broker that is ready, in order.
    """
    os.umask(0o077)
    first = configs[0]
    handler = configure(level=first.log.level, format=first.log.format, broker=ROLE)
    try:
        lock = take(directory)
        try:
            return trio.run(_Several(configs, directory, announce).main)
        finally:
            lock.release()
    except BaseExceptionGroup as group:
        error = first_of(group)
        raise error from error.__cause__
    finally:
        handler.close()


def take(directory: str) -> Lock:
    """The directory, for this process alone. T090, T082 if it is a single broker's."""
    disk = OsDisk()
    os.makedirs(directory, exist_ok=True)
    if disk.exists(f"{directory}/{ALONE}"):
        raise texts_cli.other_kind(directory, several=False)
    try:
        return disk.lock(f"{directory}/LOCK", f"{os.getpid()} {ROLE} all\n")
    except BlockingIOError:
        with open(f"{directory}/LOCK") as file:
            pid, role, broker = [*file.read().split(), "0", "?", "?"][:3]
        raise texts_storage.directory_locked(
            directory, pid=int(pid), role=role, broker=broker
        ) from None


class _Several:
    def __init__(
        self, configs: Sequence[Config], directory: str, announce: Callable[[Ready], None]
    ) -> None:
        self._configs = configs
        self._directory = directory
        self._announce = announce
        self._servers: list[Server] = []
        self._stopping = self._forced = False

    async def main(self) -> int:
        offload = ThreadOffload()
        store = await EmbeddedStore.open(f"{self._directory}/{STORE}", offload, SystemClock())
        try:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._heed, signals, nursery)
                    await self._serve(store)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()
        return EXIT_FAILED if self._forced else 0

    async def _serve(self, store: MetadataStore) -> None:
        async def open_metadata(directory: str, _: trio.Nursery) -> MetadataStore:
            return _Shared(store)

        async with trio.open_nursery() as brokers:
            for config in self._configs:
                server = Server(replace(system_world(), open_metadata=open_metadata), config)
                self._servers.append(server)
                try:
                    ready = await brokers.start(server.run)
                except RuntimeError:
                    if self._stopping:
                        return  # ended before it was ready
                    raise
                self._announce(ready)

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for _ in signals:
            if self._stopping:
                self._force()
                continue
            self._stopping = True
            nursery.start_soon(self._watch_stop)
            for server in self._servers:
                server.stop()

    async def _watch_stop(self) -> None:
        await trio.sleep(self._configs[0].broker.shutdown_timeout_s)
        self._force()

    def _force(self) -> None:
        self._forced = True
        for server in self._servers:
            server.kill()


class _Shared:
    """The store, for one of them: it stays open when that one ends."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        return await self._store.list(prefix, since)

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        return await self._store.txn(compare, puts, deletes, lease)

    async def grant(self, ttl: float) -> int:
        return await self._store.grant(ttl)

    async def keepalive(self, lease: int) -> bool:
        return await self._store.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self._store.revoke(lease)

    def watch(self, prefix: str) -> Watch:
        return self._store.watch(prefix)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
