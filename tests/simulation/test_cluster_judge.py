"""What the judges of the cluster find, each in a small course of events that has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tailrace.broker.catalog import Leadership, PartitionRecord, Topic, partition_key
from tailrace.broker.members import BrokerRecord
from tailrace.broker.metadata import Entry as Stored
from tailrace.simulation.cluster_judge import ClusterJudge, PartitionFacts
from tailrace.simulation.content import Content
from tailrace.simulation.meta import StoreChange
from tailrace.simulation.replica_logs import Entry, ReplicaLog
from tailrace.simulation.store_judge import StoreJudge

KEY = (b"t" * 16, 0)
PATH = partition_key(*KEY)
CONTENT = Content(ordered=False)
THREE = ("a", "b", "c")
LED = Leadership("a", 1, THREE, (), THREE, 10)


def batch(base: int, epoch: int = 1, check: int = 7) -> Entry:
    return Entry(base, base + 10, epoch, check, "f", CONTENT, 0, 0, durable=True)


@dataclass
class FakeLogs:
    """One broker's disk."""

    of: ReplicaLog = field(default_factory=ReplicaLog)

    def log(self, key: object) -> ReplicaLog:
        return self.of

    def is_durable(self, entry: Entry) -> bool:
        return entry.durable


class World:
    def __init__(self, led: Leadership = LED) -> None:
        self.logs = {name: FakeLogs() for name in THREE}
        self.judge = ClusterJudge(self.logs)
        self.judge.led(KEY, PartitionFacts(led, 2, compacted=False), elected=True)

    def write(self, names: str, entry: Entry) -> None:
        for name in names:
            log = self.logs[name].of
            before = log.entries[-1] if log.entries else None
            own = replace(entry)
            log.add(own)
            self.judge.appended(name, KEY, own, before)

    def cut(self, name: str, count: int) -> None:
        """A broker's log has its first ``count`` batches only from now on."""
        self.judge.cut(name, KEY, self.logs[name].of.cut(count))

    def lead(self, led: Leadership, min_isr: int = 2) -> None:
        self.judge.led(KEY, PartitionFacts(led, min_isr, compacted=False), elected=True)

    def found(self) -> set[str]:
        return {one.invariant for one in self.judge.violations}


def test_a_good_course_is_accepted() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.write("abc", batch(10))
    world.judge.promised("a", KEY, 20, "showed")
    world.lead(Leadership("b", 2, ("b", "c"), (), THREE, 11))
    world.write("bc", batch(20, epoch=2))
    world.judge.acked("b", KEY, 20, 30, 7)
    world.judge.acked("b", KEY, 0, 10, 7)  # a repeat
    assert world.found() == set()
    assert world.judge.promises == 3
    assert world.judge.true_end(KEY) == 30


