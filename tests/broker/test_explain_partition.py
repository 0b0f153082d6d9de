"""How a partition and a topic are: from facts to status, sentences and a command."""

import math
from dataclasses import replace

import pytest

from tailrace.broker.explain import (
    Damage,
    Lacking,
    Reading,
    ReplicaFacts,
    Standing,
    Uncommitted,
)
from tailrace.broker.explain_partition import (
    CompactionFacts,
    DiskFacts,
    PartitionFacts,
    Shrinking,
    explain_partition,
    explain_topic,
)

DISK = DiskFacts("n1", False, "40 GiB free", "min_free 5%", "reject")
WEEK_S, MIB = 7 * 86_400.0, 1 << 20
LOG = Shrinking(
    size_bytes=300 * MIB,
    segments=3,
    open_bytes=44 * MIB,
    open_limit_bytes=128 * MIB,
    open_left_s=3_600.0,
    retention="7d",
    retention_s=WEEK_S,
    retention_bytes=None,
    oldest_s=86_400.0,
    oldest_wall_s=86_400.0,
    busy=False,
)
WELL = PartitionFacts(
    *("orders", 2, DISK, "delete", "fsync"),
    leader="n1",
    leader_epoch=4,
    log_start=120,
    high_watermark=493,
    log_end=493,
    shrinking=LOG,
)
COMPACTION = CompactionFacts("idle", 400, 10, 0.1, "10% of 1 MiB is dirty", None)


def test_a_partition_that_is_well_says_so_and_why_it_keeps_its_size() -> None:
    found = explain_partition(WELL)
    assert (found.target, found.kind, found.verdict, found.next) == (
        *("orders[2]", "partition", "ok"),
        None,
    )
    assert found.summary == (
        "orders[2] is online: offsets 120 to 492 can be read."
        " It does not shrink before retention (7d) is over for its oldest segment:"
        " the last record there is 24 h old, so it goes in 6 d."
    )
    empty = replace(WELL, log_start=7, high_watermark=7, log_end=7)
    assert "is online and has no records." in explain_partition(empty).summary


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (replace(LOG, segments=1), "all of it (300 MiB) is in the open segment"),
        (replace(LOG, retention_s=math.inf), "retention is forever, and there is no"),
        (replace(LOG, segments=1, retention_s=math.inf), "retention is forever, and there is no"),
        (replace(LOG, oldest_s=WEEK_S + 9), "goes with the next look (at most 30 s)"),
        (replace(LOG, oldest_s=WEEK_S + 9, busy=True), "when the compaction or erasure that is at"),
        (replace(LOG, oldest_wall_s=WEEK_S + 9), "by 6 d: retention believes that after a day of"),
        (replace(LOG, retention_bytes=1 << 30), "It has 300 MiB of retention_size 1 GiB"),
    ],
)
def test_why_it_does_not_shrink(log: Shrinking, said: str) -> None:
    assert said in explain_partition(replace(WELL, shrinking=log)).summary


def test_a_compacted_topic_is_kept_by_its_cleaner() -> None:
    compacted = replace(WELL, cleanup="compact", compaction=COMPACTION)
    found = explain_partition(compacted)
    assert found.summary.endswith("Compaction is idle: 10% of 1 MiB is dirty.")
    failed = replace(COMPACTION, state="failed", error="No space left on device")
    found = explain_partition(replace(compacted, compaction=failed))
    assert "Compaction failed and is tried again: No space left on device." in found.summary
    assert found.next == "tailrace doctor"


def test_erasures_that_wait_say_why() -> None:
    found = explain_partition(replace(WELL, erasures=2))
    assert "2 erasures are under way." in found.summary
    assert found.next is None
    found = explain_partition(replace(WELL, erasures=1, erasure_problem="x.log is damaged"))
    assert "1 erasure is under way: x.log is damaged." in found.summary
    assert found.next == "tailrace doctor"


def test_what_is_wrong_decides_what_comes_next() -> None:
    tail = replace(WELL, log_end=500, uncommitted=Uncommitted(3, 0.5))
    found = explain_partition(tail)
    assert "7 records are written but not committed." in found.summary
    assert found.next == "tailrace doctor"
    hole = Damage("/data/x.log", 353, 130, 140, "the payload checksum does not match")
    found = explain_partition(replace(tail, damage=(hole,)))
    assert "(T035): offsets 130-139 (/data/x.log byte 353)." in found.summary
    assert found.next == "tailrace explain orders:2:130"
    full = replace(DISK, refuses=True, has="0 B free")
    found = explain_partition(replace(tail, damage=(hole,), disk=full))
    assert "broker n1 is read-only, 0 B free, min_free 5%." in found.summary
    assert found.next == "tailrace topic list"
    memory = replace(DISK, memory_full_bytes=512 * MIB)
    found = explain_partition(replace(WELL, disk=memory))
    assert "limits.request_memory (512 MiB) is used up" in found.summary


def test_an_offline_partition_says_why_and_nothing_else() -> None:
    down = PartitionFacts(
        *("orders", 2, DISK, "delete", "fsync"), offline="T033: its directory is missing"
    )
    found = explain_partition(down)
    assert (found.verdict, found.next) == ("offline", "tailrace cluster health")
    assert found.summary == (
        "orders[2] is offline, nothing of it can be read: T033: its directory is missing."
    )
    assert "log_start" not in {fact.name for fact in found.facts}


