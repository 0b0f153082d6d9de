"""The metadata store of a test cluster: in memory, shared by brokers in threads of their own.

``SharedKeep`` is the store, which outlives the brokers as etcd does; ``SharedStore`` is the access
of one process to it (``broker.metadata.MetadataStore``). Real time, and every call is atomic. A
broker that was killed keeps its lease until that ends.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry
from tailrace.protocol import texts
from tailrace.simulation.life import Life
from tailrace.testing.bell import Bell

URL = "http://in-memory:2379"  # as the settings and the brokers' errors name it


@dataclass
class _Lease:
    ttl: float
    ends_at: float  # on the monotonic clock
    keys: set[str] = field(default_factory=set[str])


class SharedKeep:
    """See the module. Any thread."""

    def __init__(self) -> None:
        self.down = False
        self.bell = Bell()  # something has changed
        self.revision = 0
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._leases: dict[int, _Lease] = {}
        self._numbers = 0

    def get(self, key: str) -> Entry | None:
        self.expire()
        with self._lock:
            return self._entries.get(key)

    def list(self, prefix: str, since: int) -> list[Entry]:
        self.expire()
        with self._lock:
            found = [key for key in sorted(self._entries) if key.startswith(prefix)]
            return [e for key in found if (e := self._entries[key]).revision > since]

    def transact(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str],
        lease: int | None,
    ) -> int | None:
        self.expire()
        with self._lock:
            if lease is not None and lease not in self._leases:
                raise KeyError(lease)
            for key, expected in compare:
                entry = self._entries.get(key)
                if (entry.revision if entry is not None else 0) != expected:
                    return None
            revision = self._change(puts, deletes, lease)
        self.bell.ring()
        return revision

    def grant(self, ttl: float) -> int:
        with self._lock:
            self._numbers += 1
            self._leases[self._numbers] = _Lease(ttl, time.monotonic() + ttl)
            return self._numbers

    def keepalive(self, number: int) -> bool:
        self.expire()
        with self._lock:
            lease = self._leases.get(number)
            if lease is not None:
                lease.ends_at = time.monotonic() + lease.ttl
            return lease is not None

    def revoke(self, number: int) -> None:
        with self._lock:
            self._end([number])
        self.bell.ring()

    def next_end_s(self) -> float:
        """Seconds until a lease ends, if nobody keeps it."""
        with self._lock:
            ends = min((lease.ends_at for lease in self._leases.values()), default=float("inf"))
        return max(0.0, ends - time.monotonic())

    def expire(self) -> None:
        """End the leases whose time is over, unless nobody is there to notice it."""
        if self.down:
            return
        with self._lock:
            now = time.monotonic()
            over = [number for number, lease in self._leases.items() if lease.ends_at <= now]
            self._end(over)
        if over:
            self.bell.ring()

    def come_back(self) -> None:
        """After ``down``: every lease has its time again, as when etcd has a new leader."""
        with self._lock:
            for lease in self._leases.values():
                lease.ends_at = time.monotonic() + lease.ttl
        self.down = False
        self.bell.ring()

    def _end(self, numbers: Sequence[int]) -> None:
        ended = [self._leases.pop(number) for number in numbers if number in self._leases]
        keys = {key for lease in ended for key in lease.keys}
        if keys:
            self._change({}, sorted(keys), None)

    def _change(self, puts: Mapping[str, bytes], deletes: Sequence[str], lease: int | None) -> int:
        self.revision += 1
        for key in (*deletes, *puts):
            self._entries.pop(key, None)
            for other in self._leases.values():
                other.keys.discard(key)
        for key, value in puts.items():
            self._entries[key] = Entry(key, value, self.revision)
            if lease is not None:
                self._leases[lease].keys.add(key)
        return self.revision


class SharedStore:
    """See ``broker.metadata.MetadataStore`` for the contract of each method."""

    def __init__(self, keep: SharedKeep, life: Life, away: Callable[[], bool]) -> None:
        """``away``: whether this process cannot reach the store now."""
        self._keep = keep
        self._life = life
        self._away = away

    async def get(self, key: str) -> Entry | None:
        await self._reach()
        return self._keep.get(key)

    async def list(self, prefix: str, since: int = 0) -> list[Entry]:
        await self._reach()
        return self._keep.list(prefix, since)

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        assert len(puts) + len(deletes) <= TXN_CHANGES_MAX, "split the transaction"
        assert not any(key in puts for key in deletes), "one change per key"
        await self._reach()
        return self._keep.transact(compare, puts, deletes, lease)

    async def grant(self, ttl: float) -> int:
        await self._reach()
        return self._keep.grant(ttl)

    async def keepalive(self, lease: int) -> bool:
        await self._reach()
        return self._keep.keepalive(lease)

    async def revoke(self, lease: int) -> None:
        await self._reach()
        self._keep.revoke(lease)

    def watch(self, prefix: str) -> "SharedWatch":
        self._life.check()
        return SharedWatch(self._keep)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        self._life.check()
        if self._keep.down or self._away():
            raise texts.metadata_unavailable(URL, "no answer")


class SharedWatch:
    """Wakes after every change: a watch is a hint. The end of a lease is noticed here, too."""

    def __init__(self, keep: SharedKeep) -> None:
        self._keep = keep
        self._seen = keep.revision

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            rung = self._keep.bell.listen()
            self._keep.expire()
            if self._keep.revision != self._seen:
                break
            with trio.move_on_after(self._keep.next_end_s()):
                await rung.wait()
            if self._keep.down:
                await rung.wait()
        self._seen = self._keep.revision

    def close(self) -> None:
        """Nothing is held."""
