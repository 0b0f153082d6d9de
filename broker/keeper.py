"""This broker does what a view says: opens, leads, follows, closes and removes partitions.

One view after another (``Views`` sees to that), each compared with what is there: whatever fails
half-way is done by the next one. In every pass who leads comes first, then what takes time.

- An epoch in which this broker is to lead and that stands in its log was begun by an earlier
  process of it, and is never taken up again: another one is asked for (S4, S5).
- A copy the cluster counts on and that is not usable gives up its place in ISR and ELR while there
  are others (R7); a directory that is missing is then made anew, and filled. The last one stays:
  its partition is offline, and tells why (S3). Missing is what an earlier process may have made.

Deliberately not here: who shall lead (``controller.py``, ``election.py``), what leading and
following mean (``partition.py``), how copies are taken away (``remover.py``).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import trio

from tailrace.broker import election, topic_config
from tailrace.broker.catalog import Catalog, Leadership
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.config import Config, TopicConfig
from tailrace.broker.erasures import Erasures
from tailrace.broker.flusher import Flusher
from tailrace.broker.metrics import Metrics
from tailrace.broker.partition import Partition
from tailrace.broker.registry import Registry
from tailrace.broker.remover import Remover
from tailrace.broker.shelf import Opening, Shelf
from tailrace.protocol.errors import PartitionOffline

log = logging.getLogger("tailrace.broker.keeper")

STEP = 100  # partitions looked at, each with a question to the disk, before others have a turn


class Keeper:
    def __init__(
        self,
        config: Config,
        registry: Registry,
        shelf: Shelf,
        flusher: Flusher,
        erasures: Erasures,
        metrics: Metrics,
    ) -> None:
        self.answered: Callable[[], None] = lambda: None  # who waited for a lead that is gone
        self.changed: Callable[[], None] = lambda: None  # topics are others, or have other settings
        self.again: Callable[[], None] = lambda: None  # not all could be done: follow again
        self.stepped_back: Callable[[], None] = lambda: None  # others' leads are not taken here
        self.stopping = False  # no lead is taken any more
        self._broker_id = config.broker.id
        self._registry = registry
        self._shelf = shelf
        self._flusher = flusher
        self._remover = Remover(config.broker.id, registry, shelf, flusher)
        self._erasures = erasures
        self._metrics = metrics
        self._config_of = partial(topic_config.of_topic, config)
        self._tried: set[PartitionId] = set()  # opened once, perhaps in vain
        self._opened: set[PartitionId] = set()  # these were
        self._again: set[PartitionId] = set()  # broken, and to be opened with the next view
        self._at_start: frozenset[bytes] = frozenset()  # topics: others no earlier process opened
        self._reason = "start"  # of the leads that are taken
        self._followed = Catalog()  # that of the last view that was followed to its end

    # ── start ────────────────────────────────────────────────────────────────────────────────

    async def start(self, view: ClusterView, *, clean: bool, suspect: bool) -> None:
        """Open what is there; nothing is led yet. T093 T100."""
        self._shelf.catalog = self._followed = view.catalog
        self._at_start = frozenset(view.catalog.by_id)
        mine = await self._give_up_missing(self._mine(view))
        await self._open(view, mine, clean=clean, suspect=suspect)
        for count, where in enumerate(self._shelf.strangers()):
            topic = view.catalog.by_id.get(where[0])
            known = view.leaderships.get(where)
            if topic is not None and known is not None and where not in mine:
                self._remover.discard(where, topic.name)
            elif topic is None and where[0] not in view.deletions:
                self._shelf.report_stranger(where)
            if count % STEP == 0:
                await trio.lowlevel.checkpoint()

    # ── a view ───────────────────────────────────────────────────────────────────────────────

    async def follow(self, view: ClusterView, *, whole: bool) -> None:
        """Do what a view says, newer than all before. ``whole``: it comes of a whole reading.

        T093 if a sync fails, T100 if the store is away. Where the store has moved on the next view
        does the rest.
        """
        mine: Mapping[PartitionId, Leadership] = self._mine(view)
        before = self._followed
        self._take_settings(before, view.catalog)  # whoever begins to lead goes by them
        self._step_back(mine)
        self._remover.take_off(view, mine, before)
        self.stepped_back()
        self.answered()
        mine = await self._give_up_damaged(mine, view)
        await self._lead(mine)
        self._shelf.catalog = view.catalog
        await self._forget_topics(before, view)
        mine = await self._give_up_missing(mine)
        await self._open(view, mine, clean=False, suspect=False)
        mine = await self._give_up_unusable(mine, view)
        mine = await self._tell_held(mine)
        self._step_back(mine)
        await self._lead(mine)
        await self._remove(view, mine, whole=whole)
        self._reason = "elected"
        self._followed = view.catalog
        if before.by_id.keys() != view.catalog.by_id.keys():
            self._shelf.resize_segments()
        if before is not view.catalog:
            self.changed()

    async def _remove(
        self, view: ClusterView, mine: Collection[PartitionId], *, whole: bool
    ) -> None:
        removed, all_of_it = await self._remover.remove(view, mine)
        self._tried.difference_update(removed)
        self._opened.difference_update(removed)
        if whole:
            await self._remover.remove_orphans(view)
        if not all_of_it:
            self.again()

    @property
    def stuck(self) -> Mapping[bytes, PartitionOffline]:
        """Deleted topics whose copies here could not be removed, by id."""
        return self._remover.stuck

    def try_again(self, broken: Iterable[PartitionId]) -> None:
        """Let the next view open what could not be opened."""
        self._again |= set(broken)

    def _mine(self, view: ClusterView) -> dict[PartitionId, Leadership]:
        """Partitions of which this broker is to hold a copy."""
        me = self._broker_id
        return {where: one for where, one in view.leaderships.items() if me in one.replicas}

    # ── leading and following ────────────────────────────────────────────────────────────────

    def _step_back(self, mine: Mapping[PartitionId, Leadership]) -> None:
        """Follow where somebody else leads, and take note of news where this broker does."""
        for where, one in mine.items():
            partition = self._shelf.get(*where)
            if partition is None or not _is_news(partition, one):
                continue
            if one.leader != self._broker_id:
                partition.follow(one)
                self._shelf.forget_broken(where)
            elif _leads(partition, one):
                partition.learn(one)

    async def _lead(self, mine: Mapping[PartitionId, Leadership]) -> None:
        """Take the lead where it is this broker's, in an epoch that is in no log yet."""
        if self.stopping:
            return
        wanted = dict(self._to_lead(mine))
        again = {w: one for w, one in wanted.items() if not self._is_fresh(w, one)}
        fresh = {w: one for w, one in wanted.items() if w not in again}
        created = sum(1 for one in again.values() if one.leader_epoch == 0)
        elected = await self._registry.elect(again)
        if created:
            self._metrics.elections.of("created").inc(created)
        if len(wanted) > created:
            self._metrics.elections.of(self._reason).inc(len(wanted) - created)
        await self._shelf.lead(fresh | elected)

    def _to_lead(
        self, mine: Mapping[PartitionId, Leadership]
    ) -> Iterator[tuple[PartitionId, Leadership]]:
        for where, one in mine.items():
            partition = self._shelf.get(*where)
            if (
                partition is not None
                and partition.serving
                and one.leader == self._broker_id
                and self._broker_id in one.isr
                and _is_news(partition, one)
                and not _leads(partition, one)
            ):
                yield where, one

    def _is_fresh(self, where: PartitionId, one: Leadership) -> bool:
        """Whether the epoch was never begun here. Nobody leads in epoch 0."""
        partition = self._shelf.get(*where)
        assert partition is not None, "it is on the shelf"
        epochs = partition.log.epochs
        return one.leader_epoch > max(0, epochs[-1].epoch if epochs else 0)

    # ── opening ──────────────────────────────────────────────────────────────────────────────

    async def _open(
        self,
        view: ClusterView,
        mine: Mapping[PartitionId, Leadership],
        *,
        clean: bool,
        suspect: bool,
    ) -> None:
        held = self._shelf.held() - self._again
        held.update((one.topic_id, one.number) for one in self._shelf.leaving)
        self._again.clear()
        wanted = [where for where in mine if where not in held]
        first = [where for where in wanted if where not in self._tried]
        again = [where for where in wanted if where in self._tried]
        self._tried |= set(wanted)
        for some, doubted in ((first, suspect), (again, True)):
            if some:  # what of those tried before is durable is unknown (R21)
                openings = list(self._openings(view.catalog, mine, some))
                await self._shelf.open(openings, clean=clean and not doubted, suspect=doubted)
        self._opened |= {where for where in wanted if self._shelf.get(*where) is not None}

    def _openings(
        self,
        catalog: Catalog,
        mine: Mapping[PartitionId, Leadership],
        some: Iterable[PartitionId],
    ) -> Iterator[Opening]:
        configs: dict[bytes, TopicConfig] = {}
        for topic_id, number in some:
            topic, one = catalog.by_id[topic_id], mine[topic_id, number]
            if topic_id not in configs:
                configs[topic_id] = self._config_of(topic)
            counted_on = self._broker_id in election.candidates(one) | election.doubted(one)
            counted_on &= self._may_have_opened((topic_id, number), one)
            yield Opening(topic, number, configs[topic_id], counted_on)

    def _may_have_opened(self, where: PartitionId, one: Leadership) -> bool:
        """Whether this broker may have had a log of it before: not where nobody has led yet, nor,
        if this process did not, of a topic that came to be since it began."""
        return one.leader_epoch > 0 and (where[0] in self._at_start or where in self._opened)

    # ── giving up ────────────────────────────────────────────────────────────────────────────

    async def _give_up_missing(
        self, mine: Mapping[PartitionId, Leadership]
    ) -> Mapping[PartitionId, Leadership]:
        """Where a directory is missing that others can fill: let it be made anew."""
        held = self._shelf.held()

        def missing(where: PartitionId) -> bool:
            one = mine[where]
            if where in held or not self._may_have_opened(where, one):
                return False
            return self._without_me(where, one) is not None and self._shelf.missing(where)

        return await self._give_up(mine, missing)

    async def _give_up_damaged(
        self, mine: Mapping[PartitionId, Leadership], view: ClusterView
    ) -> Mapping[PartitionId, Leadership]:
        """What is damaged and not led here is left to others that are there, before it could be
        led: it is filled from them (R25)."""

        def damaged(where: PartitionId) -> bool:
            partition = self._shelf.get(*where)
            if partition is None or partition.role == "leader" or not partition.log.quarantined:
                return False
            others = election.candidates(mine[where]) - {self._broker_id}
            return any(map(view.alive, others))

        return await self._give_up(mine, damaged)

    async def _give_up_unusable(
        self, mine: Mapping[PartitionId, Leadership], view: ClusterView
    ) -> Mapping[PartitionId, Leadership]:
        """What could not be opened, or failed, is left to others. For want of room only to those
        that are there: who is gone may never have had a log of it, and this one is whole."""

        def unusable(where: PartitionId) -> bool:
            if not election.candidates(mine[where]):
                return False  # it may hold more than all who are left (R7)
            if where in self._shelf.wanting:
                others = election.candidates(mine[where]) - {self._broker_id}
                if not any(map(view.alive, others)):
                    return False
            return self._shelf.unusable(where)

        return await self._give_up(mine, unusable)

    async def _give_up(
        self, mine: Mapping[PartitionId, Leadership], unusable: Callable[[PartitionId], bool]
    ) -> Mapping[PartitionId, Leadership]:
        """Leave ISR and ELR of what is of no use here, if others are there; only the ISR where
        there is just no room. The leaderships after that; those that somebody changed meanwhile
        are left out."""
        given_up: dict[PartitionId, Leadership] = {}
        for count, (where, one) in enumerate(mine.items()):
            if count % STEP == STEP - 1:
                await trio.lowlevel.checkpoint()
            if unusable(where) and (left := self._without_me(where, one)) is not None:
                given_up[where] = left
        if not given_up:
            return mine
        for topic_id, number in given_up:
            name = self._shelf.catalog.by_id[topic_id].name
            log.warning(
                "%s[%d]: the copy of broker %s is of no use: it leaves the in-sync set",
                *(name, number, self._broker_id),
                extra={
                    **{"event": "partition.given_up", "code": None},
                    **{"topic": name, "partition": number},
                },
            )
        stored = await self._registry.change(given_up)
        kept = {where: one for where, one in mine.items() if where not in given_up}
        return kept | stored

    def _without_me(self, where: PartitionId, one: Leadership) -> Leadership | None:
        if where not in self._shelf.wanting:
            return election.given_up(one, self._broker_id)
        topic = self._shelf.catalog.by_id[where[0]]
        need = election.min_isr(self._config_of(topic).min_isr, topic.copies(where[1]))
        return election.stepped_aside(one, self._broker_id, need)

    async def _tell_held(
        self, mine: Mapping[PartitionId, Leadership]
    ) -> Mapping[PartitionId, Leadership]:
        """Say how much the copies hold that are doubted: whoever has most may lead (R7)."""
        told: dict[PartitionId, Leadership] = {}
        for where, one in mine.items():
            partition = self._shelf.get(*where) if one.doubted else None
            if partition is not None and partition.serving:
                epochs = partition.log.epochs
                whole = not partition.log.quarantined
                held = (epochs[-1].epoch if epochs else 0, partition.log.end, whole)
                if (said := election.told(one, self._broker_id, held)) is not None:
                    told[where] = said
        if not told:
            return mine
        kept = {where: one for where, one in mine.items() if where not in told}
        return kept | await self._registry.change(told)

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    async def _forget_topics(self, before: Catalog, view: ClusterView) -> None:
        """Forget what else was known of topics that are gone. T100."""
        for topic_id in sorted(before.by_id.keys() - view.catalog.by_id.keys()):
            topic = before.by_id[topic_id]
            await self._erasures.forget_topic(topic_id)
            if view.catalog.find(topic.name) is None:
                self._metrics.forget_topic(topic.name)

    def _take_settings(self, before: Catalog, now: Catalog) -> None:
        """Let new settings of topics hold."""
        for topic in now.by_id.values():
            known = before.by_id.get(topic.topic_id)
            if known is not None and known.revision == topic.revision:
                continue
            self._shelf.reconfigure(topic, self._config_of(topic))
            for partition in self._shelf.of(topic):
                self._flusher.written(partition)  # "fsync" may hold from now on


def _is_news(partition: Partition, one: Leadership) -> bool:
    """Whether the view knows more than the partition, which may have changed it itself."""
    return one.revision > partition.leadership.revision


def _leads(partition: Partition, one: Leadership) -> bool:
    return partition.role == "leader" and partition.leadership.leader_epoch == one.leader_epoch
