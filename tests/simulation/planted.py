"""Known bugs, put into the product on demand: they measure the tests.

Each is a patch of the product's code from outside, under the number of safety.md's table where it
has one, and says which of the tests must find it: ``seeds`` of the first scenario, of the second
(``keeping``) or of the third (``groups``), the crash ``scripts``, or the ``machine``.
"""

import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

from tailrace.broker import catalog
from tailrace.broker.catalog import Topic
from tailrace.broker.clock import Timekeeper
from tailrace.protocol.batch import BatchHeader
from tailrace.storage import checkpoint, producers, rounds
from tailrace.storage.directory import DataDirectory
from tailrace.storage.disk import Disk, File
from tailrace.storage.maintenance import Maintenance
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerPlan, ProducerTable, Sent
from tailrace.storage.reader import LogSlice, Reader
from tailrace.storage.recovery import Recovered, Recovery
from tailrace.storage.rewrite import Rewritten
from tailrace.storage.rounds import SyncPoint
from tailrace.storage.segment import Range, Segment
from tailrace.storage.swap import SwapName, replaced_by
from tailrace.storage.thinning import Kept
from tests.simulation import planted_cluster, planted_groups

Finder = Literal["seeds", "keeping", "groups", "cluster", "tombstones", "scripts", "machine"]
Patches = Sequence[Any]


class Lax:
    """A disk of which some calls do nothing."""

    def __init__(self, disk: Disk, *calls: str) -> None:
        self._disk = disk
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return self._nothing if name in self._calls else getattr(self._disk, name)

    def _nothing(self, *given: Any) -> None:
        pass

    def sync_together(self, files: Sequence[Any], directories: Sequence[str]) -> None:
        self.sync(files)
        for path in directories:
            self.sync_directory(path)


def everywhere(name: str, function: Callable[..., Any]) -> Patches:
    """Replace a function of ``rounds`` wherever it was imported to."""
    places = ("tailrace.broker.flusher", "tailrace.storage.log")
    return [patch(f"{place}.{name}", function) for place in places]


def no_fsync() -> Patches:
    """Acks leave although nothing was synced."""

    def pretend(disk: Disk, points: Sequence[SyncPoint]) -> None:
        rounds.sync_round(Lax(disk, "sync", "sync_directory"), points)

    return everywhere("sync_round", pretend)


def no_directory_fsync() -> Patches:
    """A new segment's name is not synced with its content."""

    def nameless(disk: Disk, points: Sequence[SyncPoint]) -> None:
        rounds.sync_round(Lax(disk, "sync_directory"), points)

    return everywhere("sync_round", nameless)


def rename_before_fsync() -> Patches:
    """A checkpoint takes the place of the old one before its content is durable."""

    def hasty(disk: Disk, path: str, data: bytes) -> None:
        file = checkpoint.stage(disk, path, data)
        checkpoint.publish(disk, path)
        disk.sync([file])
        file.close()
        disk.sync_directory(checkpoint.parent(path))

    return [patch.object(checkpoint, "write", hasty)]


def retry_after_eio() -> Patches:
    """A sync that failed is tried again, and then it succeeds (fsyncgate)."""

    def stubborn(disk: Disk, points: Sequence[SyncPoint]) -> None:
        try:
            rounds.sync_round(disk, points)
        except OSError:
            rounds.sync_round(disk, points)

    return everywhere("sync_round", stubborn)


def cut_at_first_bad_checksum() -> Patches:
    """Recovery takes every bad batch for a torn tail, wherever it stands."""
    read_marks = Recovery._read_marks

    def forget(self: Any, *given: Any) -> None:
        read_marks(self, *given)
        self.mark = Mark(self.start, -1, 0)

    return [patch.object(Recovery, "_read_marks", forget)]


def clean_stop_believes_the_mark() -> Patches:
    """After a clean stop the log ends at the mark, though a power cut may have taken that back."""

    def believe(segment: Segment) -> bool:
        return True

    return [patch("tailrace.storage.recovery._nothing_behind", believe)]


