"""What operators ask of copies, made into changes of what the store says (pure).

Everything here is a function of a view, and what it gives is stored by compare-and-swap on the
revisions in that view: one that is old decides nothing wrong. Copies are moved by the controller,
which sees what is wanted of the brokers in a topic (*targets*); here only targets are chosen.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tailrace.broker import placement
from tailrace.broker.catalog import Topic
from tailrace.broker.cluster_status import leadership
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.placement import MinIsr, Target
from tailrace.protocol import texts, texts_cluster, texts_config
from tailrace.protocol.messages import PartitionRange, ReassignRequest, ReplicaMove


@dataclass(frozen=True, slots=True)
class Chosen:
    """One partition that somebody named."""

    topic: Topic
    number: int

    @property
    def where(self) -> PartitionId:
        return self.topic.topic_id, self.number

    @property
    def target(self) -> Target:
        return self.topic.partitions[self.number].replicas


def chosen(view: ClusterView, named: Sequence[PartitionRange]) -> list[Chosen]:
    """The partitions named, each once, in that order. T010 T011."""
    found: dict[PartitionId, Chosen] = {}
    for one in named:
        topic = view.catalog.find(one.topic)
        if topic is None:
            similar = view.catalog.similar(one.topic)
            raise texts.topic_not_found(one.topic, similar=similar)
        numbers: Sequence[int] = range(len(topic.partitions))
        if one.partition is not None:
            if one.partition not in numbers:
                raise texts.partition_not_found(
                    topic.name, one.partition, partitions=len(topic.partitions)
                )
            numbers = (one.partition,)
        for number in numbers:
            found.setdefault((topic.topic_id, number), Chosen(topic, number))
    return list(found.values())


def everything(view: ClusterView) -> Iterator[Chosen]:
    """Every partition there is, by name of its topic."""
    for name in view.catalog.names(internal=True):
        topic = view.catalog.by_name[name]
        for number in range(len(topic.partitions)):
            yield Chosen(topic, number)


# ── copies ───────────────────────────────────────────────────────────────────────────────────


def replica_move(view: ClusterView, one: Chosen, target: Target) -> ReplicaMove:
    """From what holds a copy now to ``target``."""
    current = leadership(view, one.where)
    filling = tuple(broker for broker in target if broker not in current.isr)
    before = current.replicas or one.target
    down = tuple(broker for broker in filling if not view.alive(broker))
    return ReplicaMove(one.topic.name, one.number, before, target, filling, down)


def moves(view: ClusterView) -> list[ReplicaMove]:
    """What is on its way: copies that are wanted but lack something, or are wanted no more.

    Those of brokers that are not up, too: that a move waits for one does not make it done.
    """
    found: list[ReplicaMove] = []
    for one in everything(view):
        current = leadership(view, one.where)
        if not set(one.target) <= set(current.isr) or set(current.replicas) != set(one.target):
            found.append(replica_move(view, one, one.target))
    return found


def reassigned(view: ClusterView, request: ReassignRequest, min_isr: MinIsr) -> list[Topic]:
    """Topics with the targets that are asked for; those that have them already are left out.

    T010 T011; T081 for fewer copies than a topic's ``min_isr``, T082 for brokers that are none, and
    for a growth that is to be cancelled in part; T033 where no copy is complete to stay with.
    """
    by_topic: dict[bytes, list[Chosen]] = {}
    for one in chosen(view, request.partitions):
        by_topic.setdefault(one.topic.topic_id, []).append(one)
    found: list[Topic] = []
    for some in by_topic.values():
        topic = some[0].topic
        if request.cancel:
            changed = _cancelled(view, topic, some)
        else:
            changed = _moved(view, request, topic, [one.number for one in some])
        if not request.cancel or _copies(changed) < _copies(topic):
            _check_min_isr(changed, min_isr(topic))
        if changed != topic:
            found.append(changed)
    return found


def _check_min_isr(topic: Topic, need: int | None) -> None:
    """T081: it could not be written to."""
    copies = _copies(topic)
    if need is not None and need > copies:
        source = f"topic {topic.name}"
        raise texts_config.min_isr_above_replicas(source=source, min_isr=need, replicas=copies)


def _copies(topic: Topic) -> int:
    """Of the partition that has the fewest."""
    return min(len(one.replicas) for one in topic.partitions)


def _moved(
    view: ClusterView, request: ReassignRequest, topic: Topic, numbers: Sequence[int]
) -> Topic:
    has = max(len(one.replicas) for one in topic.partitions)
    whole = len(numbers) == len(topic.partitions)
    if request.brokers is not None:
        target = _named(view, request.brokers)
        copies = len(target)
        targets: Mapping[int, Target] = dict.fromkeys(numbers, target)
    else:
        copies = has if request.replicas is None else request.replicas
        if not 1 <= copies <= len(placement.takers(view)):
            there = len(placement.takers(view))
            raise texts_cluster.too_few_brokers(asked=copies, there=there)
        targets = even(view, topic, numbers, copies)
    if copies != has and not whole:
        raise texts_cluster.other_count(topic.name, asked=copies, has=has)
    if copies != has:
        topic = replace(topic, replicas=copies)
    return placement.retargeted(topic, targets)


def _named(view: ClusterView, brokers: Sequence[str]) -> Target:
    if not brokers:
        raise texts_cluster.no_broker_named()
    for broker in brokers:
        if not view.alive(broker):
            raise texts_cluster.no_such_broker(broker, known=sorted(view.brokers))
        if broker in view.drains:  # the controller would take it off again
            raise texts_cluster.is_drained(broker)
        if brokers.count(broker) > 1:
            raise texts_cluster.broker_twice(broker)
    return tuple(brokers)


def _cancelled(view: ClusterView, topic: Topic, some: Sequence[Chosen]) -> Topic:
    """With the copies that are complete; their number changes for the whole topic or not at all."""
    targets = {one.number: _complete(view, one) for one in some}
    changed = placement.retargeted(topic, targets)
    fewer = [one for one in some if len(targets[one.number]) < len(one.target)]
    if not fewer:
        return changed
    if len(some) < len(topic.partitions):
        first = fewer[0]
        raise texts_cluster.growth_of_some(
            *(topic.name, first.number),
            complete=len(targets[first.number]),
            wanted=len(first.target),
        )
    for one in fewer:  # who had more of them, and lost the others' disks, does not mean that
        if len(targets[one.number]) < placement.SAFE_COPIES:
            raise texts_cluster.single_copy(topic.name, one.number, wanted=len(one.target))
    return replace(changed, replicas=max(len(one.replicas) for one in changed.partitions))


def _complete(view: ClusterView, one: Chosen) -> Target:
    """The copies that have all that was acknowledged, at most as many as are wanted.

    In the order that is wanted, if all of them are; else who leads is preferred, as it was before
    the move began. T033 if there is none.
    """
    current = leadership(view, one.where)
    if set(one.target) <= set(current.isr):
        return one.target
    order = (*filter(None, [current.leader]), *current.replicas)
    in_sync = (broker for broker in order if broker in current.isr)
    eligible = (broker for broker in order if broker in current.elr)
    kept = tuple(dict.fromkeys((*in_sync, *eligible)))[: len(one.target)]
    if not kept:
        raise texts_cluster.nobody_leads(one.topic.name, one.number, candidates=())
    if set(kept) <= set(one.target):
        return tuple(broker for broker in one.target if broker in kept)
    return kept


def even(
    view: ClusterView, topic: Topic, numbers: Sequence[int], copies: int
) -> Mapping[int, Target]:
    """Targets that are spread over all brokers, which leave where they are as many as can be."""
    racks, cluster = placement.racks(view), placement.load(view)
    for number in numbers:
        cluster.add(topic.partitions[number].replicas, -1)
    spreader = placement.Spreader(racks, cluster)
    targets: dict[int, Target] = {}
    for number in numbers:
        stay = [one for one in topic.partitions[number].replicas if one in racks]
        targets[number] = tuple(stay[:copies])
        spreader.take(targets[number])
    for number, target in targets.items():
        spreader.give_up(target)
        while len(target) < copies and (another := spreader.another(target)) is not None:
            target = (*target, another)
        spreader.take(target)
        targets[number] = target
    while (better := _one_better(targets, spreader, list(racks))) is not None:
        number, target = better
        spreader.give_up(targets[number])
        spreader.take(target)
        targets[number] = target
    return _led_evenly(targets)


def _one_better(
    targets: Mapping[int, Target], spreader: placement.Spreader, brokers: Sequence[str]
) -> tuple[int, Target] | None:
    """One copy moved from a broker that has at least two more of them than another one."""
    held = spreader.topic.copies
    for most in sorted(brokers, key=lambda one: (-held[one], one)):
        for least in sorted(brokers, key=lambda one: (held[one], one)):
            if held[most] - held[least] < 2:
                break
            for number, target in targets.items():
                if most not in target or least in target:
                    continue
                moved = tuple(least if one == most else one for one in target)
                if len(set(map(spreader.rack, moved))) >= len(set(map(spreader.rack, target))):
                    return number, moved
    return None


def _led_evenly(targets: Mapping[int, Target]) -> dict[int, Target]:
    """The same copies, with leaders spread over them; who leads goes on where that is even."""
    brokers = {broker for target in targets.values() for broker in target}
    share = math.ceil(len(targets) / max(1, len(brokers)))
    leads: Counter[str] = Counter()
    found: dict[int, Target] = {}
    for number, target in targets.items():
        first = next((b for b in target if leads[b] < share), None)
        if first is None:
            first = min(target, key=lambda broker: (leads[broker], broker))
        leads[first] += 1
        found[number] = (first, *(broker for broker in target if broker != first))
    return found


# ── drains ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Drain:
    """How a broker that is to be emptied stands."""

    leads: int
    holds: int
    moves: tuple[ReplicaMove, ...]
    stuck: tuple[PartitionRange, ...]


def drain(view: ClusterView, broker_id: str, min_isr: MinIsr) -> Drain:
    """As it goes on, or would. T082 for a broker that nobody knows."""
    held = [one for one in everything(view) if _holds(view, one, broker_id)]
    if not held and not view.alive(broker_id) and broker_id not in view.drains:
        raise texts_cluster.no_such_broker(broker_id, known=sorted(view.brokers))
    planned = replace(view, drains=view.drains | {broker_id})
    targets = {topic.topic_id: topic for topic in placement.drained(planned, min_isr)}
    moves: list[ReplicaMove] = []
    stuck: list[PartitionRange] = []
    for one in held:
        topic = targets.get(one.topic.topic_id, one.topic)
        target = topic.partitions[one.number].replicas
        if broker_id in target:
            stuck.append(PartitionRange(one.topic.name, one.number))
        else:
            moves.append(replica_move(view, one, target))
    leads = sum(leadership(view, one.where).leader == broker_id for one in held)
    return Drain(leads, len(held), tuple(moves), tuple(stuck))


def _holds(view: ClusterView, one: Chosen, broker_id: str) -> bool:
    return broker_id in one.target or broker_id in leadership(view, one.where).replicas
