"""One partition among its replicas: who counts, who is fenced, what followers are told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tailrace.broker.catalog import Leadership
from tailrace.broker.partition import Partition
from tailrace.protocol.errors import (
    EpochFenced,
    NotEnoughReplicas,
    NotLeader,
    OffsetNotAvailable,
    OffsetOutOfRange,
)
from tailrace.protocol.messages import FetchPartition
from tests.broker.partition_bench import ID, Bench, base_offsets, values


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.log.close(clean=False)


OF_THREE = Leadership("n1", 2, ("n1", "n2", "n3"), replicas=("n1", "n2", "n3"), revision=7)


def asks(offset: int, flushed: int, high_watermark: int = 0) -> FetchPartition:
    return FetchPartition(
        *(ID, 0, offset, 1 << 20, 2),
        last_fetched_epoch=2,
        flushed_end=flushed,
        high_watermark=high_watermark,
    )


class Copier:
    """A follower's fetch that waits."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def written(self, partition: Partition) -> None:
        self.heard.append("written")

    def moved(self, partition: Partition) -> None:
        self.heard.append("moved")

    def contradicted(self, partition: Partition, broker_id: str) -> None:
        self.heard.append(f"contradicted {broker_id}")


@pytest.fixture
def leading(bench: Bench) -> Bench:
    """Three replicas, all in sync, two of which it needs."""
    bench.log.begin_epoch(2)
    bench.want("n1", "n2", "n3")
    bench.partition.lead(OF_THREE)
    return bench


def test_acks_leave_when_the_last_of_the_in_sync_set_has_flushed(leading: Bench) -> None:
    waiting = leading.send(values(b"a"))
    leading.sync()
    leading.partition.observe("n2", 5, asks(1, 1), 1.0)
    leading.partition.observe("n3", 6, asks(1, 0), 1.0)
    assert waiting.outcomes == {}
    leading.partition.observe("n3", 6, asks(1, 1), 1.1)
    assert base_offsets(waiting) == [0]


def test_too_few_in_sync_refuse_acks_all_alone(leading: Bench) -> None:
    leading.partition.learn(replace(OF_THREE, isr=("n1",), elr=("n2",), revision=8))
    refused = leading.send(values(b"a")).outcomes[0]
    assert isinstance(refused, NotEnoughReplicas)
    assert (refused.have, refused.need) == (1, 2)
    assert leading.log.end == 0
    assert base_offsets(leading.send(values(b"b"), acks=1)) == [0]


def test_a_topic_that_grew_needs_more_in_sync_once_they_are_there(bench: Bench) -> None:
    bench.want("n1", "n2", "n3")
    alone = Leadership("n1", 1, ("n1",), replicas=("n1", "n2", "n3"), revision=5)
    bench.partition.learn(alone)
    assert bench.send(values(b"a")).outcomes == {}  # copies fill: no reason to stand still
    bench.partition.learn(replace(alone, isr=("n1", "n2"), revision=6))
    bench.partition.learn(replace(alone, revision=7))
    refused = bench.send(values(b"b")).outcomes[0]
    assert isinstance(refused, NotEnoughReplicas)
    assert (refused.have, refused.need) == (1, 2)


def test_a_topic_that_grows_goes_on_without_as_many_as_before(leading: Bench) -> None:
    leading.want("n1", "n2", "n3", "n4", "n5")
    five = replace(OF_THREE, replicas=("n1", "n2", "n3", "n4", "n5"), revision=8)
    leading.partition.learn(replace(five, isr=("n1", "n2")))
    assert leading.send(values(b"a")).outcomes == {}
    leading.partition.learn(replace(five, isr=("n1", "n2", "n3", "n4"), revision=9))
    leading.partition.learn(replace(five, isr=("n1", "n2"), revision=10))
    refused = leading.send(values(b"b")).outcomes[0]
    assert isinstance(refused, NotEnoughReplicas)
    assert (refused.have, refused.need) == (2, 3)


def test_a_topic_that_grew_needs_more_of_whoever_leads_next(bench: Bench) -> None:
    bench.partition.step_down()
    bench.want("n1", "n2", "n3")
    bench.log.begin_epoch(2)
    bench.partition.lead(replace(OF_THREE, isr=("n1",)))
    assert isinstance(bench.send(values(b"a")).outcomes[0], NotEnoughReplicas)


