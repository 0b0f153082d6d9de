"""The metadata store, simulated: linearizable, late, and sometimes silent about what it did.

``MetaKeep`` is the store itself, which outlives processes and power cuts, as SQLite with
``synchronous=FULL`` and etcd do; brokers of one cluster share one. ``SimMeta`` is one process's
access to it (``broker.metadata.MetadataStore``), over a ``MetaLink``: a broker may lose the store
and keep its peers, and the reverse.

Faults: delay; a reply that is lost although the transaction was applied (R16); a request that
arrives long after whoever sent it gave up; an outage; a full store, which can be read (R18); leases
that end early by the store's own clock, or late because it changed its leader; watches that wake
late, for nothing, or after they were cut off (R17).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import trio

from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry
from tailrace.protocol import texts
from tailrace.simulation.life import Life
from tailrace.simulation.link import Signal

WHERE = "simulated store"
PATIENCE_S = 2.0  # how long a request waits for a store that does not answer
TICK_S = 0.1  # how often the store looks for leases that ended
QUIET_S = 20.0  # a watch wakes after so long at the latest, also where the store forgot its change
FORGOTTEN = 0.1  # this share of changes is, while watches lag


@dataclass
class Lease:
    """A hint of liveness: its keys go when it ends."""

    ttl: float
    ends_at: float
    keys: set[str]


@dataclass(frozen=True)
class StoreChange:
    """One transaction that was applied. ``compare`` is what it was compared with, ``host`` who
    asked for it; None: the store itself, as a lease ended."""

    host: str | None
    compare: Mapping[str, int]
    before: Mapping[str, Entry | None]  # of every key that it wrote or removed
    after: Mapping[str, Entry | None]


class MetaKeep:
    """The store: a map with revisions. Times are trio's."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.revision = 0
        self.entries: dict[str, Entry] = {}
        self.leases: dict[int, Lease] = {}
        self.changed: dict[int, tuple[str, Signal]] = {}  # watches
        self.taps: list[Callable[[StoreChange], None]] = []
        self.heard: dict[str, float] = {}  # by host: when it last got a lease, or gave it its time
        self.delay_mean = 0.0005
        self.lost_replies = 0.0  # this share of transactions is applied, then fails
        self.down = False
        self.full = False  # takes nothing new
        self.lease_rate = 1.0  # how much faster than others its clock counts leases
        self.watch_lag = 0.0  # mean, seconds
        self.wakes = 0.0  # per second, of each watch, for nothing
        self.healed = Signal()
        self._numbers = 0

    async def run(self) -> None:
        """End leases when their time has come, until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            self.expire()

    def heal(self) -> None:
        """No fault any more."""
        self.lost_replies = self.watch_lag = self.wakes = 0.0
        self.lease_rate, self.delay_mean = 1.0, 0.0005
        self.down = self.full = False
        self.healed.send()

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
            self._change(None, {}, {}, sorted(lease.keys), None)

    def end_all_leases(self) -> None:
        """A single node's store was opened anew: whoever held a lease is dead."""
        for number in list(self.leases):
            self.end_lease(number)

    def extend_all_leases(self) -> None:
        """The store changed its leader: every lease has all its time again."""
        for lease in self.leases.values():
            self.renew(lease)

    def renew(self, lease: Lease) -> None:
        lease.ends_at = trio.current_time() + lease.ttl / self.lease_rate

    def transact(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str],
        lease: int | None,
        host: str | None = None,
    ) -> int | None:
        if lease is not None and lease not in self.leases:
            raise KeyError(lease)
        for key, expected in compare:
            entry = self.entries.get(key)
            if (entry.revision if entry is not None else 0) != expected:
                return None
        self.revision += 1
        self._change(host, dict(compare), puts, deletes, lease)
        return self.revision

    def _change(
        self,
        host: str | None,
        compare: Mapping[str, int],
        puts: Mapping[str, bytes],
        deletes: Sequence[str],
        lease: int | None,
    ) -> None:
        keys = (*deletes, *puts)
        before = {key: self.entries.pop(key, None) for key in keys}
        for key in keys:
            for other in self.leases.values():
                other.keys.discard(key)
        for key, value in puts.items():
            self.entries[key] = Entry(key, value, self.revision)
            if lease is not None:
                self.leases[lease].keys.add(key)
        for prefix, signal in list(self.changed.values()):
            if any(key.startswith(prefix) for key in keys):
                signal.send()
        if self.taps:
            after = {key: self.entries.get(key) for key in keys}
            for tap in self.taps:
                tap(StoreChange(host, compare, before, after))


@dataclass
class MetaLink:
    """The way from one broker to the store and back."""

    cut_there: bool = False  # requests do not arrive
    cut_back: bool = False  # they do, but nobody hears of it
    delay_mean: float = 0.0  # seconds, on top of the store's own
    late: float = 0.0  # this share of what could not arrive does so when the link has healed
    lost_replies: int = 0  # of so many transactions yet
    healed: Signal = field(default_factory=Signal)
    waiting: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])

    @property
    def cut(self) -> bool:
        return self.cut_there or self.cut_back

    def lose_reply(self) -> bool:
        """Whether this one is lost."""
        lost = self.lost_replies > 0
        self.lost_replies -= lost
        return lost

    def heal(self) -> None:
        """Everything passes again; what was on its way arrives now."""
        self.cut_there = self.cut_back = False
        self.delay_mean, self.lost_replies = 0.0, 0
        waiting, self.waiting = self.waiting, []
        for arrive in waiting:
            arrive()
        self.healed.send()


