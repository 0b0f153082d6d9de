"""Topics as the broker changes them: metadata store first, then logs, then the catalog.

- One change at a time: each is several awaits over the same catalog, and they are rare.
- Creating: the store's transaction decides who has the name; then the logs are made; then the
  broker takes the lead. A crash between leaves a topic without logs, which the next start makes.
- Deleting: the state ``deleting`` is stored first, and that alone entitles anybody to remove the
  directories; the next start goes on where a crash stopped it (R26). When the request is answered
  the name is free, and a topic made under it has another id (S30).
"""

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from uuid import UUID

import trio

from tailrace.broker import topic_config
from tailrace.broker.catalog import (
    Catalog,
    Leadership,
    Topic,
    check_name,
    check_not_internal,
    new_topic,
)
from tailrace.broker.config import Config, TopicConfig
from tailrace.broker.erasures import Erasures
from tailrace.broker.flusher import Flusher
from tailrace.broker.metrics import Metrics
from tailrace.broker.registry import Conflict, PartitionId, Registry
from tailrace.broker.shelf import Opening, Shelf
from tailrace.broker.world import World
from tailrace.protocol import texts, texts_config
from tailrace.protocol.errors import BrokerError, PartitionOffline

log = logging.getLogger("tailrace.broker.topics")

CONFLICTS_MAX = 3


