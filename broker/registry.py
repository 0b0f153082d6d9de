"""What brokers keep in the metadata store, typed: members, topics, leaderships, ids, erasures.

- Every change is a compare-and-swap on the revision that was seen (S30).
- A transaction that failed may have been applied: the first key it would have changed is read
  again before it is tried again (R16). What is put carries an id or an epoch of its own, so equal
  bytes mean "this very change". ``alter`` is tried once: whoever asks for it decides anew.
- Nothing here knows of logs or tasks; ``keeper.py`` and ``topics.py`` put both together.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import trio

from tailrace.broker.catalog import (
    Deletion,
    Leadership,
    Topic,
    partition_key,
)
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.erasure import ERASURES, Erasure
from tailrace.broker.health import Health
from tailrace.broker.members import (
    BROKERS,
    CONTROLLER_KEY,
    DIRECTORIES,
    DRAINING,
    BrokerRecord,
    IdTaken,
)
from tailrace.broker.metadata import TXN_CHANGES_MAX, Entry, MetadataStore
from tailrace.broker.metrics import Metrics
from tailrace.protocol import texts_storage
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.limits import pieces
from tailrace.protocol.seams import Clock

FORMAT_KEY = "format"
CLUSTER_KEY = "cluster"
PRODUCER_IDS_KEY = "producer_ids"
FORMAT = 1
PRODUCER_ID_BLOCK = 1_000
ATTEMPTS_MAX = 5  # while the store is away
RETRY_FIRST_S = 0.05

T = TypeVar("T")


class Conflict(Exception):
    """Somebody else changed what a change was built on."""


class Registry:
    """One broker's dealings with the store."""

    def __init__(
        self, store: MetadataStore, broker_id: str, clock: Clock, metrics: Metrics, health: Health
    ) -> None:
        self.store = store
        # Told of every leadership that this broker has stored: it need not be read first.
        self.stored: Callable[[Mapping[PartitionId, Leadership]], None] = lambda stored: None
        self._broker_id = broker_id
        self._clock = clock
        self._metrics = metrics
        self._health = health

    # ── cluster and broker ───────────────────────────────────────────────────────────────────

    async def cluster_id(self, where: str, new_id: str) -> str:
        """The cluster's id; ``new_id`` if the store is new. T092 if its format is newer.

        ``where``: the store, or the directory it is in, for people.
        """
        while True:
            found = await self._ask("get", self.store.get(FORMAT_KEY))
            if found is not None and json.loads(found.value)["format"] > FORMAT:
                raise texts_storage.directory_format(
                    where, found=json.loads(found.value)["format"], newest=FORMAT
                )
            cluster = await self._ask("get", self.store.get(CLUSTER_KEY))
            if cluster is not None:
                there: str = json.loads(cluster.value)["id"]
                return there
            with suppress(Conflict):  # another broker was first
                await self._change(
                    [(CLUSTER_KEY, 0)],
                    {CLUSTER_KEY: _dump({"id": new_id}), FORMAT_KEY: _dump({"format": FORMAT})},
                )

    async def register(self, record: BrokerRecord, lease: int | None) -> int:
        """Store this broker's registration; the broker epoch.

        ``IdTaken`` if a broker with another data directory is registered. ``KeyError`` if the
        lease has ended, ``Conflict`` if it is to be tried again. Without a lease the lock on the
        data directory stands for it: whoever wrote the key before is dead.
        """
        found = await self._ask("get", self.store.get(record.key))
        if found is not None and lease is not None:
            other = BrokerRecord.from_json(found.key, found.value, found.revision)
            if other.directory != record.directory:
                raise IdTaken(other)
        compare = [(record.key, found.revision if found is not None else 0)]
        return await self._change(compare, {record.key: record.to_json()}, lease=lease)

    async def registered(self, broker_id: str) -> BrokerRecord | None:
        """A broker's registration as it stands."""
        found = await self._ask("get", self.store.get(BROKERS + broker_id))
        if found is None:
            return None
        return BrokerRecord.from_json(found.key, found.value, found.revision)

    async def leave(self) -> None:
        """Remove this broker's registration, where no lease does it."""
        await self._change([], {}, [BROKERS + self._broker_id])

    async def put_draining(self, lease: int) -> None:
        """This broker is about to stop."""
        value = _dump({"broker": self._broker_id, "until": "stop"})
        await self._change([], {DRAINING + self._broker_id: value}, lease=lease)

    async def directory(self) -> str | None:
        """The id of the data directory that this broker last came with."""
        found = await self._ask("get", self.store.get(DIRECTORIES + self._broker_id))
        return None if found is None else json.loads(found.value)["directory"]

    async def put_directory(self, directory: str) -> None:
        """Let it be this one."""
        await self._change([], {DIRECTORIES + self._broker_id: _dump({"directory": directory})})

    async def campaign(self, lease: int | None) -> int | None:
        """Become the controller: the controller epoch. None if somebody is.

        ``KeyError`` if the lease has ended.
        """
        with suppress(Conflict):
            value = _dump({"broker": self._broker_id, "lease": lease})
            return await self._change([(CONTROLLER_KEY, 0)], {CONTROLLER_KEY: value}, lease=lease)
        return None

    async def grant(self, ttl_s: float) -> int:
        """A lease."""
        return await self._ask("lease", self.store.grant(ttl_s))

    async def keepalive(self, lease: int) -> bool:
        """Give it its time again; False if it has ended."""
        return await self._ask("lease", self.store.keepalive(lease))

    async def revoke(self, lease: int) -> None:
        """End it, and with it what was stored by it."""
        await self._ask("lease", self.store.revoke(lease))

    async def entries(self, prefix: str, since: int = 0) -> Sequence[Entry]:
        """As ``MetadataStore.list``."""
        return await self._ask("list", self.store.list(prefix, since))

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    async def create(self, topic: Topic, leaderships: Mapping[PartitionId, Leadership]) -> Topic:
        """Store a new topic; ``Conflict`` if its name (or a twin's) was taken meanwhile.

        One transaction if they fit in; else the partitions' keys come first. They mean nothing
        without the topic's own, and whoever removes such leftovers removes partition 0 first.
        """
        puts = {partition_key(*where): one.to_json() for where, one in leaderships.items()}
        named = {topic.key: topic.to_json()}
        if len(puts) < TXN_CHANGES_MAX:
            return stored_at(topic, await self._change([(topic.key, 0)], named | puts))
        first = 0
        for some in pieces(list(puts.items()), TXN_CHANGES_MAX):
            revision = await self._change([(key, 0) for key, _ in some], dict(some))
            first = first or revision
        compare = [(topic.key, 0), (partition_key(topic.topic_id, 0), first)]
        try:
            return stored_at(topic, await self._change(compare, named))
        except Conflict:
            await self.forget_partitions(list(leaderships))
            raise

    async def update(self, topic: Topic, also: Sequence[tuple[str, int]] = ()) -> Topic:
        """Store a changed topic; ``Conflict`` if it is no more what it was changed from.

        ``also``: further keys and the revisions that they must have.
        """
        compare = [(topic.key, topic.revision), *also]
        return stored_at(topic, await self._change(compare, {topic.key: topic.to_json()}))

    async def retire(self, topic: Topic, holders: Sequence[str]) -> Deletion:
        """Delete a topic: its name is free at once, ``holders`` are to remove their copies.

        ``Conflict`` if it is no more what it was.
        """
        deletion = Deletion(topic.topic_id, topic.name, len(topic.partitions), tuple(holders))
        revision = await self._change(
            [(topic.key, topic.revision)], {deletion.key: deletion.to_json()}, [topic.key]
        )
        await self.forget_partitions(deletion.where)
        return replace(deletion, revision=revision)

    async def removed(self, deletion: Deletion, also: Sequence[PartitionId] = ()) -> None:
        """This broker has no copy any more; after the last one nothing is left of the topic.

        ``also``: keys of its partitions that are still there. ``Conflict``: to be tried again.
        """
        await self.forget_partitions(also)
        left = tuple(one for one in deletion.pending if one != self._broker_id)
        compare = [(deletion.key, deletion.revision)]
        if left:
            changed = replace(deletion, pending=left)
            await self._change(compare, {deletion.key: changed.to_json()})
        else:
            await self._change(compare, {}, [deletion.key])

    async def forget_partitions(self, gone: Sequence[PartitionId]) -> None:
        """Remove the keys of partitions whose topic is not there, the first of each first."""
        for some in pieces(sorted(gone), TXN_CHANGES_MAX):
            await self._change([], {}, [partition_key(*where) for where in some])

    # ── leaderships ──────────────────────────────────────────────────────────────────────────

    async def elect(
        self, leaderships: Mapping[PartitionId, Leadership]
    ) -> dict[PartitionId, Leadership]:
        """Make this broker the leader of all of them, each in a new epoch (S9).

        Those that somebody changed meanwhile are left out.
        """
        elected = {where: one.elected(self._broker_id) for where, one in leaderships.items()}
        return await self.change(elected)

    async def change(
        self, changed: Mapping[PartitionId, Leadership]
    ) -> dict[PartitionId, Leadership]:
        """Store them as far as nobody else changed them meanwhile; those that are stored."""
        stored: dict[PartitionId, Leadership] = {}
        for some in pieces(list(changed.items()), TXN_CHANGES_MAX):
            try:
                stored |= await self._put(dict(some))
            except Conflict:
                for one in some:
                    with suppress(Conflict):
                        stored |= await self._put(dict([one]))
        self.stored(stored)
        return stored

    async def alter(
        self, changed: Mapping[PartitionId, Leadership], also: Sequence[tuple[str, int]] = ()
    ) -> dict[PartitionId, Leadership]:
        """Store all of them in one transaction, tried once: at most ``TXN_CHANGES_MAX``.

        Each is compared with the revision it was read at, ``also`` are further keys and the
        revisions that they must have: of the controller, of a follower's registration (R6).
        ``Conflict`` if one of them is another. T100: it may have been stored or not (R16), and
        whoever asked reads again and decides anew.
        """
        compare = [(partition_key(*where), one.revision) for where, one in changed.items()]
        puts = {partition_key(*where): one.to_json() for where, one in changed.items()}
        revision = await self._ask("txn", self.store.txn([*compare, *also], puts))
        if revision is None:
            raise Conflict
        stored = {where: stored_at(one, revision) for where, one in changed.items()}
        self.stored(stored)
        return stored

    # ── producer ids ─────────────────────────────────────────────────────────────────────────

    async def producer_ids(self) -> range:
        """A block of ids that nobody else gets. An id is lost rather than given out twice."""
        while True:
            found = await self._ask("get", self.store.get(PRODUCER_IDS_KEY))
            first: int = 0 if found is None else json.loads(found.value)["next"]
            block = range(first, first + PRODUCER_ID_BLOCK)
            compare = [(PRODUCER_IDS_KEY, found.revision if found else 0)]
            value = _dump({"next": block.stop, "broker": self._broker_id})
            # Not by ``_change``: after a lost reply another block is taken, never this one.
            txn = self.store.txn(compare, {PRODUCER_IDS_KEY: value})
            if await self._ask("txn", txn) is not None:
                return block

    # ── erasures ─────────────────────────────────────────────────────────────────────────────

    async def erasures(self) -> list[Erasure]:
        """All that are stored, complete ones too, by id."""
        entries = await self._ask("list", self.store.list(ERASURES))
        return [Erasure.from_json(one.key, one.value, one.revision) for one in entries]

    async def put_erasure(self, erasure: Erasure) -> Erasure:
        """Store one as it is now; ``Conflict`` if it was removed meanwhile.

        This broker alone writes it: a revision that moved on is that of a try whose reply was
        lost (R16). One that was stored before under a new id is returned as it is stored.
        """
        value, revision = erasure.to_json(), erasure.revision
        while True:
            try:
                revision = await self._change([(erasure.key, revision)], {erasure.key: value})
            except Conflict:
                entry = await self._ask("get", self.store.get(erasure.key))
                if entry is None:
                    raise
                if not erasure.revision:
                    return Erasure.from_json(entry.key, entry.value, entry.revision)
                revision = entry.revision
            else:
                return stored_at(erasure, revision)

    async def change_erasure(
        self, erasure: Erasure, change: Callable[[Erasure], Erasure]
    ) -> Erasure:
        """Store what ``change`` makes of it; ``Conflict`` if it was removed meanwhile.

        Every broker writes it: ``change`` is asked again for what another one made of it (S30), and
        must say the same of what it has changed already (R16). One that is new (revision 0) and
        was stored before under its id is returned as it is stored.
        """
        known = erasure
        while (changed := change(known)) != known or not known.revision:
            try:
                revision = await self._change(
                    [(changed.key, known.revision)], {changed.key: changed.to_json()}
                )
            except Conflict:
                entry = await self._ask("get", self.store.get(erasure.key))
                if entry is None:
                    raise
                known = Erasure.from_json(entry.key, entry.value, entry.revision)
                if not erasure.revision:
                    return known
            else:
                return stored_at(changed, revision)
        return known

    async def forget_erasures(self, gone: Sequence[Erasure]) -> None:
        for some in pieces([erasure.key for erasure in gone], TXN_CHANGES_MAX):
            await self._change([], {}, some)

    # ── one change ───────────────────────────────────────────────────────────────────────────

    async def _put(self, some: Mapping[PartitionId, Leadership]) -> dict[PartitionId, Leadership]:
        """All of them or none (``Conflict``); at most ``TXN_CHANGES_MAX``."""
        revision = await self._change(
            [(partition_key(*where), one.revision) for where, one in some.items()],
            {partition_key(*where): one.to_json() for where, one in some.items()},
        )
        return {where: stored_at(one, revision) for where, one in some.items()}

    async def _change(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        lease: int | None = None,
    ) -> int:
        """Apply one transaction, or raise ``Conflict``, or T100 with the outcome unknown."""
        failed: MetadataUnavailable | None = None
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                await trio.sleep(RETRY_FIRST_S * 2**attempt)
            try:
                if failed is not None:
                    revision = await self._applied(puts, deletes)
                    if revision is not None:
                        return revision
                revision = await self._ask("txn", self.store.txn(compare, puts, deletes, lease))
            except MetadataUnavailable as error:
                failed = error
                continue
            if revision is None:
                raise Conflict
            return revision
        assert failed is not None
        raise failed

    async def _ask(self, op: str, asking: Awaitable[T]) -> T:
        """One request to the store, timed; its failures show in health and metrics."""
        began = self._clock.now()
        try:
            answer = await asking
        except MetadataUnavailable as error:
            self._metrics.metadata_errors.of(op).inc()
            self._health.metadata_error = str(error)
            raise
        self._metrics.metadata_duration.histogram(op).observe(self._clock.now() - began)
        self._health.metadata_error = ""
        return answer

    async def _applied(self, puts: Mapping[str, bytes], deletes: Sequence[str]) -> int | None:
        """The revision of a transaction whose reply was lost; None if it was not applied.

        Every key is looked at: somebody else may have put the same value for one of them, with
        another one beside it. A transaction gives all of its keys the same revision.
        """
        revisions = set[int]()
        for key, value in puts.items():
            entry = await self._ask("get", self.store.get(key))
            if entry is None or entry.value != value:
                return None
            revisions.add(entry.revision)
        for key in deletes:
            if await self._ask("get", self.store.get(key)) is not None:
                return None
        return None if len(revisions) > 1 else next(iter(revisions), 0)


R = TypeVar("R", Topic, Leadership, Erasure)


def stored_at(record: R, revision: int) -> R:
    return replace(record, revision=revision)


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
