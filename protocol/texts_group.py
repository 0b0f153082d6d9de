"""The texts of consumer groups, by coordinator and members; rules as in ``texts.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

from tailrace.protocol import errors
from tailrace.protocol.texts import partition_name, record_name, shown
from tailrace.protocol.units import format_count as count, format_duration


def group_not_found(name: str, *, similar: Sequence[str] = ()) -> errors.GroupNotFound:
    """T043."""
    hint = "List them: tailrace group list"
    if similar:
        hint = f"Similar: {', '.join(map(shown, similar))}. {hint}"
    return errors.GroupNotFound(
        "T043", f"group '{shown(name)}' does not exist", hint, name=name, similar=list(similar)
    )


def group_not_empty(name: str, *, members: Sequence[str]) -> errors.GroupNotEmpty:
    """T044. ``members``: member ids."""
    number = "1 member" if len(members) == 1 else f"{count(len(members))} members"
    listed = ", ".join(map(shown, members[:5])) + (", ..." if len(members) > 5 else "")
    return errors.GroupNotEmpty(
        "T044",
        f"group '{shown(name)}' has {number} ({listed})",
        f"Stop its consumers first: tailrace group describe {shown(name)}",
        group=name,
        members=list(members),
    )


def coordinator_loading(group: str | None, *, broker: str) -> errors.CoordinatorLoading:
    """T036. ``group``: None, if all were asked about."""
    whose = "some groups" if group is None else f"group '{shown(group)}'"
    return errors.CoordinatorLoading(
        "T036",
        f"broker {shown(broker)} is still loading the offsets of {whose}",
        "Ask again.",
        group=group or "",
        broker=broker,
    )


def coordinator_missing(group: str, *, partition: str) -> errors.CoordinatorLoading:
    """T036: whoever coordinated the group is gone, and nobody does yet. ``partition``: its
    ``__offsets[3]``."""
    return errors.CoordinatorLoading(
        "T036",
        f"group '{shown(group)}' has no coordinator at present: {partition} has no leader",
        "Ask again.",
        group=group,
        broker="",
    )


def coordinators_missing(brokers: Sequence[str]) -> errors.CoordinatorLoading:
    """T036 for a list of all groups. ``brokers``: coordinators that do not answer; none: a part of
    the groups has no coordinator."""
    why = "a part of them has no coordinator at present"
    if brokers:
        why = f"{', '.join(map(shown, brokers))} {'does' if len(brokers) == 1 else 'do'} not answer"
    return errors.CoordinatorLoading(
        "T036", f"not all groups are known: {why}", "Ask again.", group="", broker=""
    )


def coordinator_stuck(group: str, *, broker: str, reason: str) -> errors.CoordinatorLoading:
    """T036 for a member: what changed in its group cannot be written down. ``reason``: an error's
    message."""
    return errors.CoordinatorLoading(
        "T036",
        f"broker {shown(broker)} cannot write down what changed in group '{shown(group)}': "
        f"{shown(reason)}",
        "Ask again.",
        group=group,
        broker=broker,
    )


def group_fenced(
    group: str, member_id: str, *, reason: str, replaced: bool = False
) -> errors.GroupFenced:
    """T042. ``reason``: "generation 3 is over, the group is in 4". ``replaced``: another one has
    its instance id."""
    next_step = "It rejoins by itself"
    if replaced:
        next_step = "It does not rejoin: give each process an instance_id of its own"
    return errors.GroupFenced(
        "T042",
        f"member '{shown(member_id)}' is no longer in group '{shown(group)}': {reason}",
        f"{next_step}; look: tailrace group describe {shown(group)}",
        group=group,
        member_id=member_id,
    )


def commit_fenced(
    group: str, member_id: str, *, topic: str, partition: int, reason: str
) -> errors.GroupFenced:
    """T042 for one partition of a commit. ``reason``: "member 'b' has it since generation 4"."""
    return errors.GroupFenced(
        "T042",
        f"member '{shown(member_id)}' of group '{shown(group)}' may not commit "
        f"{partition_name(topic, partition)}: {reason}",
        f"Its records are delivered again; look: tailrace group describe {shown(group)}",
        group=group,
        member_id=member_id,
        topic=topic,
        partition=partition,
    )


def partition_lost(offsets: Mapping[Any, int], *, group: str, reason: str) -> errors.PartitionLost:
    """T040. ``offsets``: by TopicPartition, what was not committed; at least one."""
    (topic, partition), _ = next(iter(offsets.items()))
    more = f" and {count(len(offsets) - 1)} more" if len(offsets) > 1 else ""
    return errors.PartitionLost(
        "T040",
        f"{partition_name(topic, partition)}{more} went to another member of group "
        f"'{shown(group)}' before its offsets were committed: {reason}",
        "Its uncommitted records are delivered again there. Finish within rebalance_timeout.",
        **{"topic": topic, "partition": partition, "offsets": dict(offsets)},
    )


def subscription_mismatch(
    *, group: str, member: str, yours: Sequence[str], theirs: Sequence[str]
) -> errors.GroupConfigMismatch:
    """T070. ``yours`` and ``theirs``: topics."""
    return errors.GroupConfigMismatch(
        "T070",
        f"member '{shown(member)}' of group '{shown(group)}' subscribes "
        f"{', '.join(map(shown, theirs))}, you {', '.join(map(shown, yours))}",
        "One group, one subscription: use another group name.",
        yours=list(yours),
        theirs=list(theirs),
    )


def session_timeout_outside(given_ms: int, *, low_ms: int, high_ms: int) -> errors.ConfigError:
    """T082: the broker's bounds."""
    low, high = format_duration(low_ms / 1000), format_duration(high_ms / 1000)
    return errors.ConfigError(
        "T082",
        f"consumer(): session_timeout={format_duration(given_ms / 1000)} must be between {low} "
        f"(group.session_timeout_min) and {high} (group.session_timeout_max)",
        "Look: tailrace config explain group.session_timeout_min",
        key="session_timeout",
        source="consumer()",
    )


