"""All partitions of this broker: open and recover, look up, close.

Invariants:
- a partition is on the shelf from when its log was recovered until this broker is none of its
  replicas any more; one that could not be opened has an error in its place, and the rest goes on;
- a directory that the metadata store does not know is left alone, and one whose contents the store
  counts on is never made anew: both would hide a loss (R26, S3).
"""

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tailrace.broker.catalog import Catalog, Leadership, Topic
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.config import TopicConfig
from tailrace.broker.health import Health
from tailrace.broker.metrics import Metrics, PartitionGauges
from tailrace.broker.opener import begin_epochs, open_logs
from tailrace.broker.partition import Partition
from tailrace.broker.space import Space
from tailrace.broker.world import World
from tailrace.protocol import texts
from tailrace.protocol.errors import BrokerError, PartitionOffline, TailraceError
from tailrace.protocol.limits import pieces
from tailrace.protocol.shapes import PartitionStatus
from tailrace.storage.directory import DataDirectory
from tailrace.storage.disk import NO_ROOM
from tailrace.storage.log import LogConfig
from tailrace.storage.opening import Unopened
from tailrace.storage.retention import segment_size_bytes

log = logging.getLogger("tailrace.broker.shelf")

REMOVED_TOGETHER_MAX = 20  # directories, in a thread that others may wait for


@dataclass(frozen=True, slots=True)
class Opening:
    """One partition to be opened."""

    topic: Topic
    number: int
    config: TopicConfig
    counted_on: bool  # by the cluster: what was in its directory must be there


