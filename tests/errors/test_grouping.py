"""T040, T042, T070: members that came too late, were replaced, or want something else.

The rest of what groups say, T071-T073, is provoked by ``tests/client/test_group_reading.py``.
"""

import re
from typing import Any

import pytest

import tailrace.sync
from tailrace.protocol.errors import GroupConfigMismatch, GroupFenced, PartitionLost
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.errors.provoking import told

READS_MAX = 1_000


def read_until_it_fails(consumer: tailrace.sync.Consumer[Any, Any]) -> None:
    for _, _ in zip(range(READS_MAX), consumer, strict=False):
        pass
    raise AssertionError(f"{READS_MAX} records were read")


@pytest.mark.provokes("T040")
def test_a_partition_that_went_before_it_was_committed(broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"a"] * 10)
    with broker.client() as client, client.consumer(topic, group=topic) as consumer:
        next(iter(consumer))
        (one,) = client.admin.describe_group(topic).member_list
        broker.expire_member(topic, one.member_id)
        with pytest.raises(PartitionLost) as caught:
            read_until_it_fails(consumer)
    told(
        caught.value,
        "T040",
        rf"{topic}\[0\] went to another member of group '{topic}' before its offsets were "
        "committed: .+",
        **{"topic": topic, "partition": 0},
    )
    assert set(caught.value.offsets) == {TopicPartition(topic, 0)}


@pytest.mark.provokes("T042")
def test_a_member_whose_place_was_taken(broker: Broker, topic: str) -> None:
    broker.seed(topic, [b"a"] * 10)
    with broker.client() as client, broker.client() as other:
        with client.consumer(topic, group=topic, instance_id="i1") as first:
            next(iter(first))
            (one,) = client.admin.describe_group(topic).member_list
            with other.consumer(topic, group=topic, instance_id="i1") as second:
                next(iter(second))
                with pytest.raises(PartitionLost):  # of the record in hand, once
                    read_until_it_fails(first)
                with pytest.raises(GroupFenced) as caught:
                    read_until_it_fails(first)
    told(
        caught.value,
        "T042",
        rf"member '{one.member_id}' is no longer in group '{topic}': .+",
        **{"group": topic, "member_id": one.member_id},
    )
    assert caught.value.hint == (
        "It does not rejoin: give each process an instance_id of its own; look: tailrace group "
        f"describe {topic}"
    )


@pytest.mark.provokes("T070")
def test_a_subscription_of_another_kind(broker: Broker, topic: str) -> None:
    left, right = f"{topic}-left", f"{topic}-right"
    for name in (left, right):
        broker.create_topic(name)
    with broker.client() as client:
        with client.consumer(topic, left, group=topic):
            (one,) = client.admin.describe_group(topic).member_list
            assert one.client_id
            with pytest.raises(GroupConfigMismatch) as caught:
                client.consumer(topic, right, group=topic).__enter__()
    told(
        caught.value,
        "T070",
        rf"member '{re.escape(one.client_id)}' of group '{topic}' subscribes {topic}, {left}, you "
        rf"{topic}, {right}",
        **{"yours": [topic, right], "theirs": [topic, left]},
    )
    assert caught.value.hint == "One group, one subscription: use another group name."