class SimWatch:
    """Wakes after changes below a prefix; one that came before ``wait`` is not missed."""

    def __init__(self, prefix: str, keep: MetaKeep, life: Life, link: MetaLink) -> None:
        self._prefix = prefix
        self._keep = keep
        self._life = life
        self._link = link
        self._number = keep.number()
        self._signal = Signal()
        self._seen = keep.revision
        keep.changed[self._number] = (prefix, self._signal)

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        keep = self._keep
        until = trio.current_time() + keep.rng.expovariate(keep.wakes) if keep.wakes else None
        while self._seen == keep.revision:
            self._life.check()
            if until is None:
                await self._signal.wait()
            else:
                await self._signal.wait(until)
                if trio.current_time() >= until:
                    break
        if keep.watch_lag:
            forgotten = keep.rng.random() < FORGOTTEN
            lag = keep.rng.uniform(0, QUIET_S) if forgotten else 0.0
            lag += keep.rng.expovariate(1 / keep.watch_lag)
            await keep.healed.wait(trio.current_time() + lag)
        while self._link.cut or keep.down:
            self._life.check()
            await self._link.healed.wait(trio.current_time() + 1.0)
        self._life.check()
        self._seen = keep.revision

    def close(self) -> None:
        self._keep.changed.pop(self._number, None)


class SimMeta:
    """See ``broker.metadata.MetadataStore`` for the contract of each method."""

    def __init__(self, keep: MetaKeep, life: Life, link: MetaLink | None = None) -> None:
        self._keep = keep
        self._life = life
        self._link = link or MetaLink()

    async def get(self, key: str) -> Entry | None:
        await self._travel()
        found = self._keep.entries.get(key)
        await self._return()
        return found

    async def list(self, prefix: str, since: int = 0) -> list[Entry]:
        await self._travel()
        entries = self._keep.entries
        keys = sorted(key for key in entries if key.startswith(prefix))
        found = [entries[key] for key in keys if entries[key].revision > since]
        await self._return()
        return found

    async def txn(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int | None:
        assert len(puts) + len(deletes) <= TXN_CHANGES_MAX, "split the transaction"
        assert not any(key in puts for key in deletes), "one change per key"
        compare, puts, deletes = list(compare), dict(puts), list(deletes)
        await self._travel(lambda: self._arrive_late(compare, puts, deletes, lease))
        keep = self._keep
        if keep.full and puts:
            raise texts.metadata_unavailable(WHERE, "it has no space left")
        revision = keep.transact(compare, puts, deletes, lease, self._life.name)
        lost = keep.rng.random() < keep.lost_replies or self._link.lose_reply()
        await self._travel(back=True)
        if lost:
            raise texts.metadata_unavailable(WHERE, "the reply was lost")
        return revision

    async def grant(self, ttl: float) -> int:
        await self._travel()
        keep = self._keep
        if keep.full:
            raise texts.metadata_unavailable(WHERE, "it has no space left")
        number = keep.number()
        keep.leases[number] = lease = Lease(ttl, 0.0, set())
        keep.renew(lease)
        keep.heard[self._life.name] = trio.current_time()
        await self._return()
        return number

    async def keepalive(self, lease: int) -> bool:
        await self._travel()
        found = self._keep.leases.get(lease)
        if found is not None:
            self._keep.renew(found)
            self._keep.heard[self._life.name] = trio.current_time()
        await self._return()
        return found is not None

    async def revoke(self, lease: int) -> None:
        await self._travel()
        self._keep.end_lease(lease)
        await self._return()

    def watch(self, prefix: str) -> SimWatch:
        self._life.check()
        return SimWatch(prefix, self._keep, self._life, self._link)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _arrive_late(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str],
        lease: int | None,
    ) -> None:
        """A request that everybody had given up: nobody hears what became of it."""
        keep = self._keep
        if not keep.down and not keep.full and (lease is None or lease in keep.leases):
            keep.transact(compare, puts, deletes, lease, self._life.name)

    async def _return(self) -> None:
        """The answer to what changed nothing: lost only where the link is cut."""
        if self._link.cut:
            await self._travel(back=True)

    async def _travel(self, late: Callable[[], None] | None = None, *, back: bool = False) -> None:
        """One way to the store: takes time, and fails while the store is down or out of reach."""
        self._life.check()
        link, rng = self._link, self._keep.rng
        mean = self._keep.delay_mean + link.delay_mean
        await trio.sleep(rng.expovariate(1 / mean) if mean else 0)
        self._life.check()
        if link.cut_back if back else link.cut_there:
            if late is not None and rng.random() < link.late:
                link.waiting.append(late)
            await trio.sleep(PATIENCE_S * rng.uniform(0.9, 1.1))
            self._life.check()
            raise texts.metadata_unavailable(WHERE, "it does not answer")
        if self._keep.down:
            raise texts.metadata_unavailable(WHERE, "it is down")
        self._keep.expire()
