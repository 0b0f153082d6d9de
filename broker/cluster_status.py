"""How partitions and brokers of a cluster are, told from a view of it (pure).

- A partition is what its in-sync replicas that are alive make it: one that died counts no more,
  also while nobody has taken it out of the in-sync set yet.
- ``under_replicated`` counts every partition with a leader that lacks an in-sync replica, those
  below ``min_isr`` included: each of them waits for a broker.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tailrace.broker import election
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.protocol.shapes import PartitionStatus
from tailrace.protocol.texts import partition_name, shown
from tailrace.protocol.texts_explain import listed
from tailrace.protocol.units import counted, format_duration

STEP = 250  # partitions, about 1 ms
NAMED_MAX = 3  # partitions named in one problem
NOBODY = Leadership(None, -1, ())

MinIsr = Callable[[Topic], int]


def status_of(
    one: Leadership, replicas: Sequence[str], min_isr: int, alive: Callable[[str], bool]
) -> PartitionStatus:
    """One partition; ``replicas``: those that are wanted."""
    if one.leader is None or not alive(one.leader):
        return "offline"
    in_sync = sum(map(alive, one.isr))
    if in_sync < min_isr:
        return "below_min_isr"
    return "under_replicated" if in_sync < len(replicas) else "ok"


@dataclass(slots=True)
class ClusterCounts:
    """Over all partitions of a view."""

    topics: int = 0
    partitions: int = 0
    under_replicated: int = 0
    below_min_isr: int = 0
    offline: int = 0
    leaders: Counter[str] = field(default_factory=Counter[str])  # by broker
    replicas: Counter[str] = field(default_factory=Counter[str])  # likewise
    missing: Counter[str] = field(default_factory=Counter[str])  # likewise: not in sync of so many
    offline_named: list[tuple[str, int, tuple[str, ...]]] = field(
        default_factory=list[tuple[str, int, tuple[str, ...]]]
    )  # topic, partition, who could lead it; a few
    below_named: list[str] = field(default_factory=list[str])  # a few


def count(
    view: ClusterView, min_isr: MinIsr, alive: Callable[[str], bool], counts: ClusterCounts
) -> Iterator[None]:
    """Fill ``counts``, in steps: thousands of partitions take some milliseconds."""
    for topic in view.catalog.by_name.values():
        if topic.state != "live":
            continue
        counts.topics += 1
        needed = min_isr(topic)
        for number, record in enumerate(topic.partitions):
            one = view.leaderships.get((topic.topic_id, number), NOBODY)
            _count_one(counts, topic, number, record.replicas, one, needed, alive)
            if counts.partitions % STEP == 0:
                yield


def _count_one(
    counts: ClusterCounts,
    topic: Topic,
    number: int,
    wanted: tuple[str, ...],
    one: Leadership,
    min_isr: int,
    alive: Callable[[str], bool],
) -> None:
    counts.partitions += 1
    counts.replicas.update(one.replicas or wanted)
    status = status_of(one, wanted, min_isr, alive)
    if status == "offline":
        counts.offline += 1
        if len(counts.offline_named) < NAMED_MAX:
            counts.offline_named.append((topic.name, number, election.waited_for(one)))
        return
    assert one.leader is not None
    counts.leaders[one.leader] += 1
    if status == "ok":
        return
    counts.under_replicated += 1
    counts.missing.update(set(wanted) - {broker for broker in one.isr if alive(broker)})
    if status == "below_min_isr":
        counts.below_min_isr += 1
        if len(counts.below_named) < NAMED_MAX:
            counts.below_named.append(partition_name(topic.name, number))


# ── problems ─────────────────────────────────────────────────────────────────────────────────


def problems(counts: ClusterCounts, gone: Mapping[str, int | None]) -> list[str]:
    """What is wrong with the cluster as a whole, one sentence each, with a next step.

    ``gone``: brokers that are not there, and for how many ms; None: they were never seen.
    """
    found = [_broker_gone(broker, gone[broker]) for broker in sorted(gone)]
    if counts.offline:
        found.append(_offline(counts))
    if counts.below_min_isr:
        names = _named(counts.below_named, counts.below_min_isr)
        found.append(
            f"{_are(counts.below_min_isr)} below min_isr and refuse acks=all ({names}):"
            f" bring back {_missing(counts)}"
        )
    elif counts.under_replicated:
        found.append(
            f"{_are(counts.under_replicated)} under-replicated: not in sync are"
            f" {_missing(counts)}; look: tailrace cluster brokers"
        )
    return found


def _broker_gone(broker: str, ms: int | None) -> str:
    seen = "was not seen yet" if ms is None else f"was last seen {format_duration(ms // 1000)} ago"
    name = shown(broker)
    return f"broker {name} is offline ({seen}): start it, or: tailrace cluster drain {name}"


def _offline(counts: ClusterCounts) -> str:
    names = _named([partition_name(*one[:2]) for one in counts.offline_named], counts.offline)
    could = sorted({broker for *_, brokers in counts.offline_named for broker in brokers})
    text = f"{_are(counts.offline)} offline ({names})"
    return f"{text}: start {listed(could)}" if could else text


def _missing(counts: ClusterCounts) -> str:
    return listed([broker for broker, _ in sorted(counts.missing.items())])


def _named(names: Sequence[str], total: int) -> str:
    return ", ".join((*names, *(["..."] if total > len(names) else [])))


def _are(number: int) -> str:
    return f"{counted(number, 'partition')} {'is' if number == 1 else 'are'}"


# ── brokers ──────────────────────────────────────────────────────────────────────────────────


class Sightings:
    """When each broker was last there, as far as this broker knows: it learns it by looking."""

    def __init__(self) -> None:
        self._present: frozenset[str] = frozenset()
        self._gone: dict[str, int] = {}  # ms since the epoch

    def look(self, brokers: Iterable[str], now_ms: int) -> None:
        """These are registered now."""
        present = frozenset(brokers)
        for broker in self._present - present:
            self._gone[broker] = now_ms
        for broker in present:
            self._gone.pop(broker, None)
        self._present = present

    def last_seen(self, broker: str, now_ms: int) -> int | None:
        """None: never, since this broker runs."""
        return now_ms if broker in self._present else self._gone.get(broker)


def brokers_of(view: ClusterView, counts: ClusterCounts) -> list[str]:
    """Everybody who is registered, or holds something."""
    return sorted({*view.brokers, *counts.replicas, *counts.leaders})


def leaders_of(view: ClusterView, topics: Iterable[Topic]) -> dict[str, list[str]]:
    """Who leads a part of these topics, and the names of those, each once."""
    found: dict[str, dict[str, None]] = {}
    for topic in topics:
        for number in range(len(topic.partitions)):
            leader = leadership(view, (topic.topic_id, number)).leader
            if leader is not None:
                found.setdefault(leader, {})[topic.name] = None
    return {broker: list(names) for broker, names in found.items()}


def leadership(view: ClusterView, where: PartitionId) -> Leadership:
    """What the view says of one partition."""
    return view.leaderships.get(where, NOBODY)