def test_a_topic_that_is_to_have_one_copy_needs_one(leading: Bench) -> None:
    leading.want("n1")
    leading.partition.learn(replace(OF_THREE, isr=("n1",), replicas=("n1",), revision=8))
    waiting = leading.send(values(b"a"))
    leading.sync()
    assert base_offsets(waiting) == [0]


def test_a_frozen_partition_takes_nothing_until_it_thaws(leading: Bench) -> None:
    leading.partition.freeze()
    assert isinstance(leading.send(values(b"a")).outcomes[0], NotLeader)
    leading.partition.thaw()
    assert leading.send(values(b"a")).outcomes == {}


def test_followers_of_another_epoch_and_strangers_are_fenced(leading: Bench) -> None:
    leading.partition.observe("n2", 5, asks(0, 0), 1.0)
    leading.partition.admit("n2", 5, 2)
    for broker, broker_epoch, leader_epoch in (
        ("n2", 5, 1),
        ("n2", 5, 3),
        ("n2", 4, 2),
        ("n9", 5, 2),
    ):
        with pytest.raises(EpochFenced):
            leading.partition.admit(broker, broker_epoch, leader_epoch)
    leading.partition.follow(Leadership("n2", 3, ("n1", "n2")))
    with pytest.raises(NotLeader):
        leading.partition.admit("n2", 5, 2)


def test_where_logs_part_is_told_by_epochs(leading: Bench) -> None:
    leading.send(values(b"a"), values(b"b"))
    partition = leading.partition
    assert partition.divergence(2, 2) is None
    assert partition.divergence(-1, 0) is None
    assert partition.divergence(1, 1) == (-1, 0)  # nothing was written in epoch 1 here
    assert partition.divergence(2, 5) == (2, 2)
    with pytest.raises(OffsetOutOfRange):
        partition.divergence(-1, 5)


def test_a_new_leader_shows_no_watermark_before_its_followers_came(bench: Bench) -> None:
    bench.send(values(b"a"), acks=1)
    bench.log.begin_epoch(2)
    bench.want("n1", "n2", "n3")
    bench.partition.lead(OF_THREE)
    assert bench.partition.shown_high_watermark is None
    with pytest.raises(OffsetNotAvailable):
        bench.partition.read(0, 100)
    bench.sync()
    for name in ("n2", "n3"):
        bench.partition.observe(name, 5, asks(1, 1), 1.0)
    assert bench.partition.shown_high_watermark == 1


def test_followers_that_wait_hear_of_appends_and_of_the_watermark(leading: Bench) -> None:
    copier = Copier()
    leading.partition.park_copier(copier)
    leading.send(values(b"a"))
    assert copier.heard == ["written"]
    leading.sync()
    leading.partition.observe("n2", 5, asks(1, 1), 1.0)
    leading.partition.observe("n3", 5, asks(1, 1), 1.0)
    assert copier.heard == ["written", "moved"]
    leading.partition.step_down()
    assert copier.heard[2:] == ["written"]


def test_a_follower_that_says_it_has_less_is_asked_anew_over_its_other_connections(
    leading: Bench,
) -> None:
    copier = Copier()
    leading.partition.park_copier(copier)
    leading.send(values(b"a", b"b"))
    leading.sync()
    leading.partition.observe("n2", 5, asks(2, 2), 1.0)
    leading.partition.observe("n2", 5, asks(2, 2), 1.0)
    assert copier.heard == ["written"]
    leading.partition.observe("n2", 5, asks(2, 1), 1.0)
    leading.partition.observe("n2", 5, asks(0, 0), 1.0)
    assert copier.heard[1:] == ["contradicted n2", "contradicted n2"]


def test_a_follower_is_told_of_what_it_does_not_know_once(leading: Bench) -> None:
    partition = leading.partition
    partition.observe("n2", 5, asks(0, 0, high_watermark=-1), 1.0)
    assert partition.has_news("n2", -1)
    partition.told("n2", -1)
    assert not partition.has_news("n2", -1)
    assert partition.has_news("n2", 40)
    partition.told("n2", 40)
    partition.observe("n2", 5, asks(0, 0), 2.0)
    assert not partition.has_news("n2", 40)


def test_a_follower_serves_what_it_knows_to_be_committed(bench: Bench) -> None:
    bench.send(values(b"a"), values(b"b"), acks=1)
    bench.partition.follow(Leadership("n2", 2, ("n1", "n2")))
    bench.partition.following.high_watermark = 1
    bench.sync()
    assert bench.partition.read(0, 1 << 20).next_offset == 1
    with pytest.raises(OffsetNotAvailable):
        bench.partition.read(2, 1 << 20)