class Shelf:
    def __init__(
        self,
        world: World,
        directory: DataDirectory,
        metrics: Metrics,
        health: Health,
        broker_id: str,
        *,
        verify: Literal["tail", "full"],
        space: Space,
        now_ms: Callable[[], int],
    ) -> None:
        self.space = space
        self.on_roll: Callable[[Partition], None] = lambda partition: None  # the janitor's
        self.on_start_told: Callable[[Partition], None] = lambda partition: None  # likewise
        self.on_failed: Callable[[], None] = lambda: None  # a copy is bad: the view's
        self.untrusted = False  # a log could not be opened: what of it is durable is unknown
        self._world = world
        self._directory = directory
        self._metrics = metrics
        self._health = health
        self._broker_id = broker_id
        self._verify: Literal["tail", "full"] = verify
        self._now_ms = now_ms
        self._removals_unsynced = False  # directories were removed, and may come back
        self._partitions: dict[PartitionId, Partition] = {}
        self._broken: dict[PartitionId, TailraceError] = {}
        self._leaving: dict[PartitionId, Partition] = {}
        self.wanting: set[PartitionId] = set()  # those of them that need nothing but room
        self.catalog = Catalog()
        self.view: Callable[[], ClusterView] = ClusterView  # the newest one

    # ── look up ──────────────────────────────────────────────────────────────────────────────

    def find(self, topic_id: bytes, number: int) -> Partition:
        """The partition, which this broker leads; or T010, T011, T032, or what keeps it from being
        served."""
        partition = self._partitions.get((topic_id, number))
        if partition is not None and partition.role == "leader":
            return partition
        topic = self.catalog.by_id.get(topic_id)
        gone = topic_id not in self.view().catalog.by_id  # the catalog here follows a little later
        if topic is None or topic.state != "live" or gone:
            raise texts.topic_id_not_found(topic_id, broker=self._broker_id)
        if number >= len(topic.partitions):
            raise texts.partition_not_found(topic.name, number, partitions=len(topic.partitions))
        leader = self.leader_of(topic_id, number)
        if leader != self._broker_id:
            raise texts.not_leader(topic.name, number, broker=self._broker_id, leader=leader)
        broken = self._broken.get((topic_id, number))
        raise broken or texts.partition_offline(topic.name, number, reason="it is being opened")

    def serving(self, topic_id: bytes, number: int) -> Partition:
        """As ``find``, or why it is offline."""
        partition = self.find(topic_id, number)
        if partition.offline is not None:
            raise partition.offline
        return partition

    def leader_of(self, topic_id: bytes, number: int) -> str | None:
        """Who leads it, as far as is known."""
        known = self.view().leaderships.get((topic_id, number))
        return None if known is None else known.leader

    def get(self, topic_id: bytes, number: int) -> Partition | None:
        """The copy that is here, whoever leads."""
        return self._partitions.get((topic_id, number))

    def __iter__(self) -> Iterator[Partition]:
        return iter(tuple(self._partitions.values()))

    @property
    def size_bytes(self) -> int:
        """Of all records."""
        return sum(partition.log.size_bytes for partition in self._partitions.values())

    def damage(self) -> list[str]:
        """Every damaged range of records (R25), for people; the log has more of each."""
        return [text for partition in self for text in partition.damage()]

    def of(self, topic: Topic) -> list[Partition]:
        """The partitions of a topic that are open."""
        numbers = range(len(topic.partitions))
        found = (self._partitions.get((topic.topic_id, number)) for number in numbers)
        return [partition for partition in found if partition is not None]

    def broken(self, topic: Topic) -> TailraceError | None:
        """Why some partition of the topic could not be opened."""
        return next(
            (error for (topic_id, _), error in self._broken.items() if topic_id == topic.topic_id),
            None,
        )

    def unusable(self, where: PartitionId) -> bool:
        """Whether the copy that should be here could not be opened, or failed since then."""
        partition = self._partitions.get(where)
        return where in self._broken if partition is None else not partition.serving

    def held(self) -> set[PartitionId]:
        """Partitions of which there is a copy here, usable or not."""
        return {*self._partitions, *self._broken}

    def missing(self, where: PartitionId) -> bool:
        """Whether there is no directory of it."""
        return not self._world.disk.exists(self._directory.partition_path(*where))

    def strangers(self) -> list[PartitionId]:
        """Directories of partitions that are not on the shelf."""
        held = self.held()
        return [where for where in self._directory.partitions() if where not in held]

    # ── room ─────────────────────────────────────────────────────────────────────────────────

    def check_room(self, partition: Partition) -> None:
        """Raise T031 while the topic may not take room from the disk. On the hot path."""
        if self.space.room_bytes < 0 or self.space.read_only:
            may_drop = partition.config.on_full == "drop_oldest"
            if not partition.internal and self.space.refuses(may_drop=may_drop):
                raise self._full(partition.topic, partition.number, may_drop=may_drop)

    def check_room_for_topic(self, topic: str, partitions: int) -> None:
        """Raise T031 if there is no room even for the files of a new topic."""
        if self.space.refuses_partitions(partitions):
            raise self._full(topic, None, may_drop=False)

    def appended(self, size_bytes: int) -> None:
        """So much was appended to some partition."""
        self.space.appended(size_bytes)

    def rolled(self, partition: Partition) -> None:
        """A segment of it was closed."""
        self.on_roll(partition)

    def failed(self, partition: Partition) -> None:
        """It went offline: others may have good copies, and lead."""
        self.on_failed()

    def ran_out(self, partition: Partition, error: OSError) -> TailraceError:
        """T031, for a write that found the disk full, or the quota used up."""
        self.space.ran_out(quota=error.errno == errno.EDQUOT)
        may_drop = partition.config.on_full == "drop_oldest"
        return self._full(partition.topic, partition.number, may_drop=may_drop)

    def _full(self, topic: str, number: int | None, *, may_drop: bool) -> TailraceError:
        has, limit = self.space.shortage()
        return texts.storage_full(
            topic,
            number,
            broker=self._broker_id,
            has=has,
            limit=limit,
            retry_after_s=self.space.retry_after_s(may_drop=may_drop),
        )

    def gauges(self) -> Iterator[PartitionGauges]:
        """Every partition, for a scrape; of one that could not be opened no offsets are known."""
        for one in self:
            yield PartitionGauges(
                topic=one.topic,
                partition=one.number,
                log_end=one.log.end,
                high_watermark=one.high_watermark,
                size_bytes=one.log.size_bytes,
                segments=one.log.segment_count,
                leader=one.serving and one.role == "leader",
                status=self._status(one),
                durability=one.config.durability,
                lags=one.replica.lags(one.log.start) if one.role == "leader" else (),
            )
        for topic_id, number in list(self._broken):  # whoever reads this may pause
            topic = self.catalog.by_id.get(topic_id)
            if topic is not None:
                yield PartitionGauges(topic.name, number, -1, -1, 0, 0, False, "offline", "")

    def _status(self, one: Partition) -> PartitionStatus:
        """As its leader tells it; the others only tell that there is none."""
        if not one.serving or one.leadership.leader not in self.view().brokers:
            return "offline"
        if one.role != "leader":
            return "ok"
        if not one.replica.enough:
            return "below_min_isr"
        return "under_replicated" if len(one.leadership.isr) < one.copies else "ok"

    # ── open, close, remove ──────────────────────────────────────────────────────────────────

    async def open(self, openings: Sequence[Opening], *, clean: bool, suspect: bool) -> None:
        """Open and recover these partitions, many at a time. BrokerError T093: a sync failed."""
        if not self._health.recovered:  # else it is no start, but a new topic
            self._health.partitions_total += len(openings)
        waiting: dict[Unopened, Opening] = {}
        for opening in openings:
            self._metrics.topic(opening.topic.name)  # one that cannot be opened has series, too
            one = self._unopened(opening, clean=clean, suspect=suspect)
            if one is None:
                self._opened(1)
            else:
                waiting[one] = opening

        def opened(some: Sequence[Unopened]) -> None:
            for one in some:
                self._put(waiting[one], one)
            self._opened(len(some))

        await open_logs(self._world, self._health, list(waiting), opened)

    def _opened(self, count: int) -> None:
        if not self._health.recovered:
            self._health.partitions_done += count

    async def lead(self, leaderships: Mapping[PartitionId, Leadership]) -> None:
        """Begin these epochs, in the logs first (R8). BrokerError T093: a sync failed."""
        for where in leaderships:
            self._partitions[where].step_down()  # what it followed so far writes nothing more
        for where in leaderships:
            async with self._partitions[where].changing:  # nor does anybody cut the log
                pass
        epochs = {
            self._partitions[where].log: one.leader_epoch for where, one in leaderships.items()
        }
        failed = await begin_epochs(self._world, epochs)
        for where, leadership in leaderships.items():
            partition = self._partitions[where]
            error = failed.get(partition.log)
            if error is None:
                partition.lead(leadership)
                self._broken.pop(where, None)
                self.wanting.discard(where)
            else:
                del self._partitions[where]
                partition.log.close(clean=False)
                self._break(where, partition.topic, error)

    def _unopened(self, opening: Opening, *, clean: bool, suspect: bool) -> Unopened | None:
        """None: its directory is gone."""
        topic, number = opening.topic, opening.number
        path = self._directory.partition_path(topic.topic_id, number)
        if opening.counted_on and not self._world.disk.exists(path):
            self._broken[topic.topic_id, number] = self._missing(topic, number, path)
            return None
        return Unopened(
            self._world.disk,
            path,
            topic_id=topic.topic_id,
            partition=number,
            config=self.log_config(opening.config),
            clean=clean,
            verify=self._verify,
            suspect=suspect,
            topic=topic.name,
            broker=self._broker_id,
        )

    def _put(self, opening: Opening, unopened: Unopened) -> None:
        """On the shelf it goes, or why it cannot."""
        topic, number = opening.topic, opening.number
        where = (topic.topic_id, number)
        assert not isinstance(unopened.error, BrokerError), "a sync failed: none may be used (R21)"
        if unopened.error is not None:
            self._break(where, topic.name, unopened.error)
            return
        try:
            opened = unopened.log(self._now_ms())
        except OSError as error:
            self._break(where, topic.name, error)
            return
        partition = Partition(
            *(topic, number, opening.config, opened, self._metrics.topic(topic.name), self),
            broker_id=self._broker_id,
        )
        self._partitions[where] = partition
        partition.damaged = lambda: self.on_failed()
        partition.advance()
        self._report(partition, self._directory.partition_path(topic.topic_id, number))

    def reconfigure(self, topic: Topic, config: TopicConfig) -> None:
        """Let new settings of a topic hold, and other numbers of copies."""
        for partition in self.of(topic):
            partition.log.reconfigure(self.log_config(config))
            partition.reconfigure(topic, config)

    def log_config(self, config: TopicConfig) -> LogConfig:
        """What the log itself has to know of a topic's settings."""
        partitions = self.catalog.partition_count()
        return log_config(config, capacity_bytes=self.space.capacity_bytes, partitions=partitions)

    def resize_segments(self) -> None:
        """The partitions are more or fewer: each one's share of the disk is another."""
        for partition in self:
            partition.log.reconfigure(self.log_config(partition.config))

    def take_off(self, where: PartitionId, why: TailraceError) -> None:
        """Nobody can get hold of the partition any more; ``put_away`` closes it."""
        self.forget_broken(where)
        partition = self._partitions.pop(where, None)
        if partition is not None:
            partition.fail(why)
            self._leaving[where] = partition

    @property
    def leaving(self) -> list[Partition]:
        """What was taken off and is not closed yet."""
        return list(self._leaving.values())

    def forget_broken(self, where: PartitionId) -> None:
        """It may be opened again."""
        self._broken.pop(where, None)
        self.wanting.discard(where)

    async def put_away(self, taken: Sequence[Partition]) -> None:
        """Close what was taken off and is not being synced."""
        for partition in taken:
            # Whoever rewrites its files comes to an end first, and whoever writes to them.
            async with partition.maintenance, partition.changing:
                partition.log.close(clean=False)
            del self._leaving[partition.topic_id, partition.number]

    async def remove(self, topic: str, gone: Sequence[PartitionId]) -> None:
        """Remove the directories of partitions that were put away.

        T033 if that fails: nothing is lost by trying again. T093 if a sync of it fails.
        """
        there = [where for where in gone if not self.missing(where)]
        run, stuck = self._world.offload.run, None
        self._removals_unsynced |= bool(there)
        try:
            for some in pieces(there, REMOVED_TOGETHER_MAX):
                stuck = await run(self._remove, topic, some)
                if stuck is not None:
                    break
        finally:
            if self._removals_unsynced:  # by an earlier try, too
                stuck = await run(self._sync_removals, topic, gone[0][1]) or stuck
        if stuck is not None:
            raise stuck

    def _remove(self, topic: str, some: Sequence[PartitionId]) -> PartitionOffline | None:
        """In a thread: what keeps one of them from being removed."""
        for where in some:
            try:
                self._directory.remove_partition(*where)
            except OSError as error:
                return _not_removed(topic, where[1], error)
        return None

    def _sync_removals(self, topic: str, number: int) -> PartitionOffline | None:
        """In a thread: what keeps removals from being durable; T093 if a sync fails."""
        try:
            self._directory.sync_removals()
        except OSError as error:  # there is no room: nothing is lost by trying again
            return _not_removed(topic, number, error)
        self._removals_unsynced = False
        return None

    def close(self) -> None:
        """Close every log. After a graceful stop they were settled and flushed before."""
        for partition in (*self, *self.leaving):
            partition.log.close(clean=False)

    def report_stranger(self, where: PartitionId) -> None:
        """Name a directory that no topic owns; whose it is is not ours to guess (R26)."""
        log.warning(
            "%s belongs to no topic of this cluster; it is left alone",
            self._directory.partition_path(*where),
            extra={"event": "recovery.unknown_directory", "code": None},
        )

    def _break(self, where: PartitionId, topic: str, error: OSError) -> None:
        """The partition stays offline until the next start, which trusts nothing unsynced; or,
        if it was for want of room, until there is some."""
        broken: TailraceError = texts.partition_offline(topic, where[1], reason=str(error))
        if error.errno in NO_ROOM:
            broken = self._full(topic, where[1], may_drop=False)
            self.wanting.add(where)
        self._broken[where] = broken
        self.untrusted = True
        log.error("%s", broken, extra={"event": "partition.offline", "code": broken.code})

    def _missing(self, topic: Topic, number: int, path: str) -> TailraceError:
        """A log that was there is gone: it stays offline until the topic is deleted or the
        directory restored. Starting it empty would use its offsets again (S10)."""
        reason = f"its directory {path} is missing"
        self._metrics.data_loss_possible.inc()
        error = texts.partition_offline(topic.name, number, reason=reason)
        log.error("%s", error, extra=_loss(topic.name, number, error.code))
        return error

    def _report(self, partition: Partition, path: str) -> None:
        """Say what recovery checked and cut (S3, R25)."""
        report = partition.log.recovery
        self._metrics.recovery_truncated_bytes.inc(report.truncated_bytes)
        for cut in report.cuts:
            log.warning(
                "%s[%d]: cut %d bytes of a torn tail from %s at %d; it ends at offset %d",
                *(partition.topic, partition.number, cut.bytes, cut.file, cut.position, cut.offset),
                extra={
                    **{"event": "recovery.truncated", "code": None, "topic": partition.topic},
                    **{"partition": partition.number, "truncated_bytes": cut.bytes},
                    "log_end": cut.offset,
                },
            )
        if report.data_loss_possible:
            self._metrics.data_loss_possible.inc()
            log.error(
                "%s[%d]: good batches lay behind the cut in %s: acknowledged records may be lost",
                *(partition.topic, partition.number, path),
                extra=_loss(partition.topic, partition.number, None),
            )
        partition.tell_damage()


def _loss(topic: str, number: int, code: str | None) -> dict[str, object]:
    """Of the line about it, which is told for every partition (S3)."""
    return {
        **{"event": "data-loss-possible", "code": code, "topic": topic, "partition": number},
        "alike": f"{topic}:{number}",
    }


def log_config(config: TopicConfig, *, capacity_bytes: int, partitions: int) -> LogConfig:
    """What the log itself has to know of a topic's settings, of so many on such a disk."""
    return LogConfig(
        segment_bytes=segment_size_bytes(
            config.segment_size_bytes,
            capacity_bytes=capacity_bytes,
            partitions=partitions,
            retention_bytes=config.retention_size_bytes,
        ),
        segment_age_ms=config.segment_age_ms,
        timestamp_ahead_max_ms=config.timestamp_ahead_max_ms,
        record_bytes_max=config.max_record_bytes,
        synced=config.durability != "os",
    )


def _not_removed(topic: str, number: int, error: OSError) -> PartitionOffline:
    stuck = texts.files_left(topic, number, reason=str(error))
    log.error("%s", stuck, extra={"event": "topic.not_removed", "code": stuck.code})
    return stuck
