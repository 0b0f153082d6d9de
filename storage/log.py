"""The log of one partition: appended at the end, read anywhere, cut at either end.

- ``start`` <= ``flushed`` <= ``end``. Appends give offsets from ``end`` on, without gaps (S10);
  everything below ``flushed`` is durable.
- One thread appends, reads, marks and trims (the event loop). ``sync_round`` and the work that
  ``verify_pending`` returns run elsewhere meanwhile.
- An append that fails with an ``OSError`` has changed nothing; its stray bytes are gone, durably,
  before the next one is written. After a failed sync the log refuses everything (R21).
- Bytes are served as they were stored, never decoded, and never unverified: a segment taken on
  trust when the log was opened is verified before its first read (R24).
"""

from collections.abc import Sequence
from typing import Literal

from tailrace.protocol.batch import header_seed
from tailrace.protocol.errors import TailraceError
from tailrace.storage import checkpoint, reset
from tailrace.storage.append import Appended, AppendPlan, Group, LogConfig
from tailrace.storage.disk import Disk
from tailrace.storage.epochs import EpochHistory, encode_epochs
from tailrace.storage.maintenance import Maintenance, SwapJob, TrimJob
from tailrace.storage.marks import Mark
from tailrace.storage.readable import ReadableLog
from tailrace.storage.reader import LogSlice, Reader
from tailrace.storage.recovery import Recovered, RecoveryReport, recover
from tailrace.storage.replicating import ReplicaPlan
from tailrace.storage.rewrite import Rewritten, SegmentSource
from tailrace.storage.rounds import SyncPoint, Unsynced, sync_round
from tailrace.storage.segments import Segments
from tailrace.storage.sidecars import Sidecars
from tailrace.storage.tail import Tail
from tailrace.storage.truncate import beginning, truncate

__all__ = ["Appended", "Log", "LogConfig", "LogSlice", "RecoveryReport"]


