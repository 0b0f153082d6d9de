"""Which brokers hold the copies of a partition, and who of them shall lead (pure).

A partition's *target* is a list of brokers, the preferred leader first. Everything here makes
targets of targets; how copies get there is ``reassignment.py``.

- Copies of one partition are on different brokers, and on different racks as far as there are
  enough; a broker without a rack is a rack of its own.
- Leaders first, then copies are spread: within one topic, then over the cluster. Ties go by id, so
  equal inputs give equal plans.
- A plan that changes targets moves what it must and nothing else.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tailrace.broker.catalog import PartitionRecord, Topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.config_check import REPLICAS_AUTO

Target = tuple[str, ...]  # broker ids, the preferred leader first
MinIsr = Callable[[Topic], int | None]  # as configured; None: auto
SAFE_COPIES = 2  # of which one may be lost


@dataclass(slots=True)
class Load:
    """How many partitions brokers are to lead and to hold."""

    leaders: Counter[str] = field(default_factory=Counter[str])
    copies: Counter[str] = field(default_factory=Counter[str])

    def add(self, target: Target, sign: int = 1) -> None:
        for broker_id in target[:1]:
            self.leaders[broker_id] += sign
        for broker_id in target:
            self.copies[broker_id] += sign

    @classmethod
    def of(cls, targets: Iterable[Target]) -> "Load":
        load = cls()
        for target in targets:
            load.add(target)
        return load


class Spreader:
    """Hands out brokers, the least loaded first."""

    def __init__(self, racks: Mapping[str, str | None], cluster: Load) -> None:
        """``racks``: of every broker that may be given partitions."""
        self._racks = racks
        self._cluster = cluster
        self.topic = Load()

    def rack(self, broker_id: str) -> object:
        rack = self._racks.get(broker_id)
        return (broker_id,) if rack is None else rack

    @property
    def brokers(self) -> int:
        return len(self._racks)

    def take(self, target: Target) -> None:
        """One more partition of the topic has this target."""
        self.topic.add(target)
        self._cluster.add(target)

    def give_up(self, target: Target) -> None:
        """It has not, after all."""
        self.topic.add(target, -1)
        self._cluster.add(target, -1)

    def leader(self) -> str:
        """The broker for the next leader."""
        topic, cluster = self.topic, self._cluster
        return min(
            self._racks,
            key=lambda one: (
                *(topic.leaders[one], topic.copies[one]),
                *(cluster.leaders[one], cluster.copies[one], one),
            ),
        )

    def another(self, target: Target) -> str | None:
        """The broker for one more copy beside these; None if there is none left."""
        used = Counter(self.rack(one) for one in target)
        topic, cluster = self.topic, self._cluster
        return min(
            (one for one in self._racks if one not in target),
            key=lambda one: (used[self.rack(one)], topic.copies[one], cluster.copies[one], one),
            default=None,
        )

    def target(self, copies: int) -> Target:
        """For one more partition with so many copies, or as many as there are brokers."""
        target: Target = (self.leader(),)
        while len(target) < copies and (one := self.another(target)) is not None:
            target = (*target, one)
        self.take(target)
        return target


def takers(view: ClusterView) -> list[str]:
    """Brokers that may be given partitions, by id."""
    return sorted(filter(view.may_lead, view.brokers))


def racks(view: ClusterView) -> dict[str, str | None]:
    """Those, with their racks."""
    return {one: view.brokers[one].rack for one in takers(view)}


def place(view: ClusterView, partitions: int, copies: int) -> list[Target]:
    """Targets for a new topic. At least one broker must be there to take them."""
    return spread(racks(view), load(view), partitions, copies)


def spread(
    racks: Mapping[str, str | None], cluster: Load, partitions: int, copies: int
) -> list[Target]:
    """Targets for so many partitions, of a cluster that holds ``cluster`` already."""
    spreader = Spreader(racks, Load(cluster.leaders.copy(), cluster.copies.copy()))
    return [spreader.target(copies) for _ in range(partitions)]


def load(view: ClusterView) -> Load:
    """What all topics want of their brokers."""
    return Load.of(one.replicas for topic in _topics(view) for one in topic.partitions)


# ── plans ────────────────────────────────────────────────────────────────────────────────────


def drained(view: ClusterView, min_isr: MinIsr) -> list[Topic]:
    """Topics with other targets, without the brokers an operator wants to be rid of.

    Another broker takes their place in the list. Where there is none, a topic that asked for
    "auto" has a copy less, but never fewer than the ``min_isr`` it was given, as it could not be
    written to any more, and never one where it had two: the next disk that fails would be the end
    of it. The others stay as they are, see ``held_back``.
    """

    def plan(
        topic: Topic, record: PartitionRecord, drains: Collection[str], spreader: Spreader
    ) -> Target:
        least = len(record.replicas)
        if topic.replicas is None:
            least = min_isr(topic) or min(SAFE_COPIES, least)
        return _without(record, drains, spreader, least)

    return _replanned(view, plan) if view.drains else []


def raised(view: ClusterView) -> list[Topic]:
    """Topics that asked for "auto" and have fewer copies than there could be."""
    return _replanned(view, _raised)


def held_back(view: ClusterView) -> list[tuple[str, int]]:
    """Partitions that stay on a broker to be drained, for want of brokers: topic, partition."""
    return [
        (topic.name, number)
        for topic in _topics(view)
        for number, one in enumerate(topic.partitions)
        if not view.drains.isdisjoint(one.replicas)
    ]


def retargeted(topic: Topic, targets: Mapping[int, Sequence[str]]) -> Topic:
    """The topic with other targets for some partitions."""
    return replace(
        topic,
        partitions=tuple(
            replace(one, replicas=tuple(targets.get(number, one.replicas)))
            for number, one in enumerate(topic.partitions)
        ),
    )


Plan = Callable[[Topic, PartitionRecord, Collection[str], Spreader], Target]


def _replanned(view: ClusterView, plan: Plan) -> list[Topic]:
    """Topics of which ``plan`` makes others; it sees what it did to those before."""
    cluster, known = load(view), racks(view)
    found: list[Topic] = []
    for topic in _topics(view):
        spreader = Spreader(known, cluster)
        spreader.topic = Load.of(one.replicas for one in topic.partitions)
        targets: dict[int, Target] = {}
        for number, record in enumerate(topic.partitions):
            target = plan(topic, record, view.drains, spreader)
            if target != record.replicas:
                spreader.give_up(record.replicas)
                spreader.take(target)
                targets[number] = target
        if targets:
            found.append(retargeted(topic, targets))
    return found


def _without(
    record: PartitionRecord, drains: Collection[str], spreader: Spreader, least: int
) -> Target:
    """The copies without those on ``drains``, but not fewer than ``least``."""
    target = list(record.replicas)
    for leaving in [one for one in target if one in drains]:
        taker = spreader.another(tuple(one for one in target if one not in drains))
        if taker is not None:
            target[target.index(leaving)] = taker
        elif len(target) > least:
            target.remove(leaving)
    return tuple(target)


def _raised(
    topic: Topic, record: PartitionRecord, drains: Collection[str], spreader: Spreader
) -> Target:
    target = record.replicas
    wanted = min(REPLICAS_AUTO, spreader.brokers) if topic.replicas is None else 0
    while len(target) < wanted and (one := spreader.another(target)) is not None:
        target = (*target, one)
    return target


def _topics(view: ClusterView) -> list[Topic]:
    """By name, so that plans do not depend on the order in which topics were read."""
    live = (one for one in view.catalog.by_id.values() if one.state == "live")
    return sorted(live, key=lambda one: one.name)
