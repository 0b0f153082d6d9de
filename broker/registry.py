"""What this broker keeps in the metadata store, typed: topics, leaderships, ids, erasures.

- Every change is a compare-and-swap on the revision that was seen (S30).
- A transaction that failed may have been applied: the first key it would have changed is read
  again before it is tried again (R16). What is put carries an id or an epoch of its own, so equal
  bytes mean "this very change".
- Nothing here knows of logs or tasks; ``topics.py`` puts both together.
"""

import json
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import trio

from tailrace.broker.catalog import (
    PARTITIONS,
    TOPICS,
    Catalog,
    Leadership,
    Topic,
    parse_partition_key,
    partition_key,
)
from tailrace.broker.erasure import ERASURES, Erasure
from tailrace.broker.health import Health
from tailrace.broker.metadata import TXN_CHANGES_MAX, MetadataStore
from tailrace.broker.metrics import Metrics
from tailrace.protocol import texts
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.seams import Clock

FORMAT_KEY = "format"
CLUSTER_KEY = "cluster"
BROKERS = "brokers/"
PRODUCER_IDS_KEY = "producer_ids"
FORMAT = 1
PRODUCER_ID_BLOCK = 1_000
ATTEMPTS_MAX = 5  # while the store is away
RETRY_FIRST_S = 0.05

PartitionId = tuple[bytes, int]  # topic id, partition
T = TypeVar("T")


class Conflict(Exception):
    """Somebody else changed what a change was built on."""


