"""The metadata store of a single node: one SQLite file in the data directory (R19).

- WAL with ``synchronous=FULL``: a transaction is on disk before ``txn`` returns (0.33 ms).
- One connection, used by one thread of its own, so calls are ordered as they were made.
- Leases live in memory: the data directory is locked, so whoever held one before is dead, and
  opening removes its keys.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import trio

from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry
from tailrace.broker.world import Offload
from tailrace.protocol import texts
from tailrace.protocol.seams import Clock

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (revision INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
DELETE FROM entries WHERE lease IS NOT NULL;
"""


class EmbeddedStore:
    """See ``metadata.MetadataStore`` for the contract of each method."""

    def __init__(self, path: str, offload: Offload, clock: Clock) -> None:
        self._path = path
        self._thread = offload.dedicated("metadata")
        self._clock = clock
        self._database: sqlite3.Connection | None = None
        self._leases: dict[int, tuple[float, float]] = {}  # id: (ttl, end) in seconds
        self._lease_last = 0
        self._watches: set[EmbeddedWatch] = set()

    @classmethod
    async def open(cls, path: str, offload: Offload, clock: Clock) -> "EmbeddedStore":
        """Open or create the file at ``path``; T100 if that fails."""
        store = cls(path, offload, clock)
        store._database = await store._run(_connect, path)
        return store

    async def get(self, key: str) -> Entry | None:
        found = await self._query("SELECT key, value, revision FROM entries WHERE key = ?", key)
        return found[0] if found else None

    async def list(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        select = "SELECT key, value, revision FROM entries WHERE revision > ?"
        if not prefix:
            return await self._query(f"{select} ORDER BY key", since)
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        return await self._query(
            f"{select} AND key >= ? AND key < ? ORDER BY key", since, prefix, after
        )

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        assert len(puts) + len(deletes) <= TXN_CHANGES_MAX, "split the transaction"
        assert not any(key in puts for key in deletes), "one change per key"
        await self._expire()
        if lease is not None and lease not in self._leases:
            raise KeyError(lease)
        revision = await self._run(_transact, self._open(), compare, puts, deletes, lease)
        if revision is not None:
            self._changed((*puts, *deletes))
        return revision

    async def grant(self, ttl: float) -> int:
        self._lease_last += 1
        self._leases[self._lease_last] = (ttl, self._clock.now() + ttl)
        await trio.lowlevel.checkpoint()
        return self._lease_last

    async def keepalive(self, lease: int) -> bool:
        await self._expire()
        if lease not in self._leases:
            return False
        ttl, _ = self._leases[lease]
        self._leases[lease] = (ttl, self._clock.now() + ttl)
        return True

    async def revoke(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            self._changed(await self._run(_end_lease, self._open(), lease))

    def watch(self, prefix: str) -> "EmbeddedWatch":
        watch = EmbeddedWatch(prefix, self._watches)
        self._watches.add(watch)
        return watch

    async def aclose(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            await self._run(database.close)

    def _open(self) -> sqlite3.Connection:
        assert self._database is not None, "the store is closed"
        return self._database

    async def _query(self, statement: str, *values: str | int) -> Sequence[Entry]:
        await self._expire()
        return await self._run(_select, self._open(), statement, values)

    async def _expire(self) -> None:
        now = self._clock.now()
        for lease in [lease for lease, (_, end) in self._leases.items() if end <= now]:
            await self.revoke(lease)

    def _changed(self, keys: Sequence[str]) -> None:
        for watch in self._watches:
            if any(key.startswith(watch.prefix) for key in keys):
                watch.wake()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await self._thread.run(work, *args, **kwargs)
        except sqlite3.Error as error:
            raise texts.metadata_failed(self._path, reason=str(error)) from error


class EmbeddedWatch:
    """A hint that something below ``prefix`` changed."""

    def __init__(self, prefix: str, registry: set["EmbeddedWatch"]) -> None:
        self.prefix = prefix
        self._registry = registry
        self._changed = trio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    def close(self) -> None:
        self._registry.discard(self)


# ── In the store's thread ────────────────────────────────────────────────────────────────────


def _connect(path: str) -> sqlite3.Connection:
    # Only the store's one thread uses the connection, but not always the thread that made it.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
    database.executescript(_SCHEMA)
    return database


def _select(
    database: sqlite3.Connection, statement: str, values: Sequence[str | int]
) -> list[Entry]:
    return [Entry(*row) for row in database.execute(statement, values)]


def _transact(
    database: sqlite3.Connection,
    compare: Sequence[tuple[str, int]],
    puts: Mapping[str, bytes],
    deletes: Sequence[str],
    lease: int | None,
) -> int | None:
    database.execute("BEGIN IMMEDIATE")
    try:
        for key, expected in compare:
            row = database.execute("SELECT revision FROM entries WHERE key = ?", (key,)).fetchone()
            if (row[0] if row else 0) != expected:
                database.execute("ROLLBACK")
                return None
        revision = _next_revision(database)
        database.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in deletes])
        database.executemany(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
            [(key, value, revision, lease) for key, value in puts.items()],
        )
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
    return revision


def _end_lease(database: sqlite3.Connection, lease: int) -> list[str]:
    keys = [row[0] for row in database.execute("SELECT key FROM entries WHERE lease = ?", (lease,))]
    if keys:
        database.execute("BEGIN IMMEDIATE")
        _next_revision(database)
        database.execute("DELETE FROM entries WHERE lease = ?", (lease,))
        database.execute("COMMIT")
    return keys


def _next_revision(database: sqlite3.Connection) -> int:
    [revision] = database.execute(
        "UPDATE counter SET revision = revision + 1 RETURNING revision"
    ).fetchone()
    assert isinstance(revision, int)
    return revision
