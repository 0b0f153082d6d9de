"""The sentences of explanations about replicas: who leads, who is in sync, what writes wait for.

Pure. See ``texts_explain``.
"""

from collections.abc import Sequence

from tailrace.protocol.texts import shown
from tailrace.protocol.texts_explain import listed
from tailrace.protocol.units import counted, format_count as count

BROKERS = "tailrace cluster brokers"


def lacks(broker: str, *, alive: bool, behind: int | None) -> str:
    """Why a replica does not count: "n2 is offline", "n3 is 12,000 records behind"."""
    if not alive:
        return f"{shown(broker)} is offline"
    if behind is None:
        return f"{shown(broker)} has not caught up yet"
    return f"{shown(broker)} is {counted(behind, 'record')} behind"


def below_min_isr(have: int, need: int, why: Sequence[str]) -> str:
    """``why``: of each replica that does not count, as ``lacks`` has it."""
    verb = "is" if have == 1 else "are"
    return (
        f"Writes with acks=all are refused (T030): {counted(have, 'replica')} {verb} in sync, and"
        f" min_isr is {need}{_because(why)}. They go on by themselves when another one has caught"
        " up."
    )


def under_replicated(have: int, wanted: int, why: Sequence[str]) -> str:
    return f"{count(have)} of {counted(wanted, 'replica')} are in sync{_because(why)}."


def waits_for_replicas(why: Sequence[str]) -> str:
    """What is written counts once all in-sync replicas have it."""
    return f"A record counts once every in-sync replica has it: {listed(why)}."


def no_lease(broker: str, reason: str) -> str:
    """Nothing is written by a broker that cannot know whether it leads still (R14)."""
    why = f": {shown(reason).removesuffix('.')}" if reason else ""
    text = f"Writes are refused (T100): broker {shown(broker)} has no lease of the metadata store"
    return f"{text}{why}."


def no_leader(could: Sequence[str], *, doubted: bool) -> str:
    """Why a partition is offline. ``could``: who holds all that was acknowledged; or, ``doubted``,
    who did until it restarted without a clean stop."""
    if not could:
        return "it has no leader, and no replica is known to hold all that was acknowledged"
    if doubted:
        return (
            f"it has no leader: {listed(could)} held all that was acknowledged, and"
            f" {'was' if len(could) == 1 else 'were'} not stopped cleanly; all of them must be up,"
            " and whoever has most will lead"
        )
    return (
        f"it has no leader: {listed(could)} {'holds' if len(could) == 1 else 'hold'} all that was"
        " acknowledged, and one of them must be up"
    )


def leader_gone(leader: str) -> str:
    return f"its leader {shown(leader)} is gone, and another one is not elected yet"


def leader_silent(leader: str) -> str:
    return f"its leader {shown(leader)} does not answer"


def led_elsewhere(leader: str) -> str:
    return f"It is led by broker {shown(leader)}."


def _because(why: Sequence[str]) -> str:
    return f" ({listed(why)})" if why else ""
