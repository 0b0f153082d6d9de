"""How a partition and a topic are: what readers and producers wait for, why nothing goes (pure).

The verdict is the partition's status; a topic's is its worst partition's. ``next`` belongs to the
first thing that is wrong; None: nothing is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tailrace.broker.explain import (
    Damage,
    Lacking,
    Reading,
    ReplicaFacts,
    Uncommitted,
    facts,
    standing_facts,
)
from tailrace.protocol import texts_explain as texts, texts_explain_cluster as replica_texts
from tailrace.protocol.shapes import Explanation, Fact, PartitionStatus
from tailrace.protocol.texts import partition_name, shown

STATUSES: tuple[PartitionStatus, ...] = ("ok", "under_replicated", "below_min_isr", "offline")
DOUBT_S = 1.0  # so much the two clocks may differ by


@dataclass(frozen=True, slots=True)
class Shrinking:
    """What removes records from a log, and what there is to remove."""

    size_bytes: int
    segments: int
    open_bytes: int  # of the active segment
    open_limit_bytes: int
    open_left_s: float  # until it is closed by its age
    retention: str  # as set: "7d", "forever"
    retention_s: float  # inf: for ever
    retention_bytes: int | None
    oldest_s: float | None  # age of the oldest closed segment's last record, as retention reckons
    oldest_wall_s: float | None  # the same by the wall clock
    busy: bool  # a compaction or an erasure is at work there


@dataclass(frozen=True, slots=True)
class CompactionFacts:
    """How far a partition of a compacted topic is cleaned."""

    state: str
    clean_offset: int
    dirty_bytes: int
    dirty_ratio: float
    reason: str
    error: str | None


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What producers of this topic meet on the disk."""

    broker: str
    refuses: bool  # producers get T031
    has: str  # "1.5 GiB free"
    limit: str  # "min_free 5%"
    on_full: str
    memory_full_bytes: int | None = None  # the budget of requests in hand, if it is used up


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """All that is known of one partition; without a log, why it has none."""

    topic: str
    partition: int
    disk: DiskFacts
    cleanup: str
    durability: str
    offline: str = ""
    leader: str | None = None
    leader_epoch: int = -1
    log_start: int = -1
    high_watermark: int = -1
    log_end: int = -1
    last_append_time: int | None = None
    uncommitted: Uncommitted | None = None
    damage: tuple[Damage, ...] = ()
    shrinking: Shrinking | None = None  # None: offline
    compaction: CompactionFacts | None = None
    erasures: int = 0  # pending
    erasure_problem: str = ""
    reading: Reading | None = None
    standing: PartitionStatus = "ok"
    replicas: ReplicaFacts | None = None  # None: there is one, or nothing is known
    elsewhere_bytes: int = 0  # of its log, where another broker leads it

    @property
    def status(self) -> PartitionStatus:
        return "offline" if self.offline else self.standing

    @property
    def size_bytes(self) -> int:
        return self.elsewhere_bytes if self.shrinking is None else self.shrinking.size_bytes


Finding = tuple[str, str | None]  # a sentence, and the command that goes with it


def explain_partition(known: PartitionFacts) -> Explanation:
    """One partition."""
    where = (known.topic, known.partition)
    if known.offline:
        found: list[Finding] = [(texts.offline(*where, known.offline), texts.HEALTH)]
        sentences = []
    else:
        found = _troubles(known)
        sentences = [texts.serves(*where, known.log_start, known.high_watermark)]
    sentences += [sentence for sentence, _ in found]
    sentences += _why_no_smaller(known)
    reading = known.reading
    if reading is not None and reading.standing is None:
        sentences.append(texts.reads_not(reading.group, known.topic))
    return Explanation(
        target=partition_name(*where),
        kind="partition",
        verdict=known.status,
        summary=" ".join(sentences),
        facts=_facts(known),
        next=next((command for _, command in found if command), None),
    )


