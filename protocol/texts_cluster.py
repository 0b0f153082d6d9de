"""Texts about moving leaders and copies between brokers."""

from collections.abc import Sequence

from tailrace.protocol import errors
from tailrace.protocol.texts import partition_name, shown
from tailrace.protocol.texts_explain import listed


def no_such_broker(broker: str, *, known: Sequence[str]) -> errors.ConfigError:
    """T082: a broker that nobody knows."""
    return errors.ConfigError(
        "T082",
        f"broker {shown(broker)} is none of the cluster's: {', '.join(known) or 'none is there'}",
        "List them: tailrace cluster brokers",
        key="broker",
        source=None,
    )


def no_broker_named() -> errors.ConfigError:
    """T082: a partition without copies."""
    return errors.ConfigError(
        "T082",
        "no broker is named: a partition has at least one copy",
        "Name one, the preferred leader first, or none for them to be chosen.",
        key="brokers",
        source=None,
    )


def broker_twice(broker: str) -> errors.ConfigError:
    """T082: one broker holds one copy."""
    return errors.ConfigError(
        "T082",
        f"broker {shown(broker)} is named twice: each holds one copy of a partition",
        "Name every broker once.",
        key="brokers",
        source=None,
    )


def is_drained(broker: str) -> errors.ConfigError:
    """T082: what it is given is taken off it again."""
    return errors.ConfigError(
        "T082",
        f"broker {shown(broker)} is being drained",
        f"Name another one, or have it back: tailrace cluster drain {shown(broker)} --cancel",
        key="brokers",
        source=None,
    )


def too_few_brokers(*, asked: int, there: int) -> errors.ConfigError:
    """T082: more copies than brokers that take any."""
    return errors.ConfigError(
        "T082",
        f"replicas {asked} > {there} brokers that take copies",
        "Add brokers, or ask for fewer replicas.",
        key="replicas",
        source=None,
    )


def other_count(topic: str, *, asked: int, has: int) -> errors.ConfigError:
    """T082: some partitions of a topic cannot have more copies than others."""
    return errors.ConfigError(
        "T082",
        f"{asked} brokers for a partition of '{shown(topic)}', whose partitions have {has} copies",
        f"Name {has} brokers, or the whole topic, to change their number.",
        key="brokers",
        source=None,
    )


def growth_of_some(topic: str, partition: int, *, complete: int, wanted: int) -> errors.ConfigError:
    """T082: with what is complete some partitions would have fewer copies than others."""
    return errors.ConfigError(
        "T082",
        f"{complete} of the {wanted} copies of {partition_name(topic, partition)} are complete:"
        " their number is the whole topic's, and nothing was cancelled",
        f"Cancel all of it: tailrace cluster reassign {shown(topic)} --cancel",
        key="replicas",
        source=None,
    )


def single_copy(topic: str, partition: int, *, wanted: int) -> errors.ConfigError:
    """T082: the next disk that fails would be the end of it."""
    return errors.ConfigError(
        "T082",
        f"a single one of the {wanted} copies of {partition_name(topic, partition)} is complete:"
        " nothing was cancelled",
        "Wait for another one, or say that one is enough: tailrace cluster reassign"
        f" {shown(topic)} --replicas 1",
        key="replicas",
        source=None,
    )


def not_preferred(
    topic: str, partition: int, *, preferred: str, reason: str
) -> errors.PartitionOffline:
    """T033: the preferred leader cannot lead now. ``reason``: "is not in sync"."""
    where = f"{shown(topic)}:{partition}"
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)}: preferred leader {shown(preferred)} {reason}",
        f"Look: tailrace explain {where}",
        **{"topic": topic, "partition": partition},
    )


def nobody_leads(
    topic: str, partition: int, *, candidates: Sequence[str]
) -> errors.PartitionOffline:
    """T033: there is no leader to be moved."""
    start = f"Start {listed(candidates)}" if candidates else "No broker has all of it"
    where = f"{shown(topic)}:{partition}"
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)} is offline: no broker in sync is up",
        f"{start}, or lose what others lack: tailrace cluster elect {where} --unclean",
        **{"topic": topic, "partition": partition},
    )


def waits_for(brokers: Sequence[str], *, doubted: bool) -> str:
    """Whom a partition without a leader waits for. ``doubted``: none of them has all for sure."""
    if not brokers:
        return "nobody: they all lost their copies"
    return f"{'all' if doubted else 'one'} of {', '.join(map(shown, brokers))}"


def has_leader(topic: str, partition: int, *, leader: str) -> errors.PartitionOffline:
    """T033: an unclean election is for partitions without a leader."""
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)} is led by {shown(leader)}: nothing needs to be lost",
        "Leave it, or stop that broker first.",
        **{"topic": topic, "partition": partition},
    )


def clean_is_possible(
    topic: str, partition: int, *, brokers: Sequence[str]
) -> errors.PartitionOffline:
    """T033: somebody can lead without any loss, and will in a moment."""
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)}: {listed(brokers)} can lead without losing anything",
        "It is elected in a moment: tailrace cluster health --wait 10s",
        **{"topic": topic, "partition": partition},
    )


def no_copy(topic: str, partition: int, *, brokers: Sequence[str]) -> errors.PartitionOffline:
    """T033: nobody who is up holds anything of it."""
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)}: no broker with a copy is up",
        f"Start {listed(brokers)}.",
        **{"topic": topic, "partition": partition},
    )


def not_confirmed(
    topic: str, partition: int, *, leader: str, log_end: int
) -> errors.PartitionOffline:
    """T033: what was said yes to is not what would be done now. ``log_end``: -1 if not unclean."""
    ends = f", with a log that ends at {log_end}" if log_end >= 0 else ""
    unclean = " --unclean" if log_end >= 0 else ""
    where = f"{shown(topic)}:{partition}"
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)}: {shown(leader)} would lead now{ends}: something else"
        " was confirmed",
        f"Look again: tailrace cluster elect {where}{unclean} --dry-run",
        **{"topic": topic, "partition": partition},
    )


def not_stored(topic: str, partition: int, *, unclean: bool) -> errors.PartitionOffline:
    """T033: somebody else was faster."""
    where = f"{shown(topic)}:{partition}" + (" --unclean" if unclean else "")
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)}: others changed who leads it or has copies of it"
        " meanwhile",
        f"Try again: tailrace cluster elect {where}",
        **{"topic": topic, "partition": partition},
    )
