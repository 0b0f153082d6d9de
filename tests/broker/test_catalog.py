"""Topics as values: names, twins, and the way into the store and back."""

import itertools

import pytest

from tailrace.broker.catalog import (
    Catalog,
    Leadership,
    Topic,
    check_name,
    folded,
    new_topic,
    parse_partition_key,
    partition_key,
)
from tailrace.protocol.errors import InvalidName

ID = bytes(range(16))


def topic(name: str, topic_id: bytes = ID, partitions: int = 3) -> Topic:
    return new_topic(name, topic_id, placement=[("n1",)] * partitions, replicas=None, config={})


def test_a_topic_survives_the_store() -> None:
    before = new_topic(
        "orders", ID, placement=[("n1",)] * 4, replicas=1, config={"retention": "7d"}
    )
    after = Topic.from_json(before.to_json(), revision=9)
    assert after.revision == 9
    assert (after.name, after.topic_id, after.config) == ("orders", ID, {"retention": "7d"})
    assert after.partitions == before.partitions
    assert after.replicas == 1
    assert topic("orders").replicas is None
    assert Topic.from_json(topic("orders").to_json(), 1).replicas is None


def test_leadership_survives_the_store_and_each_election_is_a_new_epoch() -> None:
    first = Leadership(None, 0, ("n1",)).elected("n1")
    again = Leadership.from_json(first.to_json(), revision=3).elected("n1")
    assert (first.leader, first.leader_epoch) == ("n1", 1)
    assert (again.leader_epoch, again.isr, again.revision) == (2, ("n1",), 3)


def test_key_ranges_cover_every_key_once() -> None:
    ranges = [(one.key_first, one.key_last) for one in topic("orders").partitions]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == (1 << 64) - 1
    for (_, last), (first, _) in itertools.pairwise(ranges):
        assert first == last + 1


def test_partition_keys_are_read_back() -> None:
    assert parse_partition_key(partition_key(ID, 12)) == (ID, 12)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 249, "..."])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a b", "é", "x" * 250, "a\0", "a\n", "__offsets", "__"]
)
def test_bad_and_reserved_names(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


def test_twins_by_case_or_by_dot_and_underscore_are_refused() -> None:
    catalog = Catalog.of([topic("My.Topic")])
    catalog.check_free("My.Topic")
    catalog.check_free("MyTopic")
    for twin in ("my.topic", "My_Topic", "MY_TOPIC"):
        assert folded(twin) == folded("My.Topic")
        with pytest.raises(InvalidName, match=r"My\.Topic"):
            catalog.check_free(twin)


def test_a_topic_being_deleted_is_not_found_but_its_name_is_not_free() -> None:
    deleting = Topic.from_json(topic("orders").to_json().replace(b'"live"', b'"deleting"'), 1)
    catalog = Catalog().with_topic(deleting)
    assert catalog.find("orders") is None
    assert catalog.names() == []
    with pytest.raises(InvalidName):
        catalog.check_free("Orders")
    assert catalog.without_topic(deleting).by_id == {}


def test_similar_names_are_suggested_nearest_first() -> None:
    catalog = Catalog.of([topic("orders"), topic("order", b"b" * 16), topic("zebra", b"c" * 16)])
    assert catalog.similar("ordres")[0] in ("orders", "order")
    assert "zebra" not in catalog.similar("ordres")


def test_internal_topics_are_listed_only_on_request() -> None:
    catalog = Catalog.of([topic("b"), topic("__offsets", b"b" * 16), topic("a", b"c" * 16)])
    assert catalog.names() == ["a", "b"]
    assert catalog.names(internal=True) == ["__offsets", "a", "b"]
