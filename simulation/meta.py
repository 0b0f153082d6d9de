"""The metadata store, simulated: linearizable, late, and sometimes silent about what it did.

``MetaKeep`` is the store itself, which outlives processes and power cuts, as SQLite with
``synchronous=FULL`` and etcd do; ``SimMeta`` is one process's access to it
(``broker.metadata.MetadataStore``). Faults: delay; a reply that is lost although the transaction
was applied (R16); an outage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import trio

from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry
from tailrace.protocol import texts
from tailrace.simulation.life import Life
from tailrace.simulation.link import Signal

WHERE = "simulated store"


@dataclass
class Lease:
    """A hint of liveness: its keys go when it ends."""

    ttl: float
    ends_at: float
    keys: set[str]


class MetaKeep:
    """The store: a map with revisions. Times are trio's."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.revision = 0
        self.entries: dict[str, Entry] = {}
        self.leases: dict[int, Lease] = {}
        self.changed: dict[int, tuple[str, Signal]] = {}  # watches
        self.delay_mean = 0.0005
        self.lost_replies = 0.0  # this share of transactions is applied, then fails
        self.down = False
        self._numbers = 0

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def expire(self) -> None:
        now = trio.current_time()
        for number in [n for n, lease in self.leases.items() if lease.ends_at <= now]:
            self.end_lease(number)

    def end_lease(self, number: int) -> None:
        lease = self.leases.pop(number, None)
        if lease is not None and lease.keys:
            self.revision += 1
            self._change({}, sorted(lease.keys), None)

    def end_all_leases(self) -> None:
        """A single node's store was opened anew: whoever held a lease is dead."""
        for number in list(self.leases):
            self.end_lease(number)

    def transact(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str],
        lease: int | None,
    ) -> int | None:
        if lease is not None and lease not in self.leases:
            raise KeyError(lease)
        for key, expected in compare:
            entry = self.entries.get(key)
            if (entry.revision if entry is not None else 0) != expected:
                return None
        self.revision += 1
        self._change(puts, deletes, lease)
        return self.revision

    def _change(self, puts: Mapping[str, bytes], deletes: Sequence[str], lease: int | None) -> None:
        for key in (*deletes, *puts):
            self.entries.pop(key, None)
            for other in self.leases.values():
                other.keys.discard(key)
        for key, value in puts.items():
            self.entries[key] = Entry(key, value, self.revision)
            if lease is not None:
                self.leases[lease].keys.add(key)
        for prefix, signal in list(self.changed.values()):
            if any(key.startswith(prefix) for key in (*puts, *deletes)):
                signal.send()


class SimWatch:
    """Wakes after changes below a prefix; one that came before ``wait`` is not missed."""

    def __init__(self, prefix: str, keep: MetaKeep, life: Life) -> None:
        self._prefix = prefix
        self._keep = keep
        self._life = life
        self._number = keep.number()
        self._signal = Signal()
        self._seen = keep.revision
        keep.changed[self._number] = (prefix, self._signal)

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._seen == self._keep.revision:
            self._life.check()
            await self._signal.wait()
        self._seen = self._keep.revision

    def close(self) -> None:
        self._keep.changed.pop(self._number, None)


class SimMeta:
    """See ``broker.metadata.MetadataStore`` for the contract of each method."""

    def __init__(self, keep: MetaKeep, life: Life) -> None:
        self._keep = keep
        self._life = life

    async def get(self, key: str) -> Entry | None:
        await self._travel()
        return self._keep.entries.get(key)

    async def list(self, prefix: str, since: int = 0) -> list[Entry]:
        await self._travel()
        entries = self._keep.entries
        found = [entries[key] for key in sorted(entries) if key.startswith(prefix)]
        return [entry for entry in found if entry.revision > since]

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        assert len(puts) + len(deletes) <= TXN_CHANGES_MAX, "split the transaction"
        assert not any(key in puts for key in deletes), "one change per key"
        await self._travel()
        revision = self._keep.transact(compare, puts, deletes, lease)
        lost = self._keep.rng.random() < self._keep.lost_replies
        await self._travel()
        if lost:
            raise texts.metadata_unavailable(WHERE, "the reply was lost")
        return revision

    async def grant(self, ttl: float) -> int:
        await self._travel()
        number = self._keep.number()
        self._keep.leases[number] = Lease(ttl, trio.current_time() + ttl, set())
        return number

    async def keepalive(self, lease: int) -> bool:
        await self._travel()
        found = self._keep.leases.get(lease)
        if found is not None:
            found.ends_at = trio.current_time() + found.ttl
        return found is not None

    async def revoke(self, lease: int) -> None:
        await self._travel()
        self._keep.end_lease(lease)

    def watch(self, prefix: str) -> SimWatch:
        self._life.check()
        return SimWatch(prefix, self._keep, self._life)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _travel(self) -> None:
        """One way to the store: takes time, and fails while the store is down."""
        self._life.check()
        mean = self._keep.delay_mean
        await trio.sleep(self._keep.rng.expovariate(1 / mean) if mean else 0)
        self._life.check()
        if self._keep.down:
            raise texts.metadata_unavailable(WHERE, "it is down")
        self._keep.expire()