class Registry:
    """One broker's dealings with the store."""

    def __init__(
        self, store: MetadataStore, broker_id: str, clock: Clock, metrics: Metrics, health: Health
    ) -> None:
        self._store = store
        self._broker_id = broker_id
        self._clock = clock
        self._metrics = metrics
        self._health = health

    # ── cluster and broker ───────────────────────────────────────────────────────────────────

    async def join(self, cluster_id: str, directory: str, about: Mapping[str, object]) -> int:
        """Claim or check the store's format and cluster, register this broker.

        Returns the broker's epoch. T091 or T092 if the store is another cluster's or newer.
        """
        found = await self._ask("get", self._store.get(FORMAT_KEY))
        if found is not None and json.loads(found.value)["format"] > FORMAT:
            raise texts.directory_format(
                directory, found=json.loads(found.value)["format"], newest=FORMAT
            )
        cluster = await self._ask("get", self._store.get(CLUSTER_KEY))
        if cluster is None:
            await self._change(
                [(CLUSTER_KEY, 0)],
                {CLUSTER_KEY: _dump({"id": cluster_id}), FORMAT_KEY: _dump({"format": FORMAT})},
            )
        elif (there := json.loads(cluster.value)["id"]) != cluster_id:
            raise texts.directory_foreign(
                directory,
                broker=self._broker_id,
                cluster=cluster_id,
                configured_broker=self._broker_id,
                configured_cluster=there,
            )
        # With the embedded store the lock on the data directory stands for the lease: whoever
        # wrote this key before is dead. The cluster's store binds it to a lease (R13).
        return await self._change([], {BROKERS + self._broker_id: _dump(about)})

    async def leave(self) -> None:
        await self._change([], {}, [BROKERS + self._broker_id])

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    async def load(self) -> tuple[Catalog, dict[PartitionId, Leadership]]:
        """All topics and leaderships. Leaderships without a topic are removed: a creation that
        did not come to its end, or a deletion that did."""
        entries = await self._ask("list", self._store.list(TOPICS))
        catalog = Catalog.of(Topic.from_json(one.value, one.revision) for one in entries)
        leaderships: dict[PartitionId, Leadership] = {}
        orphans: list[str] = []
        for entry in await self._ask("list", self._store.list(PARTITIONS)):
            topic_id, partition = parse_partition_key(entry.key)
            if topic_id in catalog.by_id:
                leaderships[topic_id, partition] = Leadership.from_json(entry.value, entry.revision)
            else:
                orphans.append(entry.key)
        for keys in _chunks(orphans):
            await self._change([], {}, keys)
        return catalog, leaderships

    async def create(self, topic: Topic) -> tuple[Topic, dict[PartitionId, Leadership]]:
        """Store a new topic; ``Conflict`` if its name (or a twin's) was taken meanwhile.

        The partitions' keys come first: until the topic's own key stands, they mean nothing.
        """
        fresh = {
            (topic.topic_id, partition): Leadership(
                None, 0, isr=record.replicas, replicas=record.replicas
            )
            for partition, record in enumerate(topic.partitions)
        }
        leaderships = await self._put(fresh)
        revision = await self._change([(topic.key, 0)], {topic.key: topic.to_json()})
        return stored_at(topic, revision), leaderships

    async def update(self, topic: Topic) -> Topic:
        """Store a changed topic; ``Conflict`` if it is no more what it was changed from."""
        revision = await self._change([(topic.key, topic.revision)], {topic.key: topic.to_json()})
        return stored_at(topic, revision)

    async def remove(self, topic: Topic) -> None:
        """Forget a topic whose bytes are gone: its own key first, then its partitions'."""
        await self._change([(topic.key, topic.revision)], {}, [topic.key])
        keys = [partition_key(topic.topic_id, number) for number in range(len(topic.partitions))]
        for some in _chunks(keys):
            await self._change([], {}, some)

    async def elect(
        self, leaderships: Mapping[PartitionId, Leadership]
    ) -> dict[PartitionId, Leadership]:
        """Make this broker the leader of all of them, each in a new epoch (S9)."""
        return await self._put(
            {where: one.elected(self._broker_id) for where, one in leaderships.items()}
        )

    # ── producer ids ─────────────────────────────────────────────────────────────────────────

    async def producer_ids(self) -> range:
        """A block of ids that nobody else gets. An id is lost rather than given out twice."""
        while True:
            found = await self._ask("get", self._store.get(PRODUCER_IDS_KEY))
            first: int = 0 if found is None else json.loads(found.value)["next"]
            block = range(first, first + PRODUCER_ID_BLOCK)
            compare = [(PRODUCER_IDS_KEY, found.revision if found else 0)]
            value = _dump({"next": block.stop, "broker": self._broker_id})
            # Not by ``_change``: after a lost reply another block is taken, never this one.
            txn = self._store.txn(compare, {PRODUCER_IDS_KEY: value})
            if await self._ask("txn", txn) is not None:
                return block

    # ── erasures ─────────────────────────────────────────────────────────────────────────────

    async def erasures(self) -> list[Erasure]:
        """All that are stored, complete ones too, by id."""
        entries = await self._ask("list", self._store.list(ERASURES))
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
                entry = await self._ask("get", self._store.get(erasure.key))
                if entry is None:
                    raise
                if not erasure.revision:
                    return Erasure.from_json(entry.key, entry.value, entry.revision)
                revision = entry.revision
            else:
                return stored_at(erasure, revision)

    async def forget_erasures(self, gone: Sequence[Erasure]) -> None:
        for some in _chunks([erasure.key for erasure in gone]):
            await self._change([], {}, some)

    # ── one change ───────────────────────────────────────────────────────────────────────────

    async def _put(
        self, leaderships: Mapping[PartitionId, Leadership]
    ) -> dict[PartitionId, Leadership]:
        stored: dict[PartitionId, Leadership] = {}
        for some in _chunks(list(leaderships.items())):
            keys = {where: partition_key(*where) for where, _ in some}
            revision = await self._change(
                [(keys[where], one.revision) for where, one in some],
                {keys[where]: one.to_json() for where, one in some},
            )
            stored.update((where, stored_at(one, revision)) for where, one in some)
        return stored

    async def _change(
        self,
        compare: Sequence[tuple[str, int]],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
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
                revision = await self._ask("txn", self._store.txn(compare, puts, deletes))
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
        """The revision of a transaction whose reply was lost; None if it was not applied."""
        for key, value in puts.items():
            entry = await self._ask("get", self._store.get(key))
            return entry.revision if entry is not None and entry.value == value else None
        return 0 if await self._ask("get", self._store.get(deletes[0])) is None else None


R = TypeVar("R", Topic, Leadership, Erasure)


def stored_at(record: R, revision: int) -> R:
    return replace(record, revision=revision)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), TXN_CHANGES_MAX):
        yield items[first : first + TXN_CHANGES_MAX]


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