class Topics:
    def __init__(
        self,
        world: World,
        config: Config,
        registry: Registry,
        shelf: Shelf,
        flusher: Flusher,
        erasures: Erasures,
        metrics: Metrics,
    ) -> None:
        self._world = world
        self._config = config
        self._registry = registry
        self._shelf = shelf
        self._flusher = flusher
        self._erasures = erasures
        self._metrics = metrics
        self._ids = world.rng("topic ids")
        self._changing = trio.Lock()
        self._stale = False  # a change failed half-way: what the store says is to be read again
        self.changed: Callable[[], None] = lambda: None  # the janitor's: settings hold at once

    @property
    def catalog(self) -> Catalog:
        return self._shelf.catalog

    def config_of(self, topic: Topic) -> TopicConfig:
        """What holds for a topic now."""
        return topic_config.effective(
            topic.name,
            self._config,
            topic.config,
            partitions=len(topic.partitions),
            replicas=topic.replicas,
        )

    def find(self, name: str) -> Topic:
        """The topic, or T010 with similar names."""
        topic = self.catalog.find(name)
        if topic is None:
            raise texts.topic_not_found(name, similar=self.catalog.similar(name))
        return topic

    # ── start ────────────────────────────────────────────────────────────────────────────────

    async def start(self, *, clean: bool, suspect: bool) -> None:
        """Open everything the store knows, and lead it. T093 T100."""
        catalog, leaderships = await self._registry.load()
        self._shelf.catalog = catalog
        for topic in [one for one in catalog.by_name.values() if one.state == "deleting"]:
            try:
                await self._remove(topic)
            except PartitionOffline:  # it was told, and is no reason not to serve the others
                self._stale = True
        openings = [
            opening
            for topic in self.catalog.by_name.values()
            if topic.state == "live"
            for opening in self._openings(topic, leaderships)
        ]
        await self._shelf.open(openings, clean=clean, suspect=suspect)
        await self._lead(openings, reason="start")
        self._shelf.report_strangers(
            {
                (topic.topic_id, number)
                for topic in self.catalog.by_name.values()
                for number in range(len(topic.partitions))
            }
        )

    # ── changes ──────────────────────────────────────────────────────────────────────────────

    async def create(
        self,
        name: str,
        *,
        partitions: int | None = None,
        replicas: int | None = None,
        config: Mapping[str, str] | None = None,
        exist_ok: bool = False,
    ) -> tuple[Topic, bool]:
        """The topic; whether this call made it. T012 T013 T031 T033 T080-T083 T086 T093 T100."""
        check_name(name)
        overrides = topic_config.parse_overrides(name, config or {})
        async with self._change():
            await self._refresh()
            for _ in range(CONFLICTS_MAX):
                existing = self.catalog.find(name)
                if existing is not None:
                    self._check_same(existing, partitions, replicas, overrides, exist_ok=exist_ok)
                    return existing, False
                self.catalog.check_free(name)
                topic = self._plan(name, partitions, replicas, overrides)
                self._shelf.check_room_for_topic(name, len(topic.partitions))
                try:
                    return await self._create(topic), True
                except Conflict:
                    self._stale = True
                    await self._refresh()
        raise texts.topic_exists(name)

    async def internal(self, name: str, partitions: int) -> Topic:
        """A topic of the broker's own, made at its first use (D18). T031 T033 T093 T100.

        Its settings are its own, whatever ``[topic]`` says, and it is beyond the limits.
        """
        if (topic := self.catalog.find(name)) is not None and not self._stale:
            return topic
        overrides = topic_config.internal(name)
        async with self._change():
            await self._refresh()
            if (topic := self.catalog.find(name)) is not None:
                return topic
            self._shelf.check_room_for_topic(name, partitions)
            return await self._create(self._new(name, partitions, None, overrides))

    async def delete(self, name: str) -> bytes:
        """Delete a topic and its records; its id. T010 T013 T033 T093 T100."""
        check_not_internal(name)
        async with self._change():
            await self._refresh()
            topic = self.find(name)
            with self._stale_unless_done():
                deleting = await self._registry.update(replace(topic, state="deleting"))
                self._shelf.catalog = self.catalog.with_topic(deleting)
                await self._remove(deleting)
        log.info(
            "deleted topic %s", name, extra={"event": "topic.deleted", "code": None, "topic": name}
        )
        return topic.topic_id

    async def alter(self, name: str, changes: Mapping[str, str | None]) -> Topic:
        """Change a topic's settings, all of them or none. T010 T013 T080-T083 T086 T100."""
        check_not_internal(name)
        async with self._change():
            await self._refresh()
            topic = self.find(name)
            overrides = topic_config.apply_changes(name, topic.config, changes)
            changed = replace(topic, config=overrides)
            config = self.config_of(changed)
            with self._stale_unless_done():
                changed = await self._registry.update(changed)
                self._shelf.catalog = self.catalog.with_topic(changed)
                self._shelf.reconfigure(changed, config)
                for partition in self._shelf.of(changed):
                    self._flusher.written(partition)  # "fsync" may hold from now on
                self.changed()
        return changed

    async def open_wanting(self) -> None:
        """Open what could not be opened for want of room, as if a sync of it had failed (R21)."""
        async with self._change():
            catalog, leaderships = await self._registry.load()
            openings = [
                opening
                for topic in catalog.by_name.values()
                for opening in self._openings(topic, leaderships)
                if (topic.topic_id, opening.number) in self._shelf.wanting
            ]
            await self._shelf.open(openings, clean=False, suspect=True)
            await self._lead(openings, reason="restored")

    # ── how ──────────────────────────────────────────────────────────────────────────────────

    def _plan(
        self, name: str, partitions: int | None, replicas: int | None, overrides: Mapping[str, str]
    ) -> Topic:
        """A new topic that would be valid, or ConfigError T080-T083."""
        effective = topic_config.effective(
            name, self._config, overrides, partitions=partitions, replicas=replicas
        )
        limits, has = self._config.limits, self.catalog.partition_count()
        for key, limit, wanted in (
            ("limits.partitions_per_topic", limits.partitions_per_topic, effective.partitions),
            (
                "limits.partitions_per_broker",
                limits.partitions_per_broker,
                effective.partitions + has,
            ),
        ):
            if wanted > limit:
                raise texts_config.settings_contradict(
                    "partitions",
                    origin=f"topic '{name}'",
                    problem=f"{wanted:,} partitions would exceed {key} of {limit:,}",
                    hint=f"Use fewer partitions, or raise {key}.",
                )
        return self._new(name, effective.partitions, replicas, overrides)

    def _new(
        self, name: str, partitions: int, replicas: int | None, overrides: Mapping[str, str]
    ) -> Topic:
        topic_id = UUID(bytes=self._ids.randbytes(16), version=4).bytes
        return new_topic(
            name,
            topic_id,
            partitions=partitions,
            replicas=replicas,
            config=overrides,
            broker_id=self._config.broker.id,
        )

    def _check_same(
        self,
        topic: Topic,
        partitions: int | None,
        replicas: int | None,
        overrides: Mapping[str, str],
        *,
        exist_ok: bool,
    ) -> None:
        """Raise T012 unless an existing topic is what was asked for."""
        if not exist_ok:
            raise texts.topic_exists(topic.name)
        has = {
            entry.key: entry.value
            for entry in topic_config.entries(topic.name, self._config, topic.config)
        }
        asked = dict(overrides)
        has["partitions"], has["replicas"] = str(len(topic.partitions)), _replicas_text(topic)
        if partitions is not None:
            asked["partitions"] = str(partitions)
        if replicas is not None:
            asked["replicas"] = str(replicas)
        differs = [(key, has[key], value) for key, value in asked.items() if has[key] != value]
        if differs:
            raise texts.topic_exists(topic.name, differs=differs)

    async def _create(self, topic: Topic) -> Topic:
        with self._stale_unless_done():
            topic, leaderships = await self._registry.create(topic)
            openings = list(self._openings(topic, leaderships))
            await self._shelf.open(openings, clean=False, suspect=False)
            await self._lead(openings, reason="created")
            broken = self._shelf.broken(topic)
            if broken is not None:  # no room for it, say: then there shall be no such topic
                await self._remove(await self._registry.update(replace(topic, state="deleting")))
                raise broken
            self._shelf.catalog = self.catalog.with_topic(topic)
            self._shelf.resize_segments()
            self.changed()
        log.info(
            "created topic %s with %d partitions",
            *(topic.name, len(topic.partitions)),
            extra={"event": "topic.created", "code": None, "topic": topic.name},
        )
        return topic

    async def _remove(self, topic: Topic) -> None:
        """Finish a deletion that is stored."""
        taken = self._shelf.take_off(topic)
        for partition in taken:  # whoever rewrites its files comes to an end first
            async with partition.maintenance:
                pass
        await self._flusher.forget(taken)
        await self._shelf.remove(topic, taken)
        await self._erasures.forget_topic(topic.topic_id)
        self._metrics.forget_topic(topic.name)
        await self._registry.remove(topic)
        self._shelf.catalog = self.catalog.without_topic(topic)
        self._shelf.resize_segments()
        self.changed()

    def _openings(
        self, topic: Topic, leaderships: Mapping[PartitionId, Leadership]
    ) -> Iterable[Opening]:
        config = self.config_of(topic)
        for number in range(len(topic.partitions)):
            leadership = leaderships[topic.topic_id, number]
            yield Opening(topic, number, config, leadership)

    async def _lead(self, openings: Sequence[Opening], *, reason: str) -> None:
        """Take the lead of what could be opened, in a new epoch each."""
        opened = {
            (one.topic.topic_id, one.number): one.leadership
            for one in openings
            if self._shelf.get(one.topic.topic_id, one.number) is not None
        }
        await self._shelf.lead(await self._registry.elect(opened))
        self._metrics.elections.of(reason).inc(len(opened))

    async def _refresh(self) -> None:
        """After a change that failed half-way: do what the store says (R16)."""
        if not self._stale:
            return
        catalog, leaderships = await self._registry.load()
        self._shelf.catalog = catalog
        for topic in list(catalog.by_name.values()):
            if topic.state == "deleting":
                await self._remove(topic)
                continue
            unopened = [
                one
                for one in self._openings(topic, leaderships)
                if self._shelf.get(topic.topic_id, one.number) is None
            ]
            # What of them is durable is unknown: a sync may have failed for want of room (R21).
            await self._shelf.open(unopened, clean=False, suspect=True)
            await self._lead(
                [one for one in self._openings(topic, leaderships) if not self._led(one)],
                reason="restored",
            )
            self._shelf.reconfigure(topic, self.config_of(topic))
        self._stale = False
        self.changed()  # a topic may be there, or gone, of which nobody was told

    def _led(self, opening: Opening) -> bool:
        partition = self._shelf.get(opening.topic.topic_id, opening.number)
        return partition is None or partition.leadership.leader_epoch > 0

    @asynccontextmanager
    async def _change(self) -> AsyncGenerator[None]:
        """One change at a time. A sync that fails in it ends the broker (R21): the answer to one
        client, which is T093, is not enough, and the next change does not begin."""
        async with self._changing:
            if self._flusher.broken is not None:
                raise self._flusher.broken
            try:
                yield
            except BrokerError as error:
                self._flusher.broke(error)
                raise

    @contextmanager
    def _stale_unless_done(self) -> Generator[None, None, None]:
        """A change that does not come to its end leaves the catalog to be read again."""
        self._stale = True
        yield
        self._stale = False


def _replicas_text(topic: Topic) -> str:
    return "auto" if topic.replicas is None else str(topic.replicas)