class Log(ReadableLog):
    """See the module. Made by ``open``; not used after ``close``."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        name: tuple[str, int],
        broker: str,
        seed: int,
        config: LogConfig,
        recovered: Recovered,
    ) -> None:
        self.path = path
        self._disk = disk
        self._name = name  # topic and partition
        self._broker = broker
        self._seed = seed
        self._config = config
        self._adopt(recovered)

    def _adopt(self, found: Recovered) -> None:
        """Take what was found on the disk for the truth."""
        self.recovery: RecoveryReport = found.report
        self._segments = Segments(self._disk, found.segments)
        self.found_end = self._segments.active.next_offset  # where it ended when it was opened
        self._producers = found.producers
        self._epochs = found.epochs
        mark = Mark.of(self._segments.active.summary())
        self._unsynced = Unsynced(self._disk, self.path, mark)
        self._reader = Reader(
            self._disk,
            self._segments,
            found.quarantined,
            name=self._name,
            broker=self._broker,
            seed=self._seed,
        )
        self._maintenance: Maintenance
        self._sidecars = Sidecars(
            self._disk,
            self.path,
            self._unsynced,
            found=found,
            limit=lambda: self.flushed if self._config.synced else self.end,
            moved=lambda: self._maintenance.trim_covered(),
        )
        self._tail = Tail(
            self._disk,
            self.path,
            self._segments,
            self._unsynced,
            save_index=self._sidecars.save_index,
        )
        self._maintenance = Maintenance(
            self._disk,
            self.path,
            segments=self._segments,
            unsynced=self._unsynced,
            reader=self._reader,
            start=found.start,
            covered=self._sidecars.covered,
            save_index=self._sidecars.save_index,
            sync_failed=self._tail.sync_failed,
        )
        for segment in found.segments[:-1]:
            if not segment.indexed:
                self._sidecars.save_index(segment)
        self._maintenance.trim_covered()
        if self._segments.sealed_below(self.start):  # their removal was interrupted, and waits
            self._sidecars.save_producers(self.end, self._producers)

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        topic_id: bytes,
        partition: int,
        config: LogConfig,
        now_ms: int,
        clean: bool,
        verify: Literal["tail", "full"] = "tail",
        suspect: bool = False,
        topic: str | None = None,
        broker: str = "local",
    ) -> "Log":
        """Recover the log in a directory, or make one. Everything found is durable afterwards.

        ``clean``: whoever used it last closed it with ``clean=True``, so that only what is
        missing is scanned. ``suspect``: a sync failed. ``topic`` and ``broker`` are for messages.
        Raises ``OSError``, BrokerError T093 if a sync fails; whatever is wrong with the files is
        told by ``recovery``.
        """
        name = (topic if topic is not None else topic_id.hex(), partition)
        seed = header_seed(topic_id, partition)
        found = recover(
            disk,
            path,
            name=name,
            seed=seed,
            segment_bytes=config.segment_bytes,
            interval=config.index_interval_bytes,
            clean=clean,
            suspect=suspect,
            verify=verify,
        )
        found.producers.expire(now_ms)
        return cls(disk, path, name=name, broker=broker, seed=seed, config=config, recovered=found)

    # ── appending ────────────────────────────────────────────────────────────────────────────

    def begin_epoch(self, epoch: int) -> None:
        """A leader epoch begins at the log end; durable on return (R8)."""
        epochs = EpochHistory(self._epochs.entries)
        if epochs.begin(epoch, self.end):
            checkpoint.write(self._disk, f"{self.path}/epochs", encode_epochs(epochs))
            self._epochs = epochs

    def epochs_begun(self, epochs: EpochHistory) -> None:
        """The same, for whoever made it durable for many logs at once (``storage.opening``)."""
        self._epochs = epochs

    def append(
        self, batches: Sequence[memoryview], *, leader_epoch: int, now_ms: int
    ) -> list[Appended | TailraceError]:
        """Write producers' batches (writable, patched in place) at the end, in one gathered write.

        One result per batch: where it stands, also for a duplicate, or why it was refused
        (T021, T022, T028, T038, T039). Readable at once, durable after the next sync round.
        Raises ``OSError`` (a full disk, say) with log and producers unchanged, and BrokerError
        T093 if the log cannot be trusted any more.
        """
        self._tail.ready()
        if leader_epoch > self._epochs.latest:
            self.begin_epoch(leader_epoch)
        assert leader_epoch == self._epochs.latest, "leader epochs never fall (S9)"
        time = max(now_ms, self._tail.append_time)  # R20
        plan = AppendPlan(
            self._name,
            self._seed,
            self._config,
            self._segments.active,
            self._producers.plan(),
            leader_epoch=leader_epoch,
            now_ms=now_ms,
            append_time=time,
        )
        plan.take(batches)
        if plan.groups:
            self._tail.write(plan.groups, self._config)
            plan.producers.commit()
            self._sidecars.appended(self._segments.active, self._producers)
        return plan.results

    def plan_replica(self, batches: memoryview, *, leader_epoch: int) -> ReplicaPlan:
        """What taking over these whole batches of a leader in this epoch will do: they are
        verified here. ``plan.epochs``, if any, is best made durable for many logs at once first.

        Raises ReplicaRefused, and BeginsBelow of it.
        """
        return ReplicaPlan(
            batches,
            self._seed,
            self._config,
            self._segments.active,
            self._epochs,
            append_time=self._tail.append_time,
            leader_epoch=leader_epoch,
        )

    def append_replica(self, plan: ReplicaPlan) -> None:
        """Write them at the end as they are, in one gathered write. Errors are ``append``'s."""
        self._tail.ready()
        assert plan.begins_at == self.end, "the log changed since it was planned"
        if plan.epochs is not None and plan.epochs is not self._epochs:
            checkpoint.write(self._disk, f"{self.path}/epochs", encode_epochs(plan.epochs))
            self._epochs = plan.epochs
        if plan.groups:
            self._tail.write(plan.groups, self._config)
            plan.replay(self._producers)
            self._sidecars.appended(self._segments.active, self._producers)

    def expire_producers(self, now_ms: int) -> int:
        """Forget producers that were silent for a day; how many they were."""
        return self._producers.expire(now_ms)

    def roll_if_old(self, now_ms: int) -> bool:
        """Seal an active segment that is past its age, so that retention may take it one day."""
        self._tail.ready()
        active, age_max = self._segments.active, self._config.segment_age_ms
        if age_max is None or active.first_append_time < 0:
            return False
        return now_ms - active.first_append_time >= age_max and self.roll()

    def roll(self) -> bool:
        """Seal the active segment, if it holds anything. Raises ``OSError``, nothing changed."""
        self._tail.ready()
        active = self._segments.active
        if active.next_offset == active.base_offset:
            return False
        group = Group(active.next_offset, rolls=True)
        self._tail.write([group], self._config)
        self._sidecars.appended(self._segments.active, self._producers)
        return True

    def write_ahead(self, bytes_max: int) -> int:
        """Write zeros ahead of the end while the disk is idle: that halves a small sync.

        Returns how many bytes, at most ``bytes_max``. A later sync round makes them count.
        Raises ``OSError``, without consequence. Never concurrent with ``append``.
        """
        return self._tail.write_ahead(bytes_max)

    @property
    def zeros_ahead(self) -> int:
        """How many of those bytes are left."""
        return self._tail.zeros_ahead

    # ── syncing ──────────────────────────────────────────────────────────────────────────────

    @property
    def needs_sync(self) -> bool:
        """Whether a sync round has anything to do here."""
        return self._unsynced.pending

    def sync_point(self) -> SyncPoint:
        """What is written by now: give it to ``rounds.sync_round``, then to ``mark_synced``."""
        return self._unsynced.point(self._segments.active)

    def mark_synced(self, point: SyncPoint) -> None:
        """The round ended well: all below ``point.end`` is durable. Writes the mark."""
        if point.owner is self._unsynced:
            self._unsynced.synced(point)

    def sync(self) -> None:
        """A sync round of this log alone, here and now. Raises BrokerError T093."""
        self._tail.ready()
        point = self.sync_point()
        try:
            sync_round(self._disk, [point])
        except OSError as error:
            raise self._tail.sync_failed(error) from error
        self.mark_synced(point)

    # ── trimming and rewriting (storage.maintenance) ─────────────────────────────────────────

    def trim(self, offset: int, *, exact: bool = False) -> TrimJob | None:
        """A job that removes the sealed segments wholly below ``offset``, and moves the start.

        The start goes to the end of what is removed; ``exact``: to ``offset`` itself, which must
        be flushed. Segments stay, for now, whose producers' state is in no durable snapshot yet
        (R35), which a sync round after their sealing sees to: trim again then. None: nothing is
        to be done, not even what an earlier job left.

        ``job.publish()`` in a thread, ``trimmed(job)`` here, ``job.finish()`` in a thread.
        """
        assert not exact or offset <= self.flushed, "the log start is durable"
        return self._maintenance.trim(offset, exact=exact)

    def trimmed(self, job: TrimJob) -> None:
        """The job is published: readers below the new start get T041 from now on."""
        self._maintenance.trimmed(job)

    def rewritable(self, up_to: int) -> list[SegmentSource]:
        """The segments wholly below ``up_to`` that may be given to ``rewrite``, oldest first.

        They are sealed, flushed, indexed, without a damaged range, and their producers' state is
        in a durable snapshot; where one is missing, base and next offset of its neighbours do not
        meet. A topic that is never synced (durability ``os``) needs a sync round of its own first.
        """
        return self._maintenance.rewritable(up_to)

    def cover(self) -> None:
        """Let the next sync round save the producers, so that all that is sealed can be rewritten.

        Sealing a segment does the same; a crash may have taken what that saved.
        """
        self._sidecars.save_producers(self.end, self._producers)

    def swap(self, rewritten: Rewritten) -> SwapJob:
        """A job that puts a rewritten segment in the place of those it was made of.

        ``job.publish()`` in a thread, ``replace(job)`` here, ``job.finish()`` in a thread,
        ``replaced(job)`` here. Until then nothing else may be trimmed, swapped or truncated.
        """
        return self._maintenance.swap(rewritten)

    def replace(self, job: SwapJob) -> None:
        """The job is published: what is read from now on is the new segment."""
        self._maintenance.replace(job)

    def replaced(self, job: SwapJob) -> None:
        """The job is finished, or failed to: then the next one ends it. A sync round may follow."""
        self._maintenance.replaced(job)

    def drop_before(self, offset: int) -> int:
        """A whole trim, here and now; how many segments went. Raises ``OSError``."""
        return self._maintenance.trim_now(offset, exact=False)

    def set_start(self, offset: int) -> None:
        """Move the start up to ``offset``, here and now, and remove what lies wholly below."""
        assert offset <= self.flushed, "the log start is durable"
        self._maintenance.trim_now(offset, exact=True)

    def truncate_to(self, offset: int) -> None:
        """Remove all batches that end above ``offset``, durably. They must not be committed.

        No sync round with this log may be under way; older sync points are void. Everything else
        is then read from the files again, as after a crash. ``NotCut`` leaves the log as it was.
        """
        self._tail.ready()
        if offset >= self.end:
            return
        truncate(
            self._disk,
            self.path,
            self._segments,
            self._reader,
            start=self.start,
            flushed=self.flushed,
            offset=offset,
        )
        self._reopen()

    def truncate_for(self, epoch: int, end: int) -> None:
        """A leader's log is another one behind ``end``, where its ``epoch`` ends: remove what this
        one holds behind the end of that epoch (R1). Otherwise as ``truncate_to``."""
        self.cut_back(min(end, self._epochs.end_of(epoch, self.end).start_offset))

    def cut_back(self, offset: int) -> None:
        """``truncate_to``, and to before the log start if need be: then the log is empty."""
        if offset >= self.end:
            return
        if offset >= self.start and self._reader.boundary(offset)[2] >= self.start:
            self.truncate_to(offset)
        else:
            self.reset_to(offset)

    def reset_to(self, offset: int) -> None:
        """Remove everything, durably: an empty log that starts at ``offset``. As ``truncate_to``.

        Any other ``OSError`` leaves it to the next attempt, or start: nothing may be read until
        then.
        """
        self._tail.ready()
        with beginning():
            reset.begin(self._disk, self.path, offset)
        self._reopen()

    def _reopen(self) -> None:
        self._unsynced.close()
        self._segments.release_all()
        self._adopt(
            recover(
                self._disk,
                self.path,
                name=self._name,
                seed=self._seed,
                segment_bytes=self._config.segment_bytes,
                interval=self._config.index_interval_bytes,
                clean=False,
                suspect=False,
                verify="tail",
            )
        )

    # ── settings and end ─────────────────────────────────────────────────────────────────────

    def reconfigure(self, config: LogConfig) -> None:
        """New settings; the segment size takes effect with the next segment."""
        self._config = config

    def settle(self) -> None:
        """Let the next sync round save what a clean close saves, so that logs can share one."""
        self._sidecars.save_so_far(self._segments.active, self._producers)

    def close(self, *, clean: bool) -> None:
        """Let go of all files. ``clean``: sync, and save what spares the next start a scan.

        Raises BrokerError T093 if that fails. Slices that are still being sent stay valid.
        """
        if clean:
            self.settle()
            self.sync()
        self._unsynced.close()
        self._segments.release_all()
