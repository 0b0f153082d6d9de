"""What the metadata store says, read again whenever it may have changed.

- A watch is a hint (R17): whatever it says, everything is read again, leaderships from the last
  revision seen, and now and then (``WHOLE_EVERY_S``, and after any error) those as a whole, too.
- Topics are read before their partitions, and brokers last: a topic in a view has its partitions,
  one that is gone has its deletion, and a leader that is not among the brokers is not there,
  however long the reading took.
- Reading and following are two tasks: opening a thousand logs keeps nobody from hearing who leads.
"""

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.catalog import (
    DELETED,
    PARTITIONS,
    TOPICS,
    Catalog,
    Deletion,
    Leadership,
    Topic,
    parse_partition_key,
)
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.members import BROKERS, CONTROLLER_KEY, DRAINING, DRAINS, BrokerRecord
from tailrace.broker.metadata import Entry, Watch
from tailrace.broker.registry import Conflict, Registry
from tailrace.protocol.errors import BrokerError, MetadataUnavailable
from tailrace.protocol.limits import pieces

log = logging.getLogger("tailrace.broker.views")

TOGETHER_S = 0.02  # after a reading: changes that come within it are read at once; or, where that
# takes longer, within as long as the last reading took, but not after one that stood still
TOGETHER_MAX_S = 1.0
WHOLE_EVERY_S = 60.0
AGAIN_MIN_S, AGAIN_MAX_S = 0.1, 1.0  # between attempts while the store is away
STEP = 500  # leaderships decoded before others have their turn: about 2 ms

V = TypeVar("V")


class Follow(Protocol):
    """Does what a view says (``keeper.py``)."""

    async def __call__(self, view: ClusterView, *, whole: bool) -> None: ...


