"""Topics as people change them, at any broker: the metadata store first, then every broker by it.

- One change at a time here; that other brokers change the same is settled by compare-and-swap.
- Creating: one transaction decides who has the name and who leads. Each broker opens what is its
  own (``keeper.py``); the leaders begin epoch 1 when they have a log, and then it is answered. A
  crash between leaves a topic that the next start, or the next view, opens.
- Deleting: a ``Deletion`` takes the topic's place in the store, and that alone entitles brokers to
  remove directories (R26). The name is free at once; a topic made under it has another id (S30).
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
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
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.config import Config, LimitsConfig, TopicConfig
from tailrace.broker.config_check import REPLICAS_AUTO
from tailrace.broker.flusher import Flusher
from tailrace.broker.keeper import Keeper
from tailrace.broker.placement import place, takers
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.shelf import Shelf
from tailrace.broker.views import Views
from tailrace.broker.world import World
from tailrace.protocol import texts, texts_config
from tailrace.protocol.errors import BrokerError, MetadataUnavailable

log = logging.getLogger("tailrace.broker.topics")

CONFLICTS_MAX = 3
BEGIN_S = 10  # for the leaders of a new topic to begin
TOLD_S = 1.0  # for whoever changes a topic to hear of a failed sync, before the broker ends


class Topics:
    def __init__(
        self,
        world: World,
        config: Config,
        registry: Registry,
        views: Views,
        keeper: Keeper,
        shelf: Shelf,
        flusher: Flusher,
    ) -> None:
        self._config = config
        self._registry = registry
        self._views = views
        self._keeper = keeper
        self._shelf = shelf
        self._flusher = flusher
        self._ids = world.rng("topic ids")
        self._changing = trio.Lock()
        self._configs: dict[bytes, tuple[Topic, TopicConfig]] = {}  # by topic id, worked out

    @property
    def catalog(self) -> Catalog:
        return self._shelf.catalog

    def config_of(self, topic: Topic) -> TopicConfig:
        """What holds for a topic now."""
        kept = self._configs.get(topic.topic_id)
        if kept is None or kept[0] is not topic:
            if len(self._configs) > 2 * len(self.catalog.by_id):
                self._configs.clear()  # most are of topics that are gone
            kept = self._configs[topic.topic_id] = topic, topic_config.of_topic(self._config, topic)
        return kept[1]

    def find(self, name: str) -> Topic:
        """The topic, or T010 with similar names."""
        topic = self.catalog.find(name)
        if topic is None:
            raise texts.topic_not_found(name, similar=self.catalog.similar(name))
        return topic

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
            if self._config.cluster.metadata != "embedded":
                await self._views.now()  # others may have deleted it, and may have come or gone
            for _ in range(CONFLICTS_MAX):
                existing = self.catalog.find(name)
                if existing is not None:
                    self._check_same(existing, partitions, replicas, overrides, exist_ok=exist_ok)
                    return existing, False
                self.catalog.check_free(name)
                topic = self._plan(name, partitions, replicas, overrides)
                self._check_room(topic)
                with suppress(Conflict):
                    return await self._create(topic), True
                await self._views.now()
        raise texts.topic_exists(name)

    async def internal(self, name: str, partitions: int) -> Topic:
        """A topic of the broker's own, made at its first use. T031 T033 T093 T100.

        Its settings are its own, whatever ``[topic]`` says, and it is beyond the limits.
        """
        if (topic := self.catalog.find(name)) is not None:
            return topic
        overrides = topic_config.internal(name)
        async with self._change():
            for _ in range(CONFLICTS_MAX):
                if (topic := self.catalog.find(name)) is not None:
                    return topic
                topic = self._new(name, partitions, None, overrides)
                self._check_room(topic)
                with suppress(Conflict):
                    return await self._create(topic)
                await self._views.now()
        raise texts.topic_exists(name)

    async def delete(self, name: str) -> bytes:
        """Delete a topic and its records; its id. T010 T013 T033 T093 T100."""
        check_not_internal(name)
        async with self._change():
            topic = await self._retry(name, self._delete)
        log.info(
            "deleted topic %s", name, extra={"event": "topic.deleted", "code": None, "topic": name}
        )
        return topic.topic_id

    async def alter(self, name: str, changes: Mapping[str, str | None]) -> Topic:
        """Change a topic's settings, all of them or none. T010 T013 T080-T083 T086 T100."""
        check_not_internal(name)

        async def change(topic: Topic) -> None:
            overrides = topic_config.apply_changes(name, topic.config, changes)
            changed = replace(topic, config=overrides)
            self._check(changed)
            await self._registry.update(changed)

        async with self._change():
            await self._retry(name, change)
            await self._views.now()
            return self.find(name)

    async def open_wanting(self) -> None:
        """Open what could not be opened for want of room, as if a sync of it had failed (R21)."""
        async with self._change():
            self._keeper.try_again(self._shelf.wanting)
            await self._views.follow()

    async def settled(self) -> None:
        """Wait until whoever changes a topic just now knows how that ended; a second at most."""
        with trio.move_on_after(TOLD_S):
            async with self._changing:
                pass

    # ── how ──────────────────────────────────────────────────────────────────────────────────

    async def _retry(self, name: str, change: Callable[[Topic], Awaitable[None]]) -> Topic:
        """Change a topic as it is now, again if somebody else was faster. T010, T100."""
        for attempt in range(CONFLICTS_MAX):
            topic = self.catalog.find(name)
            if topic is None or attempt:
                await self._views.now()  # another broker may have made it, or changed it
                topic = self.find(name)
            with suppress(Conflict):
                await change(topic)
                return topic
        raise texts.metadata_unavailable(name, reason="others changed the topic at the same time")

    def _plan(
        self, name: str, partitions: int | None, replicas: int | None, overrides: Mapping[str, str]
    ) -> Topic:
        """A new topic that would be valid, or ConfigError T080-T083."""
        brokers = len(takers(self._views.view))
        effective = topic_config.checked(
            *(name, self._config, overrides),
            partitions=partitions,
            replicas=replicas,
            brokers=brokers,
        )
        limits = self._config.limits
        _check_limit("limits.partitions_per_topic", effective.partitions, limits, name)
        topic = self._new(name, effective.partitions, effective.replicas, overrides)
        most = _most_on_one(self._views.view, topic)
        _check_limit("limits.partitions_per_broker", most, limits, name)
        return topic

    def _new(
        self, name: str, partitions: int, replicas: int | None, overrides: Mapping[str, str]
    ) -> Topic:
        topic_id = UUID(bytes=self._ids.randbytes(16), version=4).bytes
        view = self._views.view
        copies = replicas or min(REPLICAS_AUTO, len(takers(view)))
        if not takers(view):
            raise texts_config.settings_contradict(
                "replicas",
                origin=f"topic '{name}'",
                problem="no broker takes new partitions: all are stopping or drained",
                hint="Look: tailrace cluster brokers",
            )
        return new_topic(
            name,
            topic_id,
            placement=place(view, partitions, copies),
            replicas=replicas,
            config=overrides,
        )

    def _check(self, topic: Topic) -> None:
        """Raise ConfigError T081-T083 if a topic's settings contradict each other."""
        topic_config.checked(
            *(topic.name, self._config, topic.config),
            partitions=len(topic.partitions),
            replicas=topic.copies(0),
        )

    def _check_room(self, topic: Topic) -> None:
        """Raise T031 if there is no room here even for its files."""
        here = sum(self._config.broker.id in one.replicas for one in topic.partitions)
        if here:
            self._shelf.check_room_for_topic(topic.name, here)

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
        """Store it, and wait until its leaders have begun. ``Conflict`` if the name is taken."""
        fresh = {
            (topic.topic_id, number): Leadership(
                one.replicas[0], 0, isr=one.replicas, replicas=one.replicas
            )
            for number, one in enumerate(topic.partitions)
        }
        try:
            topic = await self._registry.create(topic, fresh)
            await self._views.now()
        except Conflict:
            view = await self._views.now()
            if topic.topic_id not in view.catalog.by_id:
                raise
            # The reply was lost, and meanwhile somebody changed it already (R16).
            topic = view.catalog.by_id[topic.topic_id]
        broken = self._shelf.broken(topic)
        if broken is not None:  # no room for it, say: then there shall be no such topic
            await self._take_back(topic)
            raise broken
        if not await self._views.wait_for(partial(_begun, topic), BEGIN_S):
            log.warning(
                "topic %s was created, but not all of its partitions have a leader after %d s",
                *(topic.name, BEGIN_S),
                extra={"event": "topic.not_led", "code": None, "topic": topic.name},
            )
        log.info(
            "created topic %s with %d partitions",
            *(topic.name, len(topic.partitions)),
            extra={"event": "topic.created", "code": None, "topic": topic.name},
        )
        return topic

    async def _take_back(self, topic: Topic) -> None:
        """A topic that could not come to be. T100: then it may be opened with the next view."""
        try:
            await self._delete(topic)
        except MetadataUnavailable:
            self._keeper.try_again((topic.topic_id, n) for n in range(len(topic.partitions)))
            raise

    async def _delete(self, topic: Topic) -> None:
        """Delete it, and the copies that are here. ``Conflict`` if it is no more as it was."""
        view = self._views.view
        holders = {
            *(broker for one in topic.partitions for broker in one.replicas),
            *(
                broker
                for number in range(len(topic.partitions))
                if (one := view.leaderships.get((topic.topic_id, number))) is not None
                for broker in one.replicas
            ),
        }
        try:
            await self._registry.retire(topic, sorted(holders))
        except Conflict:
            if topic.topic_id in (await self._views.now()).catalog.by_id:
                raise
            # It is gone: by this very change, whose reply was lost, or by somebody else's.
        await self._views.now()
        if (stuck := self._keeper.stuck.get(topic.topic_id)) is not None:
            raise stuck

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


