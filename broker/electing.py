"""What operators ask of leaders, made into changes of what the store says (pure).

Everything here is a function of a view, as in ``moving.py``. A preferred leader is given back what
it is to lead; an unclean one takes what nobody leads, and may lose records (R10).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_status import leadership
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.moving import Chosen
from tailrace.protocol import texts_cluster
from tailrace.protocol.errors import PartitionOffline, to_wire
from tailrace.protocol.messages import ConfirmedLeader, LeaderMove, ReplicaDescription


@dataclass(frozen=True, slots=True)
class Election:
    """What becomes of one partition: another leader, or the reason why not."""

    chosen: Chosen
    current: Leadership  # by which it was decided
    leader: str | None = None
    log_end: int = -1  # of an unclean leader
    missing: tuple[str, ...] = ()  # who may hold acknowledged records beyond it
    error: PartitionOffline | None = None


def preferred(view: ClusterView, one: Chosen) -> Election | None:
    """Give it to its preferred leader; None: that is so, or there is none."""
    current, name = leadership(view, one.where), one.topic.name
    wanted = next(iter(one.target), None)
    if wanted is None or current.leader == wanted:
        return None
    if current.leader is None:
        could = sorted(election.waited_for(current))
        return Election(
            one, current, error=texts_cluster.nobody_leads(name, one.number, candidates=could)
        )
    if election.prefer(current, wanted, may_lead=view.may_lead) is not None:
        return Election(one, current, wanted)
    reason = "is not in sync"
    if not view.alive(wanted):
        reason = "is not up"
    elif not view.may_lead(wanted):
        reason = "is about to stop, or is being drained"
    error = texts_cluster.not_preferred(name, one.number, preferred=wanted, reason=reason)
    return Election(one, current, error=error)


def unclean(view: ClusterView, one: Chosen, copies: Collection[ReplicaDescription]) -> Election:
    """Whoever of the living has the most leads, whatever it lacks (R10)."""
    current, name = leadership(view, one.where), one.topic.name
    if current.leader is not None and view.alive(current.leader):
        error = texts_cluster.has_leader(name, one.number, leader=current.leader)
        return Election(one, current, error=error)
    could = election.candidates(current)
    if living := sorted(filter(view.alive, could)):
        error = texts_cluster.clean_is_possible(name, one.number, brokers=living)
        return Election(one, current, error=error)
    holders = current.replicas or one.target
    there = {copy.broker_id: copy for copy in copies if copy.broker_id in holders}
    found = [there[broker] for broker in holders if broker in there and view.alive(broker)]
    if not found:
        return Election(
            one, current, error=texts_cluster.no_copy(name, one.number, brokers=holders)
        )
    best = max(found, key=lambda copy: (copy.last_epoch, copy.log_end))
    missing = tuple(sorted({*could, *election.waited_for(current)} - {best.broker_id}))
    return Election(one, current, best.broker_id, best.log_end, missing)


def as_confirmed(
    found: Sequence[Election], confirmed: Sequence[ConfirmedLeader] | None
) -> list[Election]:
    """Those that would be another one than was said yes to are refused; None: nobody was asked.

    The epoch, too, must be that one: who led in between took what nobody was told of.
    """
    if confirmed is None:
        return list(found)
    return [
        one if one.leader is None or _confirmation(one, one.leader) in confirmed else _refused(one)
        for one in found
    ]


def _confirmation(one: Election, leader: str) -> ConfirmedLeader:
    where, epoch = one.chosen, one.current.leader_epoch
    return ConfirmedLeader(where.topic.name, where.number, leader, epoch, one.log_end)


def _refused(one: Election) -> Election:
    assert one.leader is not None, "it would lead"
    error = texts_cluster.not_confirmed(
        *(one.chosen.topic.name, one.chosen.number), leader=one.leader, log_end=one.log_end
    )
    return Election(one.chosen, one.current, error=error)


def as_stored(
    found: Sequence[Election], stored: Collection[PartitionId], *, unclean: bool
) -> list[Election]:
    """Those that somebody else was faster than have an error, and no leader."""
    told: list[Election] = []
    for one in found:
        if one.error is None and one.chosen.where not in stored:
            name, number = one.chosen.topic.name, one.chosen.number
            error = texts_cluster.not_stored(name, number, unclean=unclean)
            one = Election(one.chosen, one.current, error=error)
        told.append(one)
    return told


def leader_move(found: Election) -> LeaderMove:
    """As it is told."""
    one, current = found.chosen, found.current
    return LeaderMove(
        topic=one.topic.name,
        partition=one.number,
        error=None if found.error is None else to_wire(found.error),
        before=current.leader,
        after=found.leader,
        leader_epoch=current.leader_epoch,
        log_end=found.log_end,
        missing=found.missing,
    )
