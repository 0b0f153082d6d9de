"""Who leads a partition, and who may: rules from one stored state to the next (pure).

Every function takes a ``Leadership`` and returns another one with the *same revision*: what the
compare-and-swap that stores it compares with (S30). None: nothing to change.

- ISR: whoever counts for what is committed. ELR: whoever left the ISR while that was below its
  minimum; nothing is committed then, so they hold all that ever was (R9, KIP-966).
- A leader comes from the ISR, else from the ELR; from elsewhere only by an operator's command
  (R10), which may lose what was acknowledged (S3).
- Each new leader begins a new epoch (S9). Without a leader the epoch stays.
- Where acks do not wait for syncs, whoever restarts without a clean stop is no candidate any more,
  but ``doubted``. If none is left, all of them are waited for, and whoever holds most leads (R7).
- In epoch 0 nobody has led yet, whatever became of those who were to: there is nothing to lose.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from tailrace.broker.catalog import Doubted, Held, Leadership

Test = Callable[[str], bool]  # of a broker id


def min_isr(configured: int | None, replicas: int) -> int:
    """What holds for a topic with so many replicas wanted: "auto" is a majority (R11)."""
    return configured if configured is not None else replicas // 2 + 1


def with_isr(current: Leadership, isr: Iterable[str], need: int) -> Leadership:
    """The ISR as it shall be; who leaves it below ``need`` stays eligible (R9).

    The members of ``isr`` that were not in it must be known to be complete (R5, or of the ELR).
    """
    isr = tuple(isr)
    pool: Iterable[str] = ()
    if len(isr) < need:
        pool = (*current.elr, *(one for one in current.isr if one not in current.elr))
    return replace(current, isr=isr, elr=tuple(one for one in pool if one not in isr))


def fail_over(current: Leadership, need: int, *, alive: Test, may_lead: Test) -> Leadership | None:
    """Take the dead out of the ISR, and find a leader if there is none among the living.

    The first of the ISR in the order of the replicas that ``may_lead``, else any that lives, else
    the same of the ELR; else nobody, until one comes back.
    """
    changed = with_isr(current, filter(alive, current.isr), need)
    if changed.leader not in changed.isr:
        changed = replace(changed, leader=None)
        chosen = choose(changed.replicas, changed.isr, alive=alive, may_lead=may_lead)
        if chosen is None:
            chosen = choose(changed.replicas, changed.elr, alive=alive, may_lead=may_lead)
            if chosen is not None:
                changed = with_isr(changed, (*changed.isr, chosen), need)
        if chosen is not None:
            changed = changed.elected(chosen)
    return None if changed == current else changed


def placed_anew(
    current: Leadership, target: Collection[str], *, alive: Test, may_lead: Test
) -> Leadership | None:
    """Another broker begins what nobody has led yet, where none of those who were to lives.

    The first of the replicas, else of ``target``; still in epoch 0, as when the topic was made: it
    may die before it has a log, too. Who was to begin, and is only taken for dead, would store its
    first epoch by compare-and-swap: either that or this is refused (S30).
    """
    if current.leader_epoch or any(map(alive, candidates(current))):
        return None
    replicas = current.replicas
    chosen = choose(replicas, replicas, alive=alive, may_lead=may_lead)
    if chosen is None:
        chosen = choose(target, target, alive=alive, may_lead=may_lead)
        replicas = replicas if chosen is None else (chosen, *replicas)
    if chosen is None:
        return None
    return replace(current, leader=chosen, isr=(chosen,), elr=(), replicas=replicas)


def choose(
    order: Iterable[str], among: Collection[str], *, alive: Test, may_lead: Test
) -> str | None:
    """The first of ``among`` that should lead, else the first that could."""
    ordered = list(dict.fromkeys((*(one for one in order if one in among), *among)))
    living = [one for one in ordered if alive(one)]
    return next(filter(may_lead, living), None) or next(iter(living), None)


def hand_over(current: Leadership, holders: Iterable[str], *, may_lead: Test) -> Leadership | None:
    """The leader gives the partition to the first of ``holders`` that should lead.

    ``holders``: members of the ISR that have all of its log, so nothing has to be sent again.
    """
    fit = [one for one in holders if one in current.isr and one != current.leader]
    order = (*(one for one in current.replicas if one in fit), *fit)
    chosen = next(filter(may_lead, order), None)
    return None if chosen is None else current.elected(chosen)


def prefer(current: Leadership, preferred: str, *, may_lead: Test) -> Leadership | None:
    """Give the partition back to the broker that is to lead it, if that is in sync."""
    if current.leader in (None, preferred) or preferred not in current.isr:
        return None
    return current.elected(preferred) if may_lead(preferred) else None


def unclean(current: Leadership, broker_id: str) -> Leadership:
    """Make one the leader that may lack what was acknowledged: an operator's decision (R10).

    Whatever others hold beyond it is given up. Tell of it: ``data-loss-possible`` (S3).
    """
    return replace(current.elected(broker_id), isr=(broker_id,), elr=(), doubted=())


def candidates(current: Leadership) -> frozenset[str]:
    """Who may be elected without losing anything."""
    return frozenset(current.isr) | frozenset(current.elr)


def wiped(current: Leadership, broker_id: str) -> Leadership | None:
    """The broker came with another data directory: it holds nothing it was counted for (R7).

    Also if nobody is left then: without an operator nobody leads a partition that is lost, not
    even those that are doubted.
    """
    left = _without(current, broker_id)
    if candidates(current) and not candidates(left):
        left = replace(left, doubted=())
    return None if left == current else left


def _without(current: Leadership, broker_id: str) -> Leadership:
    return replace(
        current,
        leader=None if current.leader == broker_id else current.leader,
        isr=tuple(one for one in current.isr if one != broker_id),
        elr=tuple(one for one in current.elr if one != broker_id),
        doubted=tuple(one for one in current.doubted if one.broker_id != broker_id),
    )


def doubted(current: Leadership) -> frozenset[str]:
    """Who restarted without a clean stop since there was a leader at work."""
    return frozenset(one.broker_id for one in current.doubted)


def restarted_unclean(current: Leadership, broker_id: str) -> Leadership | None:
    """The broker may have lost what it had not flushed, with a durability that counts that (R7).

    It leaves ISR and ELR, and is doubted from now on. The only one of all stays: None; whoever asks
    tells of it, for what it lost is lost (S3).
    """
    could = candidates(current)
    everybody = could | doubted(current)
    if broker_id not in everybody or (could and len(everybody) == 1):
        return None
    left = _without(current, broker_id)
    if current.leader_epoch:  # in one order, or two that start at once would take turns
        noted = sorted((*left.doubted, Doubted(broker_id)), key=lambda one: one.broker_id)
        left = replace(left, doubted=tuple(noted))
    if could and not candidates(left):  # what was told before may be less than they hold now
        left = replace(left, doubted=tuple(Doubted(one.broker_id) for one in left.doubted))
    return None if left == current else left


def at_work(current: Leadership, need: int) -> Leadership:
    """Somebody leads: who is in sync is doubted no more. Nor is anybody else where as many as are
    needed are in sync; with fewer nothing is committed, and what the doubted hold still counts."""
    if not current.doubted:  # each look of a leader at each of its partitions
        return current
    if len(current.isr) >= need:
        return replace(current, doubted=())
    left = tuple(one for one in current.doubted if one.broker_id not in current.isr)
    return replace(current, doubted=left)


def told(current: Leadership, broker_id: str, held: Held) -> Leadership | None:
    """A broker that is doubted has opened its log. Nothing where somebody holds all."""
    if candidates(current):
        return None
    now = tuple(
        replace(one, held=held) if one.broker_id == broker_id else one for one in current.doubted
    )
    return None if now == current.doubted else replace(current, doubted=now)


def least_lost(current: Leadership, *, alive: Test, may_lead: Test) -> Leadership | None:
    """Nobody is left who holds all: once all who did have told, whoever holds most leads (R7).

    KIP-966 calls it balanced recovery. Tell of it: ``data-loss-possible`` (S3).
    """
    if candidates(current) or not current.doubted:
        return None
    if not all(alive(one.broker_id) and one.held is not None for one in current.doubted):
        return None
    order = (*current.replicas, *(one.broker_id for one in current.doubted))
    most = max(one.held for one in current.doubted if one.held is not None)
    fit = [one.broker_id for one in current.doubted if one.held == most]
    chosen = min(fit, key=lambda one: (not may_lead(one), order.index(one)))
    return replace(_without(current, chosen).elected(chosen), isr=(chosen,), elr=())


def waited_for(current: Leadership) -> tuple[str, ...]:
    """Of a partition without a leader: one of the candidates, or all who are doubted."""
    return (*current.isr, *current.elr) or tuple(sorted(doubted(current)))


def given_up(current: Leadership, broker_id: str) -> Leadership | None:
    """The broker goes on, but its copy is of no use, and it will fill another one.

    As ``wiped`` while there are other candidates, in a new epoch of the leader: a fetch of the old
    copy may still be on its way, in the same broker epoch, and would count for the new one. Where
    there are none, it is waited for no more if others are doubted as well.
    """
    others = candidates(current) or doubted(current)
    if broker_id not in candidates(current) | doubted(current) or others <= {broker_id}:
        return None
    left = _without(current, broker_id)
    return left if left.leader is None else left.elected(left.leader)


def stepped_aside(current: Leadership, broker_id: str, need: int) -> Leadership | None:
    """The broker's copy is whole, but nothing can be written to it for now: others are to lead.

    It leaves the ISR, and stays eligible where fewer than ``need`` are left in it (R9). The last
    candidate stays: None.
    """
    if candidates(current) <= {broker_id} or broker_id not in current.isr:
        return None
    left = with_isr(current, (one for one in current.isr if one != broker_id), need)
    return replace(left, leader=None) if current.leader == broker_id else left


def restarted(current: Leadership, broker_id: str) -> Leadership | None:
    """A new life of the broker that leads, with all its data: a new epoch, before it serves."""
    return current.elected(broker_id) if current.leader == broker_id else None
