"""What the controller changes, from one view of the cluster (pure).

Every ``Change`` is stored by compare-and-swap on the revision in the view, on the controller's own
key, and on the registration of a leader that is new (R6, R13): a view that is old changes nothing.

In this order: partitions whose leader is gone, or of which everybody who held all of it restarted
without a clean stop, and dead members of an ISR; steps of reassignments,
of which only so many may fill copies at once; leaders that are not the preferred ones, a few at a
time, when the cluster has been calm, and none to a broker that has copies to fill still, or had
just now: each of them has a disk to wait for, and everybody reads the metadata once more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tailrace.broker import election, reassignment
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.placement import MinIsr, Target

FILLING_MAX = 10  # partitions that fill copies at once
BALANCE_MAX = 5  # leaders moved at a time for no need but balance

Reason = Literal["failover", "shrink", "recovered", "reassign", "balance"]


@dataclass(frozen=True, slots=True)
class Change:
    """One partition's leadership as it shall be, with the revision that it was decided on."""

    where: PartitionId
    leadership: Leadership
    reason: Reason
    new_leader: str | None  # whose registration is compared


def decide(
    view: ClusterView,
    min_isr: MinIsr,
    *,
    spared: frozenset[str] = frozenset(),
    settling: frozenset[str] = frozenset(),
    calm: bool = True,
) -> list[Change]:
    """All changes that are due.

    ``spared``: brokers that are not registered and are not taken for dead yet. ``settling``: those
    that came into in-sync sets just now. ``calm``: whether leaders may be moved for balance.
    """
    alive, fine = _Living(view, spared), view.brokers.keys() | spared
    urgent: list[Change] = []
    moves: list[Change] = []
    others: list[tuple[PartitionId, Leadership, Target]] = []
    filling, catching_up = 0, set(settling)
    for where, one in view.leaderships.items():
        topic = view.catalog.by_id.get(where[0])
        if topic is None:
            continue
        target = topic.partitions[where[1]].replicas
        if one.leader not in fine or not fine >= set(one.isr):
            urgent.extend(_fail_over(view, where, one, topic, target, min_isr, alive))
            continue
        if one.replicas != target:
            others.append((where, one, target))
        elif calm and one.leader != target[0]:
            moves.extend(_balance(view, where, one, target))
        if len(one.isr) < len(one.replicas):
            filling += reassignment.filling(one, alive=view.alive)
            catching_up.update(set(one.replicas).difference(one.isr))
    steps = list(_steps(view, others, max(0, FILLING_MAX - filling)))
    moves = [move for move in moves if move.new_leader not in catching_up]
    return [*urgent, *steps, *moves[:BALANCE_MAX]]


def joined(before: ClusterView, view: ClusterView) -> set[str]:
    """Brokers that came into the in-sync set of a partition since."""
    if view is before:
        return set()
    return {
        who
        for where, one in view.leaderships.items()
        if (known := before.leaderships.get(where)) is not None and known is not one
        for who in one.isr
        if who not in known.isr
    }


def leaderless(view: ClusterView) -> list[PartitionId]:
    """Partitions that nobody leads."""
    return [where for where, one in view.leaderships.items() if one.leader is None]


@dataclass(frozen=True, slots=True)
class _Living:
    """Whether a broker counts as alive."""

    view: ClusterView
    spared: frozenset[str]

    def __call__(self, broker_id: str) -> bool:
        return broker_id in self.view.brokers or broker_id in self.spared


def _fail_over(
    view: ClusterView,
    where: PartitionId,
    one: Leadership,
    topic: Topic,
    target: Target,
    min_isr: MinIsr,
    alive: _Living,
) -> Iterator[Change]:
    if (least := election.least_lost(one, alive=view.alive, may_lead=view.may_lead)) is not None:
        yield Change(where, least, "recovered", least.leader)
        return
    need = election.min_isr(min_isr(topic), len(target))
    found = election.placed_anew(one, target, alive=alive, may_lead=view.may_lead)
    if found is None:
        found = election.fail_over(one, need, alive=alive, may_lead=view.may_lead)
    if found is None:
        return
    if found.leader in (None, one.leader):
        yield Change(where, found, "shrink" if found.leader else "failover", None)
    elif view.alive(found.leader or ""):
        yield Change(where, found, "failover", found.leader)
    # Else only one that is spared could lead: wait for it.


def _steps(
    view: ClusterView, others: list[tuple[PartitionId, Leadership, Target]], room: int
) -> Iterator[Change]:
    """Next steps of those that are elsewhere; ``room``: how many may begin to fill."""
    for where, one, target in others:
        step = reassignment.step(one, target, alive=view.alive, may_lead=view.may_lead)
        if step is None:
            continue
        if len(step.replicas) > len(one.replicas):
            if not room:
                continue
            room -= 1
        led_anew = step.leader_epoch > one.leader_epoch
        yield Change(where, step, "reassign", step.leader if led_anew else None)


def _balance(
    view: ClusterView, where: PartitionId, one: Leadership, target: Target
) -> Iterator[Change]:
    found = election.prefer(one, target[0], may_lead=view.may_lead)
    if found is not None:
        yield Change(where, found, "balance", found.leader)