def producers_not_restored() -> Patches:
    """A restart forgets who has sent what."""
    recovered = Recovery.recovered

    def forget(self: Recovery) -> Recovered:
        found = recovered(self)
        return replace(found, producers=ProducerTable("t", 0))

    return [patch.object(Recovery, "recovered", forget)]


def window_off_by_one() -> Patches:
    """Four batches of a producer are known again, not five."""
    return [patch.object(producers, "WINDOW", producers.WINDOW - 1)]


def no_sequence_check() -> Patches:
    """A retry is written again."""

    def accept(self: ProducerPlan, header: BatchHeader) -> Sent | None:
        return None

    return [patch.object(ProducerPlan, "check", accept)]


def read_past_the_end() -> Patches:
    """A slice that reaches the log end takes whatever stands behind it in the file."""
    read = Reader.read

    def greedy(self: Reader, *given: int) -> LogSlice:
        found = read(self, *given)
        if not found.ranges or found.next_offset < given[-1]:
            return found
        last = found.ranges[-1]
        more = min(100, last.file.size() - last.offset - last.length)
        ranges = [*found.ranges[:-1], Range(last.file, last.offset, last.length + more)]
        return LogSlice(ranges, found.first_offset, found.next_offset, found.length + more)

    return [patch.object(Reader, "read", greedy)]


def swap_not_atomic() -> Patches:
    """A rewritten segment is renamed over the first of those it replaces, and the others go."""

    def publish(self: Any, rewritten: Rewritten, half_made: str) -> File:
        disk, path = self._disk, self._path
        swap = SwapName(rewritten.base_offset, rewritten.next_offset)
        file: File = disk.open(half_made)
        disk.rename(half_made, swap.final(path))
        for name in replaced_by(swap, disk.list(path)):
            disk.remove(f"{path}/{name}")
        disk.sync_directory(path)
        return file

    return [patch.object(Maintenance, "publish", publish)]


def retention_by_wall_clock() -> Patches:
    """A step of the wall clock makes everything old."""

    def now_ms(self: Any) -> int:
        wall_ms: int = self._clock.wall_ms()
        return wall_ms

    def age_ms(self: Any, stamp_ms: int) -> int:
        return now_ms(self) - stamp_ms

    return [
        patch.object(Timekeeper, "now_ms", now_ms),
        patch.object(Timekeeper, "age_ms", age_ms),
    ]


def recreated_topic_reuses_directory() -> Patches:
    """A topic's id follows from its name, and its directory is left when it is deleted."""

    def new_topic(name: str, topic_id: bytes, **more: Any) -> Topic:
        return catalog.new_topic(name, name.encode().ljust(16, b"-")[:16], **more)

    def leave(self: DataDirectory, topic_id: bytes, partition: int) -> None:
        pass

    return [
        patch("tailrace.broker.topics.new_topic", new_topic),
        patch.object(DataDirectory, "remove_partition", leave),
    ]


def rewrite_drops_a_record() -> Patches:
    """Of a batch that loses records one more goes, which should have stayed."""

    name = "tailrace.storage.rewrite._Rewriting._judge"
    judge = pkgutil.resolve_name(name)

    def greedy(*given: Any) -> None:
        *before, verdict, glance = given

        def wrong(*batch: Any) -> Kept | None:
            kept: Kept | None = verdict(*batch)
            return kept if kept is None else replace(kept, keep=kept.keep[1:])

        judge(*before, wrong, glance)

    return [patch(name, greedy)]


def deletion_takes_another_directory() -> Patches:
    """With a deleted topic's directory goes one of a topic that lives."""
    remove_partition = DataDirectory.remove_partition

    def too_much(self: DataDirectory, topic_id: bytes, partition: int) -> None:
        remove_partition(self, topic_id, partition)
        for other in self.partitions()[:1]:
            remove_partition(self, *other)

    return [patch.object(DataDirectory, "remove_partition", too_much)]


