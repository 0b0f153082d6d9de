"""Descriptions put together from what leaders say."""

from dataclasses import replace

from tailrace.broker.merge_topics import merged
from tailrace.protocol.messages import (
    DescribeTopicsResponse,
    PartitionDescription,
    TopicDescription,
)

ALL = ("n1", "n2")


def partition(
    number: int, leader: str | None, end: int = -1, epoch: int = 3
) -> PartitionDescription:
    return PartitionDescription(
        partition=number,
        leader=leader,
        leader_epoch=epoch,
        replicas=ALL,
        isr=ALL,
        key_first=0,
        key_last=1,
        log_start=min(end, 0),
        log_end=end,
        high_watermark=end,
        last_stable_offset=end,
        size_bytes=max(0, end),
        segments=1,
        last_append_time=None,
        status="ok",
        compaction=None,
    )


def topic(*partitions: PartitionDescription, groups: tuple[str, ...] = ()) -> TopicDescription:
    return TopicDescription(
        *("orders", bytes(16), False, 2, 1, "delete", "fsync", ()), partitions, groups
    )


def answer(
    *partitions: PartitionDescription, groups: tuple[str, ...] = ()
) -> DescribeTopicsResponse:
    return DescribeTopicsResponse((topic(*partitions, groups=groups),))


def test_each_partition_is_as_its_leader_says_and_groups_are_everybodys() -> None:
    mine = topic(partition(0, "n1", 5), partition(1, "n2"), groups=("b",))
    theirs = answer(partition(0, "n1"), partition(1, "n2", 9), groups=("a", "b"))
    (found,) = merged([mine], {"n2": theirs}, "n1")
    assert [one.log_end for one in found.partitions] == [5, 9]
    assert [one.status for one in found.partitions] == ["ok", "ok"]
    assert found.groups == ("a", "b")


def test_a_leader_that_does_not_answer_costs_its_own_partitions_alone() -> None:
    mine = topic(partition(0, "n1", 5), partition(1, "n2"), partition(2, None))
    (found,) = merged([mine], {}, "n1")
    assert [one.status for one in found.partitions] == ["ok", "offline", "ok"]
    assert found.partitions[1].log_end == -1


def test_who_leads_no_more_does_not_know() -> None:
    mine = topic(partition(0, "n2"))
    (found,) = merged([mine], {"n2": answer(partition(0, "n3", 4))}, "n1")
    assert (found.partitions[0].status, found.partitions[0].log_end) == ("offline", -1)


def test_the_newer_epoch_says_who_is_in_sync() -> None:
    mine = topic(partition(0, "n2", epoch=3))
    newer = replace(partition(0, "n2", 4, epoch=4), isr=("n2",), status="under_replicated")
    (found,) = merged([mine], {"n2": answer(newer)}, "n1")
    one = found.partitions[0]
    assert (one.leader_epoch, one.isr, one.status) == (4, ("n2",), "under_replicated")
    older = replace(newer, leader_epoch=2)
    (found,) = merged([mine], {"n2": answer(older)}, "n1")
    one = found.partitions[0]
    assert (one.leader_epoch, one.isr, one.log_end) == (3, ALL, 4)