def test_a_group_that_is_stalled_there_leads_to_the_group() -> None:
    standing = Standing(
        *("orders", 2, 120, 90.0, 120, 493, 373, 0.0, 2.0, "stalled", None),
        owner=None,
        damaged=False,
        retention="7d",
    )
    found = explain_partition(replace(WELL, reading=Reading("billing", standing)))
    assert "Group 'billing' is 373 records behind, at 120: stalled." in found.summary
    assert found.next == "tailrace explain -g billing"
    found = explain_partition(replace(WELL, reading=Reading("billing", None)))
    assert "does not read orders" in found.summary


# ── topics ───────────────────────────────────────────────────────────────────────────────────


def test_a_topic_is_as_its_worst_partition() -> None:
    well = [replace(WELL, partition=number) for number in range(3)]
    found = explain_topic("orders", well, ["billing"], None)
    assert (found.kind, found.verdict, found.next) == ("topic", "ok", None)
    assert found.summary.startswith("orders has 3 partitions, all online, about 1,119 records")
    tail = replace(well[1], log_end=500)
    found = explain_topic("orders", [well[0], tail, well[2]], [], None)
    assert (found.verdict, found.next) == ("ok", "tailrace explain orders:1")
    down = replace(well[2], offline="T033: gone", shrinking=None)
    found = explain_topic("orders", [well[0], tail, down], [], None)
    assert (found.verdict, found.next) == ("offline", "tailrace explain orders:2")
    assert "1 of 3 partitions is offline." in found.summary


def test_a_topic_of_one_partition_tells_what_that_would() -> None:
    full = replace(WELL, disk=replace(DISK, refuses=True))
    found = explain_topic("orders", [full], [], None)
    assert found.next == "tailrace topic list"
    assert "retention (7d)" in explain_topic("orders", [WELL], [], None).summary
    down = PartitionFacts(*("orders", 0, DISK, "delete", "fsync"), offline="T033: gone")
    assert explain_topic("orders", [down], [], None).next == "tailrace cluster health"


def test_a_topic_tells_how_a_group_reads_it() -> None:
    standing = Standing(
        *("orders", 2, 480, 1.0, 120, 493, 13, 2.0, 2.0, "ok", None),
        owner=None,
        damaged=False,
        retention="7d",
    )
    reads = replace(WELL, reading=Reading("billing", standing))
    found = explain_topic("orders", [reads], ["billing"], "billing")
    assert "Group 'billing' is 13 records behind in it." in found.summary
    read_not = replace(WELL, reading=Reading("app", None))
    found = explain_topic("orders", [read_not], ["billing"], "app")
    assert "Group 'app' does not read orders" in found.summary


# ── replicas ─────────────────────────────────────────────────────────────────────────────────

THREE = ReplicaFacts(("n1", "n2", "n3"), ("n1", "n2", "n3"), 2)


def test_too_few_replicas_in_sync_refuse_writes_and_are_named() -> None:
    replicas = replace(
        THREE,
        in_sync=("n1",),
        missing=(Lacking("n2", False, 7), Lacking("n3", True, 12_000)),
    )
    found = explain_partition(replace(WELL, standing="below_min_isr", replicas=replicas))
    assert found.verdict == "below_min_isr"
    assert (
        "Writes with acks=all are refused (T030): 1 replica is in sync, and min_isr is 2"
        " (n2 is offline and n3 is 12,000 records behind)."
    ) in found.summary
    assert found.next == "tailrace cluster brokers"
    facts = {fact.name: fact.value for fact in found.facts}
    assert facts["in_sync"] == ["n1"]
    assert facts["not_in_sync"] == ["n2 is offline", "n3 is 12,000 records behind"]


def test_a_replica_that_is_missing_is_named_while_writes_go_on() -> None:
    replicas = replace(THREE, in_sync=("n1", "n2"), missing=(Lacking("n3", True, None),))
    found = explain_partition(replace(WELL, standing="under_replicated", replicas=replicas))
    assert found.verdict == "under_replicated"
    assert "2 of 3 replicas are in sync (n3 has not caught up yet)." in found.summary


def test_what_is_written_waits_for_whoever_is_slow() -> None:
    replicas = replace(THREE, slow=(Lacking("n3", True, 5),))
    known = replace(WELL, log_end=498, uncommitted=Uncommitted(2, None), replicas=replicas)
    found = explain_partition(known)
    assert "5 records are written but not committed." in found.summary
    assert "every in-sync replica has it: n3 is 5 records behind." in found.summary
    assert found.next == "tailrace cluster brokers"


def test_without_a_lease_nothing_is_written() -> None:
    found = explain_partition(replace(WELL, replicas=replace(THREE, no_lease="etcd is away")))
    assert "(T100): broker n1 has no lease of the metadata store: etcd is away." in found.summary
    assert found.next == "tailrace cluster health"


def test_a_topic_counts_what_other_brokers_hold() -> None:
    elsewhere = replace(WELL, partition=3, leader="n2", shrinking=None, elsewhere_bytes=100 * MIB)
    found = explain_topic("orders", [WELL, elsewhere], [], None)
    assert found.verdict == "ok"
    assert "2 partitions, all online, about 746 records in 400 MiB" in found.summary