def explain_topic(
    name: str, partitions: Sequence[PartitionFacts], groups: Sequence[str], group: str | None
) -> Explanation:
    """A topic: how many partitions are well, and what is wrong with the others."""
    status = max((one.status for one in partitions), key=STATUSES.index)
    down = [one for one in partitions if one.offline]
    records = sum(max(0, one.high_watermark - one.log_start) for one in partitions)
    size_bytes = sum(one.size_bytes for one in partitions)
    if down:
        sentences = [texts.topic_offline(name, len(partitions), len(down))]
    else:
        sentences = [texts.topic_serves(name, len(partitions), records, size_bytes)]
    reads = [one.reading.standing for one in partitions if one.reading is not None]
    behind = [one.lag_records for one in reads if one is not None]
    if group is not None:
        text = texts.group_reads(group, sum(behind)) if behind else texts.reads_not(group, name)
        sentences.append(text)
    troubled = [one for one in partitions if one.offline or _troubles(one)]
    worst = next(iter(down), next(iter(troubled), partitions[0]))
    told = _troubles(worst)
    if worst.offline:
        sentences.append(texts.offline(worst.topic, worst.partition, worst.offline))
    sentences += [sentence for sentence, _ in told]
    sentences += _why_no_smaller(worst) if len(partitions) == 1 else []
    if not troubled:
        following = None
    elif len(partitions) == 1:
        following = next((command for _, command in told if command), texts.HEALTH)
    else:
        following = texts.explain(f"{name}:{worst.partition}")
    return Explanation(
        target=shown(name),
        kind="topic",
        verdict=status,
        summary=" ".join(sentences),
        facts=facts(
            partitions=len(partitions),
            offline_partitions=[one.partition for one in down],
            troubled_partitions=[one.partition for one in troubled],
            records=records,
            size_bytes=size_bytes,
            cleanup=worst.cleanup,
            durability=worst.durability,
            on_full=worst.disk.on_full,
            writes_refused=worst.disk.refuses,
            groups=groups,
            group=group,
            group_lag_records=sum(behind) if behind else None,
        ),
        next=following,
    )


def _troubles(known: PartitionFacts) -> list[Finding]:
    """What is wrong with a partition that is online, the worst first."""
    if known.offline:
        return []
    disk, found = known.disk, _replica_troubles(known)
    if disk.refuses:
        found.append((texts.read_only(disk.broker, disk.has, disk.limit), texts.TOPICS))
    if known.damage:
        first = known.damage[0]
        ranges = [
            texts.damaged_range(one.first_offset, one.next_offset, one.file, one.position)
            for one in known.damage
        ]
        found.append((texts.damaged_ranges(ranges), texts.explain(_at(known, first.first_offset))))
    behind = known.log_end - known.high_watermark
    if behind > 0:
        sentence = texts.uncommitted(behind)
        slow = () if known.replicas is None else known.replicas.slow
        if slow:
            sentence += " " + replica_texts.waits_for_replicas(_why(slow))
        elif (pending := known.uncommitted) is not None:
            sentence += " " + texts.waits_for_sync(pending.sync_s, pending.batches)
        found.append((sentence, replica_texts.BROKERS if slow else texts.DOCTOR))
    if disk.memory_full_bytes is not None:
        found.append((texts.memory_full(disk.memory_full_bytes), texts.DOCTOR))
    if known.compaction is not None and known.compaction.error is not None:
        found.append((texts.compaction_failed(known.compaction.error), texts.DOCTOR))
    if known.erasures and known.erasure_problem:
        sentence = texts.erasures_wait(known.erasures, known.erasure_problem)
        found.append((sentence, texts.DOCTOR))
    reading = known.reading
    if reading is not None and (one := reading.standing) is not None and one.verdict != "ok":
        sentence = texts.group_is_behind(reading.group, one.verdict, one.lag_records, one.position)
        found.append((sentence, texts.explain_group(reading.group)))
    return found


def _replica_troubles(known: PartitionFacts) -> list[Finding]:
    """Why writes are refused or in danger for want of replicas, or of the metadata store."""
    one = known.replicas
    if one is None:
        return []
    found: list[Finding] = []
    if one.no_lease is not None and known.leader is not None:
        found.append((replica_texts.no_lease(known.leader, one.no_lease), texts.HEALTH))
    have, why = len(one.in_sync), _why(one.missing)
    if known.status == "below_min_isr":
        found.append((replica_texts.below_min_isr(have, one.min_isr, why), replica_texts.BROKERS))
    elif known.status == "under_replicated":
        sentence = replica_texts.under_replicated(have, len(one.wanted), why)
        found.append((sentence, replica_texts.BROKERS))
    return found