def subscription_too_large(topics: int, *, limit: int) -> errors.ConfigError:
    """T082."""
    return errors.ConfigError(
        "T082",
        f"consumer(): {count(topics)} topics must be at most {count(limit)}",
        "Read them in several groups.",
        key="topics",
        source="consumer()",
    )


def subscriptions_differ(group: str, *, limit: int) -> errors.ConfigError:
    """T082: one more, though nested."""
    return errors.ConfigError(
        "T082",
        f"the members of group '{shown(group)}' have {limit} different subscriptions already",
        "One group, one subscription: use another group name.",
        key="topics",
        source="consumer()",
    )


def group_full(group: str, *, members_max: int) -> errors.ConfigError:
    """T082: one more member than the broker allows."""
    return errors.ConfigError(
        "T082",
        f"group '{shown(group)}' has {count(members_max)} members already, "
        f"group.members_max = {members_max}",
        "Raise group.members_max, or stop a member.",
        key="group.members_max",
        source=None,
    )


def metadata_too_large(size: int, *, limit: int) -> errors.ConfigError:
    """T082 for one partition of a commit. Sizes: bytes of UTF-8."""
    return errors.ConfigError(
        "T082",
        f"commit(): metadata of {count(size)} bytes must be at most {count(limit)}",
        "Keep it short: it is written with every commit.",
        key="metadata",
        source="commit()",
    )


def member_idle(*, group: str, member: str, partitions: int, members: int) -> errors.Notice:
    """T071."""
    return errors.Notice(
        "T071",
        f"member '{shown(member)}' of group '{shown(group)}' is idle: {count(partitions)} "
        f"partitions for {count(members)} members",
        "Stop a member.",
    )


def at_the_end(
    positions: Sequence[tuple[str, int, int]], *, group: str | None = None, skipped: int = 0
) -> errors.Notice:
    """T072. ``positions``: (topic, partition, next offset); ``skipped``: by start='latest'."""
    message = f"at the end of {_positions(positions)}"
    hint = "Set start='earliest'"
    if group is not None:
        message += f"; group '{shown(group)}' is caught up"
        hint = f"Read them: tailrace group reset {shown(group)} --to start"
    if not skipped:
        return errors.Notice("T072", message)
    message += f"; start='latest' skipped {count(skipped)} older records"
    return errors.Notice("T072", message, hint)


def starting_at(positions: Sequence[tuple[str, int, int]], *, group: str) -> errors.Notice:
    """T073. ``positions``: (topic, partition, next offset)."""
    return errors.Notice(
        "T073", f"group '{shown(group)}' has no commits; starting at {_positions(positions)}"
    )


def rebalanced(
    moved: Sequence[tuple[str, Sequence[int], str]], *, more: int, reason: str, took_ms: int
) -> str:
    """C14's line. ``moved``: (topic, partitions, client id); ``more``: partitions not listed."""
    parts = [
        f"{', '.join(partition_name(topic, number) for number in numbers)} -> {shown(client_id)}"
        for topic, numbers, client_id in moved
    ]
    if more:
        parts.append(f"{count(more)} more")
    where = "; ".join(parts) or "nothing moved"
    return f"rebalanced: {where} ({shown(reason)}), {count(took_ms)} ms"


def _positions(positions: Sequence[tuple[str, int, int]]) -> str:
    return ", ".join(record_name(*position) for position in positions)
