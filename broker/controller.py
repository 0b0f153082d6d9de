"""The broker that looks after leaders and copies of the whole cluster: one at a time.

Whoever stores the key ``controller``, bound to its lease, is the controller; the key's revision is
compared in every transaction, so one that was replaced without knowing changes nothing (R13).

- With each view it stores what is due (``decisions.py``), as fast as the store takes it: 100
  partitions in a transaction. If one of them was changed meanwhile, the transaction is halved,
  until it alone is left out; the next view says what to do about it.
- An unknown outcome is no outcome: everything is read again (R16).
- A broker whose lease ended is replaced at once, unless this broker's own registration is new:
  then the store was away, or everybody has just started, and the others have ``GRACE_S`` to come.
- What is not urgent waits until no broker has come or gone for ``CALM_S``: giving partitions back
  to preferred leaders, a few a second, and more copies for topics that asked for "auto".
  A broker is given none within ``SETTLE_S`` of the last copy that was in sync again.
  Brokers an operator wants to be rid of lose their copies at once, as fast as others fill them.

What operators want is in the store: targets in the topics' records, keys below ``drains/``.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

import trio

from tailrace.broker import decisions, election, placement
from tailrace.broker.bell import Bell
from tailrace.broker.catalog import Catalog, Topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.decisions import Change, decide
from tailrace.broker.members import BROKERS, CONTROLLER_KEY
from tailrace.broker.metadata import TXN_CHANGES_MAX
from tailrace.broker.metrics import Metrics
from tailrace.broker.placement import MinIsr
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.session import Session
from tailrace.broker.views import Views
from tailrace.protocol import texts, texts_cluster
from tailrace.protocol.errors import MetadataUnavailable

log = logging.getLogger("tailrace.broker.controller")

TICK_S = 1.0  # between looks, if nothing else happens
GRACE_S = 2.0
CALM_S = 10.0
SETTLE_S = 5.0  # by then the disk has what was copied, and a new epoch's first sync is short
LEADERS_MAX = 25  # different new leaders in a transaction: etcd allows 128 compares (R18)

Membership = tuple[object, ...]


class Controller:
    """Runs on every broker of a cluster; does something on one."""

    def __init__(
        self,
        broker_id: str,
        registry: Registry,
        session: Session,
        views: Views,
        metrics: Metrics,
        min_isr: MinIsr,
    ) -> None:
        self._broker_id = broker_id
        self._registry = registry
        self._session = session
        self._views = views
        self._metrics = metrics
        self._configured = min_isr
        self._min_isrs: dict[bytes, tuple[Topic, int | None]] = {}
        self._bell = Bell()
        self._broker_epoch: int = 0  # of this broker, when it last looked
        self._grace_until = 0.0  # in trio's time, as all here
        self._members: Membership = ()
        self._calm_at = 0.0
        self._balance_at = 0.0
        self._noted = ClusterView()
        self._joined_at: dict[str, float] = {}  # when a broker was last in sync again somewhere
        self._planned: tuple[int, Membership, bool] | None = None  # what targets were made of
        self._catalog = Catalog()
        self._settled: ClusterView | None = None  # nothing of it is due, nor will be with time
        self._controls = 0  # the controller epoch that was told of; 0: not the controller
        self._leaderless = 0  # as told
        views.on_view.append(self._seen)

    def _seen(self, view: ClusterView) -> None:
        self._bell.ring()

    @property
    def active(self) -> bool:
        """Whether this broker is the controller, as far as it knows."""
        return self._controls > 0

    async def run(self) -> None:
        """Look after the cluster, or be ready to, until cancelled."""
        while True:
            now = trio.current_time()
            grace_s = self._grace_until - now
            with trio.move_on_after(min(TICK_S, grace_s) if grace_s > 0 else TICK_S):
                await self._bell.wait()
            try:
                await self._look()
            except (MetadataUnavailable, Conflict) as error:
                log.debug("again: %s", error)
                self._views.refresh()
                await trio.sleep(TICK_S)

    async def _look(self) -> None:
        view, now = self._views.view, trio.current_time()
        self._note(view, now)
        if not self._session.valid():
            self._tell_controls(0)
        elif view.controller is None:
            self._tell_controls(0)
            await self._campaign(view)
        elif view.controller != self._broker_id:
            self._tell_controls(0)
        else:
            self._tell_controls(view.controller_revision)
            await self._control(view, now)

    def _note(self, view: ClusterView, now: float) -> None:
        """Since when things are as they are."""
        if self._session.epoch != self._broker_epoch:
            self._broker_epoch, self._grace_until = self._session.epoch, now + GRACE_S
        members: Membership = (
            *sorted((one.broker_id, one.epoch, one.rack) for one in view.brokers.values()),
            *(view.draining, view.drains),
        )
        if members != self._members:
            self._members, self._calm_at = members, now + CALM_S
        for who in decisions.joined(self._noted, view):
            self._joined_at[who] = now
        self._noted = view

    async def _campaign(self, view: ClusterView) -> None:
        lease = self._session.lease
        if lease is None or not view.alive(self._broker_id) or self._broker_id in view.draining:
            return
        with suppress(KeyError):  # the lease has ended: the session gets another one
            await self._registry.campaign(lease)
        self._views.refresh()

    # ── acting ───────────────────────────────────────────────────────────────────────────────

    async def _control(self, view: ClusterView, now: float) -> None:
        if view is self._settled:
            return
        spared = self._spared(view) if now < self._grace_until else frozenset[str]()
        calm = now >= self._calm_at
        rested = calm and now >= self._balance_at
        settling = frozenset(one for one, at in self._joined_at.items() if now < at + SETTLE_S)
        changes = decide(view, self._min_isr, spared=spared, settling=settling, calm=rested)
        if any(one.reason == "failover" for one in changes):
            self._calm_at = now + CALM_S
        if any(one.reason == "balance" for one in changes):
            self._balance_at = now + TICK_S
        if changes:
            self._tell(await self._store(changes, view))
        else:
            self._tell_leaderless(view)
        await self._plan(view, calm=calm)
        if rested and not changes and not spared and not settling:
            self._settled = view

    def _min_isr(self, topic: Topic) -> int | None:
        """As configured: worked out once for all partitions of a topic."""
        known = self._min_isrs.get(topic.topic_id)
        if known is None or known[0] is not topic:
            known = self._min_isrs[topic.topic_id] = (topic, self._configured(topic))
        return known[1]

    def _spared(self, view: ClusterView) -> frozenset[str]:
        named = {one for known in view.leaderships.values() for one in known.replicas}
        return frozenset(named - view.brokers.keys())

    async def _plan(self, view: ClusterView, *, calm: bool) -> None:
        """Give topics other targets, if something they depend on has changed."""
        if self._planned == (id(view.catalog), self._members, calm):
            return
        also = [(CONTROLLER_KEY, view.controller_revision)]
        for changed in self._planned_topics(view, calm=calm):
            try:
                await self._registry.update(changed, also)
            except Conflict:
                self._views.refresh()
            else:
                self._tell_target(changed)
        self._planned = (id(view.catalog), self._members, calm)
        self._catalog = view.catalog  # so that no other one has its id

    def _planned_topics(self, view: ClusterView, *, calm: bool) -> Sequence[Topic]:
        """Each topic once: what both plans want is done with the next view."""
        if drained := placement.drained(view, self._min_isr):
            return drained
        return placement.raised(view) if calm else []

    # ── storing ──────────────────────────────────────────────────────────────────────────────

    async def _store(self, changes: Sequence[Change], view: ClusterView) -> list[Change]:
        """Store them as far as the store is as the view says; those that are stored. T100."""
        stored: list[Change] = []
        for some in transactions(changes):
            stored += await self._store_some(some, view)
        if len(stored) < len(changes):
            self._views.refresh()
        return stored

    async def _store_some(self, some: Sequence[Change], view: ClusterView) -> Sequence[Change]:
        leaders = {one.new_leader for one in some if one.new_leader is not None}
        registered = [(BROKERS + one, view.brokers[one].epoch) for one in sorted(leaders)]
        also = [(CONTROLLER_KEY, view.controller_revision), *registered]
        try:
            await self._registry.alter({one.where: one.leadership for one in some}, also)
        except Conflict:
            if len(some) == 1 or await self._is_replaced(view):
                return []
            half = len(some) // 2
            first = await self._store_some(some[:half], view)
            return [*first, *await self._store_some(some[half:], view)]
        except MetadataUnavailable:  # stored all the same, perhaps (R16)
            self._tell_losses(some, view)
            raise
        self._tell_losses(some, view)
        for one in some:
            if one.new_leader is not None:
                self._metrics.elections.of(one.reason).inc()
        return some

    async def _is_replaced(self, view: ClusterView) -> bool:
        found = await self._registry.entries(CONTROLLER_KEY)
        return not any(one.revision == view.controller_revision for one in found)

    # ── telling ──────────────────────────────────────────────────────────────────────────────

    def _tell_controls(self, controls: int) -> None:
        if controls == self._controls:
            return
        if controls:
            self._planned, self._settled, self._leaderless = None, None, 0
            self._min_isrs.clear()
            log.info(
                "broker %s is the controller, in epoch %d",
                *(self._broker_id, controls),
                extra={"event": "controller.elected", "code": None, "controller_epoch": controls},
            )
        else:
            log.info(
                "broker %s is the controller no more",
                self._broker_id,
                extra={"event": "controller.replaced", "code": None},
            )
        self._controls = controls

    def _tell(self, stored: Sequence[Change]) -> None:
        for reason, count in Counter(one.reason for one in stored).items():
            log.info(
                _TOLD[reason],
                count,
                extra={"event": f"controller.{reason}", "code": None, "partitions": count},
            )

    def _tell_losses(self, some: Sequence[Change], view: ClusterView) -> None:
        """S3: everybody who held all of it restarted, and may lack what was not synced."""
        for one in some:
            if one.reason != "recovered":
                continue
            topic, partition = view.catalog.by_id[one.where[0]].name, one.where[1]
            self._metrics.data_loss_possible.inc()
            log.error(
                "%s: no broker that held it was stopped cleanly; %s has most of it and leads:"
                " acknowledged records may be lost",
                *(texts.partition_name(topic, partition), one.new_leader),
                extra={
                    **{"event": "data-loss-possible", "code": None, "topic": topic},
                    **{"partition": partition, "leader": one.new_leader},
                    "alike": f"{topic}:{partition}",
                },
            )

    def _tell_leaderless(self, view: ClusterView) -> None:
        """Partitions that wait for a broker: told when their number changes."""
        found = decisions.leaderless(view)
        if len(found) == self._leaderless:
            return
        self._leaderless = len(found)
        if not found:
            log.info(
                "every partition has a leader",
                extra={"event": "controller.all_led", "code": None},
            )
            return
        topic_id, number = found[0]
        one = view.leaderships[found[0]]
        log.error(
            "%d partitions have no leader, %s[%d] among them: no broker is there that holds all"
            " that was acknowledged; it waits for %s",
            *(len(found), view.catalog.by_id[topic_id].name, number),
            texts_cluster.waits_for(election.waited_for(one), doubted=not election.candidates(one)),
            extra={"event": "controller.leaderless", "code": None, "partitions": len(found)},
        )

    def _tell_target(self, topic: Topic) -> None:
        log.info(
            "topic %s gets copies on other brokers",
            topic.name,
            extra={"event": "controller.target_changed", "code": None, "topic": topic.name},
        )


_TOLD = {
    "failover": "%d partitions were led by brokers that are gone: others lead, or nobody can",
    "shrink": "%d partitions have fewer replicas in sync: brokers are gone",
    "recovered": "%d partitions are led by whoever has most: none was stopped cleanly that had all",
    "reassign": "%d partitions took a step towards the brokers they are wanted on",
    "balance": "%d partitions were given back to their preferred leaders",
}


def transactions(changes: Sequence[Change]) -> Iterator[Sequence[Change]]:
    """As few as hold them, in their order."""
    some: list[Change] = []
    leaders: set[str | None] = set()
    for one in changes:
        more = leaders | {one.new_leader}
        if len(some) == TXN_CHANGES_MAX or len(more) > LEADERS_MAX:
            yield some
            some, more = [], {one.new_leader}
        some.append(one)
        leaders = more
    if some:
        yield some
