"""What is told of leaders, held against what was known."""

from dataclasses import replace

import pytest

from tailrace.client.topic_news import LeaderEpochs, came_to_lead
from tailrace.protocol.messages import PartitionMetadata, TopicMetadata


def topic(*led: tuple[str | None, int], topic_id: bytes = b"1" * 16) -> TopicMetadata:
    partitions = tuple(
        PartitionMetadata(number, leader, epoch, ("n1",), ("n1",), 0, 0)
        for number, (leader, epoch) in enumerate(led)
    )
    return TopicMetadata("orders", None, topic_id, False, False, 1, "fsync", partitions)


def led(told: TopicMetadata) -> list[tuple[str | None, int]]:
    return [(one.leader, one.leader_epoch) for one in told.partitions]


def test_leader_of_an_older_epoch_is_no_news() -> None:
    known = LeaderEpochs()
    known.newest(topic(("n1", 3), ("n1", 5)))
    assert led(known.newest(topic(("n2", 4), ("n2", 4)))) == [("n2", 4), ("n1", 5)]
    assert led(known.newest(topic(("n1", 3), ("n3", 6)))) == [("n2", 4), ("n3", 6)]


@pytest.mark.parametrize("told", [(None, 3), ("n2", 3), (None, -1)])
def test_same_epoch_or_an_unknown_one_counts_as_told(told: tuple[str | None, int]) -> None:
    known = LeaderEpochs()
    known.newest(topic(("n1", 3)))
    assert led(known.newest(topic(told))) == [told]


def test_topic_made_again_begins_anew() -> None:
    known = LeaderEpochs()
    known.newest(topic(("n1", 9)))
    again = topic(("n2", 1), topic_id=b"2" * 16)
    assert known.newest(again) is again
    known.forget("orders")
    assert led(known.newest(topic(("n1", 2)))) == [("n1", 2)]


def test_partitions_may_be_added() -> None:
    known = LeaderEpochs()
    known.newest(topic(("n1", 2)))
    more = topic(("n1", 2), ("n2", 1))
    assert known.newest(more) is more
    assert led(known.newest(replace(more, partitions=more.partitions[:1]))) == [("n1", 2)]


def test_who_leads_in_a_newer_epoch_came_to_lead() -> None:
    before = topic(("n1", 3), ("n2", 5), (None, 4), ("n3", -1))
    assert came_to_lead(before, topic(("n1", 4), ("n2", 5), ("n3", 6), ("n4", 1))) == {"n1", "n3"}
    assert came_to_lead(before, topic((None, 4), ("n1", 5))) == set()
    assert came_to_lead(None, topic(("n1", 4))) == set()