def test_an_ack_that_a_candidate_lacks_is_found() -> None:
    world = World()
    world.write("ab", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == {"S1"}


def test_an_ack_that_is_not_durable_is_found() -> None:
    world = World()
    world.write("abc", batch(0))
    world.logs["c"].of.entries[0].durable = False
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == {"S1"}


def test_an_ack_with_too_few_in_the_isr_is_found() -> None:
    world = World(Leadership("a", 1, ("a",), ("b",), THREE, 10))
    world.write("a", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == {"S1"}


def lose_disk(world: World, name: str) -> None:
    world.judge.disk_lost(name)
    world.logs[name].of = ReplicaLog()


def test_a_wiped_disk_counts_for_nothing() -> None:
    world = World()
    world.write("ab", batch(0))
    lose_disk(world, "c")
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == set()


def came_back() -> World:
    """c held a batch, told so, lost its disk, and is registered with another one."""
    world = World()
    world.lead(LED, min_isr=3)
    world.write("ac", batch(0))
    lose_disk(world, "c")
    world.lead(replace(LED, isr=("a", "b"), revision=11), min_isr=3)
    world.judge.wiped.discard("c")
    world.write("b", batch(0))
    return world


def test_what_a_lost_disk_held_was_held_also_when_its_broker_is_back() -> None:
    world = came_back()
    world.judge.acked("a", KEY, 0, 10, 7)  # a leader that has not heard of it yet
    assert world.found() == set()


def test_what_a_lost_disk_never_held_counts_for_nothing() -> None:
    world = came_back()
    world.write("ab", batch(10))
    world.judge.acked("a", KEY, 0, 20, 7)
    assert world.found() == {"S1"}
    world = World()
    world.lead(LED, min_isr=3)
    world.write("abc", batch(0))
    world.logs["c"].of.entries[0].durable = False
    lose_disk(world, "c")
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == {"S1"}, "it was not synced"


def test_a_lost_disk_counts_no_more_once_its_broker_is_in_sync_again() -> None:
    world = came_back()
    world.lead(replace(LED, revision=12), min_isr=3)
    world.lead(replace(LED, isr=("a", "b"), revision=13), min_isr=3)
    world.judge.acked("a", KEY, 0, 10, 7)
    assert world.found() == {"S1"}


def test_a_promise_that_the_leader_itself_cannot_keep_is_found() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.promised("a", KEY, 20, "showed")
    assert world.found() == {"S6"}


def test_an_elected_leader_without_everything_is_found() -> None:
    world = World(Leadership("a", 1, ("a", "b"), (), THREE, 10))
    world.write("ab", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.lead(Leadership("c", 2, ("c",), (), THREE, 11))
    assert world.found() == {"S6"}
    world.write("c", batch(0, epoch=2))
    world.judge.acked("c", KEY, 0, 10, 8)
    assert world.found() == {"S6", "S2"}


def test_a_candidate_without_everything_is_found() -> None:
    world = World(Leadership("a", 1, ("a", "b"), (), THREE, 10))
    world.write("ab", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.lead(Leadership("a", 1, THREE, (), THREE, 11))
    assert world.found() == {"S7"}


def test_cutting_what_is_committed_is_found() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.write("b", batch(10))
    world.cut("b", 1)
    assert world.found() == {"S5"}, "of what b wrote itself"
    world.cut("b", 0)
    assert world.found() == {"S5", "S13"}


def test_who_was_dismissed_may_remove_his_copy_until_he_is_in_sync_again() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    without, again = ("a", "b"), ("c", "a", "b")
    world.lead(Leadership("a", 1, without, (), without, 11))
    world.lead(Leadership("a", 1, without, (), again, 12))
    world.cut("c", 0)
    assert world.found() == set(), "he hears of both a moment later"
    world.write("c", batch(0))
    world.cut("c", 0)
    assert world.found() == {"S13"}, "of the new copy"


def test_who_was_dismissed_and_is_in_sync_again_keeps_his_copy() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.lead(Leadership("a", 1, ("a", "b"), (), ("a", "b"), 11))
    world.lead(Leadership("a", 1, THREE, (), THREE, 12))
    world.cut("c", 0)
    assert world.found() == {"S13"}


def test_a_power_cut_that_takes_what_is_committed_is_found() -> None:
    world = World()
    world.write("abc", batch(0))
    world.judge.acked("a", KEY, 0, 10, 7)
    world.judge.other_disk("b")
    assert world.found() == set()
    world.logs["b"].of.cut(0)
    world.judge.other_disk("b")
    assert world.found() == {"S1"}


def test_logs_that_differ_are_found() -> None:
    world = World()
    world.write("a", batch(0))
    world.write("b", batch(0, check=8))
    assert world.found() == {"S4"}


def test_what_its_writer_took_back_alone_may_be_written_differently() -> None:
    world = World()
    world.write("a", batch(0))
    world.cut("a", 0)
    world.write("abc", batch(0, check=8))
    assert world.found() == set()


def test_what_its_writer_lost_may_be_on_its_way_to_others() -> None:
    world = World()
    first = batch(0)
    world.write("a", first)
    world.cut("a", 0)
    world.write("b", first)
    assert world.found() == set()
    world.write("a", batch(0, check=8))
    assert world.found() == {"S4"}


def test_what_another_broker_had_may_not_be_written_differently() -> None:
    world = World()
    world.write("ab", batch(0))
    for name in "ab":
        world.cut(name, 0)
    world.write("abc", batch(0, check=8))
    assert world.found() == {"S4"}


def test_logs_that_differ_before_a_common_batch_are_found() -> None:
    world = World()
    world.write("ab", batch(0))
    world.write("a", batch(10))
    world.lead(Leadership("b", 2, THREE, (), THREE, 11))
    world.write("b", batch(10, epoch=2))
    world.write("b", batch(20, epoch=2))
    assert world.found() == set()
    world.write("a", batch(20, epoch=2))
    assert world.found() == {"S4"}


def test_two_writers_falling_epochs_and_gaps_are_found() -> None:
    world = World()
    world.write("b", batch(0))
    assert world.found() == {"S5"}
    world = World(replace(LED, leader_epoch=2))
    world.write("a", batch(0, epoch=2))
    world.judge.appended("b", KEY, batch(0, epoch=2), batch(-10, epoch=3))
    assert world.found() == {"S9"}
    world = World()
    world.write("a", batch(0))
    world.write("a", batch(11))
    assert world.found() == {"S10"}


# ── the metadata store ───────────────────────────────────────────────────────────────────────


class Store:
    """A topic of one partition, and three brokers; changes of it as the tap gets them."""

    def __init__(self, led: Leadership = LED) -> None:
        self.world = World()
        self.judge = StoreJudge(self.world.judge)
        self.entries: dict[str, Stored] = {}
        self.revision = 10
        topic = Topic("t", KEY[0], {}, (PartitionRecord(0, 2**64 - 1, THREE),), None)
        self.put({topic.key: topic.to_json()})
        for name in THREE:
            self.register(name, "disk")
        self.put({PATH: led.to_json()})

    def put(self, puts: Mapping[str, bytes], compare: Mapping[str, int] | None = None) -> None:
        self.revision += 1
        if compare is None:
            compare = {key: self.revision_of(key) for key in puts}
        before = {key: self.entries.get(key) for key in puts}
        after = {key: Stored(key, value, self.revision) for key, value in puts.items()}
        self.entries.update(after)
        self.judge.tap(StoreChange("a", compare, before, after))

    def revision_of(self, key: str) -> int:
        return self.entries[key].revision if key in self.entries else 0

    def register(self, name: str, directory: str) -> None:
        record = BrokerRecord(name, {}, None, None, "1", 0, directory)
        self.put({record.key: record.to_json()})

    def change(self, compare: Mapping[str, int] | None = None, **how: Any) -> None:
        old = Leadership.from_json(self.entries[PATH].value, 0)
        compare = {PATH: self.revision_of(PATH), **(compare or {})}
        self.put({PATH: replace(old, **how).to_json()}, compare)

    def found(self) -> set[str]:
        return self.world.found()


def test_elections_and_shrinking_are_accepted() -> None:
    store = Store()
    store.change(isr=("a", "b"))
    store.change(isr=("a",), elr=("b",))
    store.change(leader=None, isr=(), elr=("a", "b"))
    store.change(leader="b", leader_epoch=2, isr=("b",), elr=("a",))
    store.change({"brokers/a": store.revision_of("brokers/a")}, isr=("b", "a"), elr=())
    assert store.found() == set()
    assert store.judge.changes == {
        **{"elections": 1, "leaderless": 1, "isr shrunk": 3, "isr grown": 2}
    }


def test_a_change_without_looking_is_found() -> None:
    store = Store()
    store.put({PATH: replace(LED, isr=("a", "b")).to_json()}, {})
    assert store.found() == {"S30"}


def test_epochs_that_jump_or_stand_still_are_found() -> None:
    store = Store()
    store.change(leader_epoch=3)
    assert store.found() == {"S9"}
    store = Store()
    store.change(leader="b")
    assert store.found() == {"S9", "S5"}


def test_an_election_from_outside_is_found_unless_it_was_asked_for() -> None:
    store = Store()
    store.change(isr=("a", "b"))
    store.change(leader="c", leader_epoch=2, isr=("c",), elr=("a", "b"))
    assert store.found() == {"S3"}
    store = Store()
    store.judge.unclean.add(KEY)
    store.change(isr=("a", "b"))
    store.change(leader="c", leader_epoch=2, isr=("c",), elr=("a", "b"))
    assert store.found() == set()


def test_what_nobody_has_led_yet_may_be_begun_by_another() -> None:
    store = Store(replace(LED, leader="c", leader_epoch=0, isr=("b", "c")))
    now = {"brokers/a": store.revision_of("brokers/a")}
    store.change(now, leader="a", isr=("a",))
    assert store.found() == set()
    store.change(leader_epoch=1)
    assert store.found() == set()
    store.change(leader="b", isr=("b",))
    assert {"S3", "S9", "S5"} <= store.found()


def test_too_few_candidates_are_found() -> None:
    store = Store()
    store.change(isr=("b", "c"), leader=None, elr=())
    assert store.found() == set(), "whoever left said so itself"
    store.change(isr=("b",))
    assert store.found() == {"R9"}


def test_joining_by_an_old_broker_epoch_is_found() -> None:
    store = Store()
    store.change(isr=("a", "b"))
    old = store.revision_of("brokers/c")
    store.register("c", "disk")
    store.change({"brokers/c": old}, isr=THREE)
    assert store.found() == {"S31"}


def test_joining_without_what_the_leader_began_with_is_found() -> None:
    store = Store()
    store.change(isr=("a", "b"))
    store.world.write("ab", batch(0))
    store.change({"brokers/c": store.revision_of("brokers/c")}, isr=THREE)
    assert store.found() == set(), "not committed, and of this epoch"
    store.change(isr=("a", "b"))
    store.change(leader_epoch=2)
    store.change({"brokers/c": store.revision_of("brokers/c")}, isr=THREE)
    assert store.found() == {"S31"}


def test_another_disk_in_the_isr_is_found() -> None:
    store = Store()
    store.world.judge.wiped.add("c")
    store.register("c", "another disk")
    assert store.found() == {"R7"}
    assert not store.world.judge.wiped
