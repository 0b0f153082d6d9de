"""How copies of a partition get to where they shall be, one stored step after the other (pure).

The target is in the topic's record; ``Leadership.replicas`` says who holds or fills a copy now.

1. Whoever is in the target and holds no copy is added, and fills one as any follower does.
2. When all of the target are in the ISR, whoever is not in it goes: out of ISR, ELR and replicas
   at once, in a new epoch, led by one of the target. The epoch is new even if the leader stays: a
   fetch of the old one may still be on its way from a broker that removes its copy, and would
   count if that broker were given another, empty one.

Until then nothing is taken away: who dies in between is failed over as ever, and another target
may be given at any time.
"""

from dataclasses import replace

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.election import Test
from tailrace.broker.placement import Target


def step(current: Leadership, target: Target, *, alive: Test, may_lead: Test) -> Leadership | None:
    """The next step, by the same rules as those of ``election``; None: it is there, or waits."""
    if not set(target) <= set(current.replicas):
        leaving = (one for one in current.replicas if one not in target)
        return replace(current, replicas=(*target, *leaving))
    if set(current.replicas) == set(target):  # failover goes by their order
        return None if current.replicas == target else replace(current, replicas=target)
    if not set(target) <= set(current.isr):
        return None
    leader = current.leader
    if leader not in target:
        leader = election.choose(target, target, alive=alive, may_lead=may_lead)
    if leader is None or not alive(leader):  # one that is gone is failed over first
        return None
    return replace(current.elected(leader), replicas=target, isr=target, elr=(), doubted=())


def filling(current: Leadership, *, alive: Test) -> bool:
    """Whether a broker that is there fills a copy, for whatever reason."""
    return any(alive(one) for one in current.replicas if one not in current.isr)
