"""Why a consumer group does not progress, or that it does (pure).

The verdict is that of its worst partition over ``group.verdict_window``. The summary begins with
how it stands and goes on with what is wrong, the worst first: records lost before they were read, a
topic or a partition that is not there, nobody who reads, partitions that change hands, members that
are stuck or too slow, records about to expire, members without work. ``next`` belongs to the first.
"""

from dataclasses import dataclass

from tailrace.broker.explain import MemberFacts, Standing, facts
from tailrace.protocol import texts_explain as texts, texts_explain_group as group_texts
from tailrace.protocol.shapes import Explanation, Fact, GroupState, Verdict
from tailrace.protocol.texts import partition_name, shown

TOLD_MAX = 3  # partitions of one trouble that are described
SOON_S = 86_400.0  # unread records that expire within are worth a word


@dataclass(frozen=True, slots=True)
class Moving:
    """A partition on its way from one member to another."""

    topic: str
    partition: int
    owner: MemberFacts
    left_s: float  # until it is taken by force


@dataclass(frozen=True, slots=True)
class MissingTopic:
    """Somebody subscribes to it."""

    name: str
    similar: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """All that is known of a group."""

    name: str
    state: GroupState
    generation: int
    coordinator: str
    verdict: Verdict
    lag_records: int
    lag_s: float | None
    drain_s: float | None  # None: never
    members: tuple[MemberFacts, ...] = ()
    standings: tuple[Standing, ...] = ()
    moving: tuple[Moving, ...] = ()
    gathering: bool = False
    missing: tuple[MissingTopic, ...] = ()


Finding = tuple[str, str | None]


def explain_group(known: GroupFacts) -> Explanation:
    """The whole of it."""
    found = _findings(known)
    head = group_texts.group_stands(known.name, known.state, len(known.members), known.lag_records)
    return Explanation(
        target=shown(known.name),
        kind="group",
        verdict=known.verdict,
        summary=" ".join([head, *(sentence for sentence, _ in found)]),
        facts=_facts(known),
        next=next((command for _, command in found if command), None),
    )


def _findings(known: GroupFacts) -> list[Finding]:
    found: list[Finding] = []
    for look in (_lost, _missing, _down, _unread, _moves, _slow, _threatened, _idle):
        found += look(known)[:TOLD_MAX]
    if known.lag_records and known.members and not found:
        found.append((group_texts.catching_up(known.drain_s), None))
    return found


def _lost(known: GroupFacts) -> list[Finding]:
    """T041 lies ahead of it, or has met it."""
    found: list[Finding] = []
    owned = len(known.members) > 0
    for one in known.standings:
        if one.committed is None or one.log_end < 0:
            continue
        where = (one.topic, one.partition)
        if one.committed < one.log_start:
            text = group_texts.lost_records(
                *(known.name, *where),
                one.committed,
                one.log_start,
                retention=one.retention,
                owned=owned,
            )
            found.append((text, _move(known, one, "start")))
        elif one.committed > one.log_end:
            text = group_texts.ahead_of_log(
                known.name, *where, one.committed, one.log_end, owned=owned
            )
            found.append((text, _move(known, one, "end")))
        elif one.damaged:
            text = group_texts.position_damaged(*where, one.committed)
            target = f"{one.topic}:{one.partition}:{one.committed}"
            found.append((text, texts.explain(target, known.name)))
    return found


def _move(known: GroupFacts, one: Standing, to: str) -> str:
    """The reset is refused while there are members: then first who they are."""
    if known.members:
        return texts.describe_group(known.name)
    return texts.reset(known.name, one.topic, one.partition, to)


def _missing(known: GroupFacts) -> list[Finding]:
    return [
        (group_texts.topic_missing(one.name, one.similar), texts.TOPICS) for one in known.missing
    ]


def _down(known: GroupFacts) -> list[Finding]:
    return [
        (group_texts.partition_down(one.topic, one.partition), _look(one))
        for one in known.standings
        if one.log_end < 0
    ]


def _unread(known: GroupFacts) -> list[Finding]:
    if not known.members and known.lag_records:
        ages = [one.committed_s for one in known.standings if one.committed_s is not None]
        text = group_texts.nobody_reads(min(ages, default=None))
        return [(text, texts.describe_group(known.name))]
    if not known.members or known.moving or known.gathering:
        return []
    return [
        (group_texts.nobody_owns(one.topic, one.partition), texts.describe_group(known.name))
        for one in known.standings
        if one.owner is None and one.lag_records and one.log_end >= 0
    ]


def _moves(known: GroupFacts) -> list[Finding]:
    command = texts.describe_group(known.name)
    if known.gathering:
        return [(group_texts.gathering(), command)]
    return [
        (group_texts.moving(one.topic, one.partition, one.owner.name, one.left_s), command)
        for one in known.moving
    ]


def _slow(known: GroupFacts) -> list[Finding]:
    """Stalled, or slower than its producers."""
    found: list[Finding] = []
    for one in sorted(known.standings, key=lambda one: one.verdict != "stalled"):
        where = (one.topic, one.partition)
        if one.verdict == "warn":
            text = group_texts.falls_behind(*where, one.lag_records, one.rate, one.write_rate)
            found.append((text, texts.describe_group(known.name)))
        elif one.verdict == "stalled" and one.owner is not None and _can_go_on(one):
            text = group_texts.stalled(*where, one.position, one.committed_s, one.owner.name)
            text += group_texts.owner_lives(one.owner.heard_s)
            found.append((text, texts.read_on(*where, one.position)))
    return found


def _can_go_on(one: Standing) -> bool:
    """What keeps it from going on is not the log."""
    return one.log_start <= one.position <= one.log_end and not one.damaged


def _threatened(known: GroupFacts) -> list[Finding]:
    """Whoever loses records first."""
    soon = [
        (one.margin_s, one)
        for one in known.standings
        if one.margin_s is not None and 0 < one.margin_s < SOON_S and one.verdict != "ok"
    ]
    if not soon:
        return []
    margin_s, first = min(soon, key=lambda pair: pair[0])
    text = group_texts.will_lose(first.topic, first.partition, margin_s)
    return [(text, texts.describe_group(known.name))]


def _idle(known: GroupFacts) -> list[Finding]:
    if known.moving or known.gathering:
        return []
    idle = [one.name for one in known.members if not one.partitions]
    if not idle:
        return []
    text = group_texts.idle_members(idle, len(known.standings), len(known.members))
    return [(text, texts.describe_group(known.name))]


def _look(one: Standing) -> str:
    return texts.explain(f"{one.topic}:{one.partition}")


def _facts(known: GroupFacts) -> list[Fact]:
    margins = [one.margin_s for one in known.standings if one.margin_s is not None]
    stalled = [one for one in known.standings if one.verdict == "stalled"]
    return facts(
        state=known.state,
        members=len(known.members),
        idle_members=[one.name for one in known.members if not one.partitions],
        generation=known.generation,
        coordinator=known.coordinator,
        partitions=len(known.standings),
        lag_records=known.lag_records,
        lag_seconds=known.lag_s,
        read_per_s=sum(one.rate for one in known.standings),
        written_per_s=sum(one.write_rate for one in known.standings),
        drain_seconds=known.drain_s,
        margin_seconds=min(margins, default=None),
        stalled=[_place(one) for one in stalled],
        stalled_members=sorted({one.owner.name for one in stalled if one.owner is not None}),
        moving=[partition_name(one.topic, one.partition) for one in known.moving],
        missing_topics=[one.name for one in known.missing],
    )


def _place(one: Standing) -> str:
    return f"{partition_name(one.topic, one.partition)}@{one.position}"