@dataclass(frozen=True)
class Bug:
    """A planted bug and the tests that must find it."""

    number: str  # in safety.md; empty: it has none
    patches: Callable[[], Patches]
    finders: tuple[Finder, ...]


BUGS: dict[str, Bug] = {
    "no-fsync": Bug("8", no_fsync, ("seeds", "cluster", "scripts", "machine")),
    "no-directory-fsync": Bug("9", no_directory_fsync, ("scripts",)),
    "rename-before-fsync": Bug("10", rename_before_fsync, ("scripts",)),
    "retry-after-eio": Bug("11", retry_after_eio, ("seeds", "machine")),
    "cut-at-first-bad-checksum": Bug("13", cut_at_first_bad_checksum, ("seeds",)),
    "clean-stop-believes-the-mark": Bug("", clean_stop_believes_the_mark, ("scripts",)),
    "producers-not-restored": Bug("14", producers_not_restored, ("seeds", "scripts", "machine")),
    "window-off-by-one": Bug("15", window_off_by_one, ("machine",)),
    "no-sequence-check": Bug("15 and more", no_sequence_check, ("seeds", "scripts", "machine")),
    "swap-not-atomic": Bug("21", swap_not_atomic, ("scripts",)),
    "retention-by-wall-clock": Bug("22", retention_by_wall_clock, ("keeping",)),
    "recreated-topic-reuses-directory": Bug("24", recreated_topic_reuses_directory, ("keeping",)),
    "rewrite-drops-a-record": Bug("", rewrite_drops_a_record, ("scripts", "keeping")),
    "deletion-takes-another-directory": Bug("", deletion_takes_another_directory, ("keeping",)),
    "read-past-the-end": Bug("28", read_past_the_end, ("machine",)),
    "commit-before-append": Bug("17", planted_groups.commit_before_append, ("groups",)),
    "generation-not-checked": Bug("18", planted_groups.generation_not_checked, ("groups",)),
    "offsets-while-loading": Bug("19", planted_groups.offsets_while_loading, ("groups",)),
    "given-away-before-released": Bug("", planted_groups.given_away_before_released, ("groups",)),
    "commits-what-is-in-hand": Bug("", planted_groups.commits_what_is_in_hand, ("groups",)),
    "truncates-to-watermark": Bug("1", planted_cluster.truncates_to_watermark, ("cluster",)),
    "fetch-epoch-not-checked": Bug("2", planted_cluster.fetch_epoch_not_checked, ("cluster",)),
    "ack-on-isr": Bug("3", planted_cluster.ack_on_isr, ("cluster",)),
    "joins-below-epoch-start": Bug("4", planted_cluster.joins_below_epoch_start, ("cluster",)),
    "joins-by-old-broker-epoch": Bug("5", planted_cluster.joins_by_old_broker_epoch, ("cluster",)),
    "alter-isr-without-cas": Bug("6", planted_cluster.alter_isr_without_cas, ("cluster",)),
    "leads-after-lease": Bug("7", planted_cluster.leads_after_lease, ("cluster",)),
    "follower-does-not-verify": Bug("12", planted_cluster.follower_does_not_verify, ("cluster",)),
    "tombstones-by-time-alone": Bug(
        "20", planted_cluster.tombstones_by_time_alone, ("tombstones",)
    ),
    "epoch-written-late": Bug("25", planted_cluster.epoch_written_late, ("cluster",)),
    "watch-trusted": Bug("26", planted_cluster.watch_trusted, ("cluster",)),
    "watermark-falls": Bug("23", planted_cluster.watermark_falls, ("cluster",)),
    "lost-reply-is-a-refusal": Bug("27", planted_cluster.lost_reply_is_a_refusal, ("cluster",)),
}


@contextmanager
def plant(name: str | None) -> Iterator[None]:
    """Put a bug in for the time of the block; None: none."""
    with ExitStack() as stack:
        for each in BUGS[name].patches() if name is not None else ():
            stack.enter_context(each)
        yield