class Views:
    """``view`` is the newest one. This broker itself follows behind it."""

    def __init__(self, registry: Registry) -> None:
        self.view = ClusterView()
        self.keeper: Follow = _nobody
        self.on_view: list[Callable[[ClusterView], None]] = []  # told as soon as it was read
        self.on_followed: list[Callable[[ClusterView], None]] = []  # when partitions are as it says
        self.on_caught_up: Callable[[], None] = lambda: None  # what ``catch_up`` asked for
        self._registry = registry
        self._reading = trio.Lock()
        self._following = trio.Lock()
        self._read_bell, self._follow_bell = Bell(), Bell()
        self._changed = trio.Event()
        self._leaderships: dict[PartitionId, Leadership] = {}
        self._since = 0  # the latest revision among them
        self._decoded: dict[str, tuple[int, Any]] = {}  # by key: revision, value
        self._took_s = 0.0  # the last reading, without those that failed before it
        self._whole_due = -math.inf  # in trio's time
        self._whole = False  # everything was read anew since the last one was followed
        self._failed: BrokerError | None = None  # T093, which following met
        self._begun = self._read_as = self._followed_as = 0  # readings, by number
        self._needed = 0  # the first one that ``catch_up`` asks for

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def refresh(self) -> None:
        """Somebody has reason to believe that the view is old: read again, soon."""
        self._read_bell.ring()

    def catch_up(self) -> None:
        """Others may lead by now what is led here: read again, and tell ``on_caught_up`` when this
        broker has stepped back from what a view of some time after this call gives to others."""
        self._needed = self._begun + 1
        self.refresh()

    def stepped_back(self) -> None:
        """For whoever follows: what the view gives to others is not led here any more."""
        if self._needed and self._followed_as >= self._needed:
            self._needed = 0
            self.on_caught_up()

    def follow_again(self) -> None:
        """Something here is no more as the last view made it."""
        self._follow_bell.ring()

    def note(self, stored: Mapping[PartitionId, Leadership]) -> None:
        """This broker has stored these: others here need not wait until they were read."""
        there = self.view.leaderships
        known = {
            where: one
            for where, one in stored.items()
            if where in there and there[where].revision < one.revision
        }
        if known:
            self._leaderships |= known
            self.view = replace(self.view, leaderships={**self.view.leaderships, **known})
            self._tell()
            self._follow_bell.ring()  # the controller's choice may be this broker itself

    async def wait_for(self, condition: Callable[[ClusterView], bool], timeout_s: float) -> bool:
        """Wait until the view satisfies a condition; whether it did within that time."""
        with trio.move_on_after(timeout_s):
            while not condition(self.view):
                await self._changed.wait()
            return True
        return False

    async def now(self) -> ClusterView:
        """Read, tell, follow: a view as of some time after this call. T100, and T093."""
        await self.read()
        return await self.follow()

    async def follow(self) -> ClusterView:
        """Let this broker do what the newest view says, and tell whoever waits for that.

        T093 if it meets a failed sync, or did before: whoever asks for the view of a change of its
        own hears of it, also if another task was first. T100 if the store is away, ``Conflict`` if
        it moved on.
        """
        async with self._following:
            if self._failed is not None:
                raise self._failed
            view, whole, self._followed_as = self.view, self._whole, self._read_as
            self._whole = False
            try:
                await self.keeper(view, whole=whole)
            except BrokerError as error:
                if error.code == "T093":
                    self._failed = error
                raise
            for tell in self.on_followed:
                tell(view)
            return view

    # ── tasks ────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Keep the view up to date until cancelled."""
        watch = self._registry.store.watch("")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, watch)
                while True:
                    await self._insist(self.read)
                    together_s = max(TOGETHER_S, min(self._took_s, TOGETHER_MAX_S))
                    next_at = trio.current_time() + together_s
                    with trio.move_on_at(self._whole_due):
                        await self._read_bell.wait()  # the first of many changes is read at once
                        await trio.sleep_until(next_at)
        finally:
            watch.close()

    async def run_following(self) -> None:
        """Follow every view until cancelled. T093 if that meets a failed sync."""
        while True:
            await self._follow_bell.wait()
            await self._insist(self.follow)

    async def _heed(self, watch: Watch) -> None:
        while True:
            await self._insist(watch.wait)
            self.refresh()

    async def _insist(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do it, again and again while the store is away or changes beneath it."""
        again_s = AGAIN_MIN_S
        while True:
            try:
                await work()
            except (MetadataUnavailable, Conflict) as error:
                log.debug("again: %s", error)
                self._whole_due = -math.inf
                self.refresh()
                await trio.sleep(again_s)
                again_s = min(again_s * 2, AGAIN_MAX_S)
            else:
                return

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    async def read(self) -> ClusterView:
        """A view as of some time after this call. T100."""
        async with self._reading:
            now = trio.current_time()
            whole = now >= self._whole_due
            self._begun += 1
            changed = await self._read(whole=whole)
            self._read_as = self._begun
            self._took_s = trio.current_time() - now
            if whole:
                self._whole, self._whole_due = True, now + WHOLE_EVERY_S
        if changed:
            self._tell()
        if changed or whole or self._needed:
            self._follow_bell.ring()
        return self.view

    def _tell(self) -> None:
        for tell in self.on_view:
            tell(self.view)
        self._changed.set()
        self._changed = trio.Event()

    async def _read(self, *, whole: bool) -> bool:
        """Whether anything is another than before."""
        topics = await self._all(
            TOPICS, lambda _, value, revision: Topic.from_json(value, revision)
        )
        deleted = await self._all(DELETED, Deletion.from_json)
        found = await self._registry.entries(PARTITIONS, 0 if whole else self._since)
        read = await self._decode_leaderships(found)
        draining = await self._all(DRAINING, _broker_of)
        drains = await self._all(DRAINS, _broker_of)
        controllers = await self._all(CONTROLLER_KEY, _broker_since)
        brokers = await self._all(BROKERS, BrokerRecord.from_json)
        # From here on nothing is awaited: ``note`` may have come at any time before.
        self._since = max((self._since, *(entry.revision for entry in found)))
        before = self.view
        deletions = {one.topic_id: one for one in deleted.values()}
        alive = {one.topic_id: one for one in topics.values() if one.topic_id not in deletions}
        catalog = before.catalog if alive == before.catalog.by_id else Catalog.of(alive.values())
        there, orphans = before.leaderships, before.orphans
        if self._merge(catalog, read, whole=whole) or catalog is not before.catalog:
            there = {w: one for w, one in self._leaderships.items() if w[0] in catalog.by_id}
            orphans = frozenset(self._leaderships.keys() - there.keys())
        controller, revision = next(iter(controllers.values()), (None, 0))
        self.view = ClusterView(
            brokers={one.broker_id: one for one in brokers.values()},
            draining=frozenset(draining.values()),
            drains=frozenset(drains.values()),
            controller=controller,
            controller_revision=revision,
            catalog=catalog,
            leaderships=there,
            deletions=deletions,
            orphans=orphans,
        )
        return self.view != before

    async def _decode_leaderships(self, found: Sequence[Entry]) -> dict[PartitionId, Leadership]:
        """Those that are new, or that a whole reading found again."""
        read: dict[PartitionId, Leadership] = {}
        for some in pieces(found, STEP):
            for entry in some:
                where = parse_partition_key(entry.key)
                known = self._leaderships.get(where)
                if known is None or known.revision < entry.revision:
                    known = Leadership.from_json(entry.value, entry.revision)
                read[where] = known
            await trio.lowlevel.checkpoint()
        return read

    def _merge(
        self, catalog: Catalog, read: Mapping[PartitionId, Leadership], *, whole: bool
    ) -> bool:
        """Whether the leaderships are others than before."""
        gone = self.view.catalog.by_id.keys() - catalog.by_id.keys()
        if not (read or gone or whole):
            return False
        # What was removed does not show: leftovers of a topic are found by a whole reading.
        before = self._leaderships
        merged = {w: one for w, one in before.items() if not whole and w[0] not in gone}
        for where, one in read.items():
            if whole or where[0] not in gone:
                known = before.get(where)
                merged[where] = known if known and known.revision > one.revision else one
        self._leaderships = merged
        return merged != before

    async def _all(self, prefix: str, decode: Callable[[str, bytes, int], V]) -> Mapping[str, V]:
        """Everything below a prefix, decoded unless it is as it was."""
        found = await self._registry.entries(prefix)
        values: dict[str, V] = {}
        for entry in found:
            values[entry.key] = self._decode(entry, decode)
        for key in [key for key in self._decoded if key.startswith(prefix) and key not in values]:
            del self._decoded[key]
        return values

    def _decode(self, entry: Entry, decode: Callable[[str, bytes, int], V]) -> V:
        known = self._decoded.get(entry.key)
        if known is None or known[0] != entry.revision:
            known = (entry.revision, decode(entry.key, entry.value, entry.revision))
            self._decoded[entry.key] = known
        value: V = known[1]
        return value


def _broker_of(key: str, value: bytes, revision: int) -> str:
    broker: str = json.loads(value)["broker"]
    return broker


def _broker_since(key: str, value: bytes, revision: int) -> tuple[str, int]:
    return _broker_of(key, value, revision), revision


async def _nobody(view: ClusterView, *, whole: bool) -> None:
    """Nobody follows yet."""
