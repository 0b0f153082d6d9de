"""What must hold in every state (S1, S2, S4 to S8, S11, S13), and what is remembered for it."""

from tailrace.broker.config import Durability
from tests.model.state import Node, Record, State


class Violation(Exception):
    """An invariant does not hold."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise Violation(what)


def after_change_of(state: State, node: Node, durability: Durability) -> None:
    """A leader's watermark may have risen: what it passed is acknowledged and may be read."""
    if not node.leads:
        return
    committed = node.log[: node.replica.high_watermark]
    check(len(committed) == node.replica.high_watermark, "S11: watermark beyond the log's end")
    known = min(len(state.acked), len(committed))
    check(committed[:known] == state.acked[:known], "S2: other bytes where some were acknowledged")
    if len(committed) > len(state.acked):
        acknowledged(state, node, committed, durability)
        state.acked = committed
    shown = node.replica.shown_high_watermark
    if shown is not None:
        if state.meta.leader == node.name and state.meta.leader_epoch == node.replica.leader_epoch:
            check(shown >= state.shown, "S11: a watermark was shown that fell")
        state.shown = max(state.shown, shown)


def acknowledged(
    state: State, leader: Node, committed: tuple[Record, ...], durability: Durability
) -> None:
    """S1: everybody who counts holds it, on disk where that is asked for.

    Or held it when it told so: in a life that is over, or while it was a candidate.
    """
    replica, meta = leader.replica, state.meta
    check(len(replica.leadership.isr) >= replica.min_isr, "S1: acknowledged below min_isr")
    for name in replica.maximal_isr:
        member = state.node(name)
        of_this_life = (
            member is leader or replica.followers[name].broker_epoch == member.broker_epoch
        )
        left = name not in {*meta.isr, *meta.elr}
        if of_this_life and not member.hurt and not left:
            held = member.durable(durability)[: len(committed)]
            check(held == committed, f"S1: acknowledged without {name}")


def everywhere(state: State, durability: Durability) -> None:
    """What holds between actions."""
    meta, acked = state.meta, state.acked
    eligible = {*meta.isr, *meta.elr}
    for node in state.nodes:
        if node.name in eligible and not node.hurt:
            check(node.durable(durability)[: len(acked)] == acked, f"S7: {node.name} is incomplete")
        if node.leads:
            replica = node.replica
            if node.name == meta.leader and replica.leader_epoch == meta.leader_epoch:
                check(node.log[: len(acked)] == acked, "S6: the leader lacks what was acknowledged")
                if replica.committing:
                    check(eligible <= replica.maximal_isr, "S8: not all candidates count")
    logs = [node.log for node in state.nodes]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same_history(logs[one], logs[other])


def same_history(one: tuple[Record, ...], other: tuple[Record, ...]) -> None:
    """S4: where both have a record of one epoch at one offset, they are equal up to there."""
    for offset in range(min(len(one), len(other)) - 1, -1, -1):
        if one[offset].epoch == other[offset].epoch:
            check(one[: offset + 1] == other[: offset + 1], "S4: two histories with one name")
            return


def truncating(state: State, node: Node, length: int) -> None:
    """S13: nothing acknowledged is cut off."""
    check(length >= node.replica.high_watermark, f"S13: {node.name} cuts below its own watermark")
    cut = node.log[length:]
    check(not any(one in state.acked for one in cut), f"S13: {node.name} cuts off what was acked")