def _begun(topic: Topic, view: ClusterView) -> bool:
    """Whether every partition of it is led; or nobody has to wait for that, as it is gone."""
    known = (
        view.leaderships.get((topic.topic_id, number)) for number in range(len(topic.partitions))
    )
    return topic.topic_id not in view.catalog.by_id or all(
        one is not None and one.leader_epoch > 0 for one in known
    )


def _most_on_one(view: ClusterView, topic: Topic) -> int:
    """Partitions on the broker that would have the most of them, with this topic."""
    holding = Counter(broker for one in view.leaderships.values() for broker in one.replicas)
    added = Counter(broker for one in topic.partitions for broker in one.replicas)
    return max(holding[broker] + count for broker, count in added.items())


def _check_limit(key: str, wanted: int, limits: LimitsConfig, topic: str) -> None:
    """Raise T082 if a new topic would have more partitions than it may."""
    limit: int = getattr(limits, key.rpartition(".")[2])
    if wanted > limit:
        raise texts_config.settings_contradict(
            "partitions",
            origin=f"topic '{topic}'",
            problem=f"{wanted:,} partitions would exceed {key} of {limit:,}",
            hint=f"Use fewer partitions, or raise {key}.",
        )


def _replicas_text(topic: Topic) -> str:
    return "auto" if topic.replicas is None else str(topic.replicas)