def _why(lacking: Sequence[Lacking]) -> list[str]:
    return [replica_texts.lacks(one.broker, alive=one.alive, behind=one.behind) for one in lacking]


def _at(known: PartitionFacts, offset: int) -> str:
    return f"{known.topic}:{known.partition}:{max(offset, known.log_start)}"


def _why_no_smaller(known: PartitionFacts) -> list[str]:
    """Why its files stay as large as they are."""
    found: list[str] = []
    if known.compaction is not None and known.compaction.error is None:
        found.append(texts.compaction(known.compaction.state, known.compaction.reason))
    if known.erasures and not known.erasure_problem:
        found.append(texts.erasures_wait(known.erasures, ""))
    log = known.shrinking
    if log is None or not log.size_bytes or known.cleanup == "compact":
        return found
    if log.retention_bytes is None and log.retention_s == float("inf"):
        return [*found, texts.kept_forever()]
    if log.segments == 1:
        return [*found, texts.only_open(log.size_bytes, log.open_limit_bytes, log.open_left_s)]
    if log.retention_bytes is not None:
        found.append(texts.kept_below_size(log.size_bytes, log.retention_bytes))
    if log.oldest_s is None or log.retention_s == float("inf"):
        return found
    if log.oldest_s > log.retention_s:
        return [*found, texts.kept_for_work() if log.busy else texts.kept_for_look()]
    wall_s = log.oldest_s if log.oldest_wall_s is None else log.oldest_wall_s
    if wall_s > log.retention_s and wall_s - log.oldest_s > DOUBT_S:
        return [*found, texts.kept_for_doubt(wall_s - log.oldest_s)]
    return [*found, texts.kept_for(log.retention, log.oldest_s, log.retention_s - log.oldest_s)]


def _facts(known: PartitionFacts) -> list[Fact]:
    log, compaction, pending = known.shrinking, known.compaction, known.uncommitted
    disk = known.disk
    return [
        *facts(
            status=known.status,
            offline=known.offline,
            leader=known.leader,
            leader_epoch=known.leader_epoch if known.leader is not None else None,
            log_start=None if log is None else known.log_start,
            high_watermark=None if log is None else known.high_watermark,
            log_end=None if log is None else known.log_end,
            last_append_time=known.last_append_time,
            **_replica_facts(known.replicas),
            durability=known.durability,
            waiting_batches=None if pending is None else pending.batches,
            sync_seconds=None if pending is None else pending.sync_s,
            writes_refused=disk.refuses,
            disk=f"{disk.has}, {disk.limit}",
            on_full=disk.on_full,
            damaged=list(
                chain.from_iterable((one.first_offset, one.next_offset - 1) for one in known.damage)
            ),
        ),
        *(() if log is None else _shrinking_facts(known, log)),
        *facts(
            compaction=None if compaction is None else compaction.state,
            compaction_reason=None if compaction is None else compaction.reason,
            compaction_error=None if compaction is None else compaction.error,
            clean_offset=None if compaction is None else compaction.clean_offset,
            dirty_bytes=None if compaction is None else compaction.dirty_bytes,
            dirty_ratio=None if compaction is None else compaction.dirty_ratio,
            erasures_pending=known.erasures or None,
            erasure_waits=known.erasure_problem,
        ),
        *standing_facts(known.reading),
    ]


def _replica_facts(one: ReplicaFacts | None) -> dict[str, list[str] | int | None]:
    if one is None:
        return {}
    return {
        "replicas": list(one.wanted),
        "in_sync": list(one.in_sync),
        "min_isr": one.min_isr,
        "not_in_sync": _why(one.missing),
        "waits_for": _why(one.slow),
    }


def _shrinking_facts(known: PartitionFacts, log: Shrinking) -> list[Fact]:
    return facts(
        size_bytes=log.size_bytes,
        segments=log.segments,
        open_segment_bytes=log.open_bytes,
        cleanup=known.cleanup,
        retention=None if known.cleanup == "compact" else log.retention,
        retention_size_bytes=log.retention_bytes,
        oldest_closed_age_seconds=log.oldest_s,
        oldest_closed_age_by_wall_clock_seconds=log.oldest_wall_s,
    )
