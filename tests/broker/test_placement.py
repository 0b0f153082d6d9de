"""Which brokers hold what: spread over brokers and racks, and moved as little as possible."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, strategies as st

from tailrace.broker import placement
from tailrace.broker.catalog import Catalog, Topic, new_topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BrokerRecord

Racks = Mapping[str, str | None]


def broker(broker_id: str, rack: str | None = None, epoch: int = 1) -> BrokerRecord:
    return BrokerRecord(
        broker_id,
        listeners={},
        http=None,
        rack=rack,
        version="1.0",
        since=0,
        directory=f"directory of {broker_id}",
        epoch=epoch,
    )


def topic(name: str, targets: Sequence[Sequence[str]], *, replicas: int | None = None) -> Topic:
    return new_topic(
        *(name, name.encode().rjust(16)),
        placement=[tuple(one) for one in targets],
        replicas=replicas,
        config={},
    )


def view(racks: Racks, *topics: Topic, drains: str = "") -> ClusterView:
    return ClusterView(
        brokers={one: broker(one, rack) for one, rack in racks.items()},
        drains=frozenset(drains),
        catalog=Catalog.of(topics),
    )


def no_racks(names: str) -> Racks:
    return dict.fromkeys(names)


def targets_of(changed: Sequence[Topic], name: str = "t") -> list[str]:
    (found,) = [one for one in changed if one.name == name]
    return ["".join(one.replicas) for one in found.partitions]


def range_of(counts: Mapping[str, int], brokers: Racks) -> int:
    numbers = [counts[one] for one in brokers]
    return max(numbers) - min(numbers)


SPREADS = st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(1, 5))
RACKS = st.dictionaries(
    st.sampled_from("abcdefgh"), st.sampled_from(["r1", "r2", "r3", None]), min_size=1
)


@given(SPREADS)
def test_leaders_and_copies_are_even_within_a_topic(sizes: tuple[int, int, int]) -> None:
    count, partitions, copies = sizes
    brokers = no_racks("abcdefgh"[:count])
    found = placement.spread(brokers, placement.Load(), partitions, copies)
    assert len(found) == partitions
    assert all(len(one) == min(copies, count) == len(set(one)) for one in found)
    load = placement.Load.of(found)
    assert range_of(load.leaders, brokers) <= 1
    assert range_of(load.copies, brokers) <= 1


@given(RACKS, st.integers(1, 20), st.integers(1, 5))
def test_copies_are_on_as_many_racks_as_there_are(racks: Racks, count: int, copies: int) -> None:
    known = Counter(one if rack is None else rack for one, rack in racks.items())
    for target in placement.spread(racks, placement.Load(), count, copies):
        used = {racks[one] or one for one in target}
        assert len(used) == min(len(known), len(target))


@given(RACKS, st.integers(1, 20), st.integers(1, 3))
def test_equal_inputs_give_equal_plans(racks: Racks, count: int, copies: int) -> None:
    other = dict(reversed(list(racks.items())))
    found = placement.spread(racks, placement.Load(), count, copies)
    assert found == placement.spread(other, placement.Load(), count, copies)


def test_topics_of_one_partition_are_spread_over_the_cluster() -> None:
    topics: list[Topic] = []
    for number in range(9):
        there = view(no_racks("abc"), *topics)
        topics.append(topic(f"t{number}", placement.place(there, 1, 2)))
    load = placement.load(view(no_racks("abc"), *topics))
    assert set(load.leaders.values()) == {3}
    assert set(load.copies.values()) == {6}


def test_brokers_that_stop_or_are_drained_get_nothing() -> None:
    there = replace(view(no_racks("abcd"), drains="a"), draining=frozenset("b"))
    assert {one for target in placement.place(there, 6, 3) for one in target} == {"c", "d"}


# ── drain ────────────────────────────────────────────────────────────────────────────────────


def drained(there: ClusterView, min_isr: int | None = None) -> list[Topic]:
    return placement.drained(there, lambda topic: min_isr)


def test_a_drained_broker_is_replaced_where_it_stood() -> None:
    there = view(no_racks("abcd"), topic("t", ["abc", "bca", "cab"]), drains="a")
    assert targets_of(drained(there)) == ["dbc", "bcd", "cdb"]


def test_a_drained_broker_is_replaced_on_a_rack_that_is_not_used_yet() -> None:
    racks = {"a": "r1", "b": "r2", "c": "r2", "d": "r1", "e": "r2"}
    there = view(racks, topic("t", ["ab"]), topic("u", ["de", "dc", "dc"]), drains="a")
    assert targets_of(drained(there)) == ["db"]


def test_without_another_broker_only_auto_topics_lose_a_copy() -> None:
    auto, fixed = topic("t", ["abc", "bca"]), topic("u", ["abc"], replicas=3)
    there = view(no_racks("abc"), auto, fixed, drains="a")
    assert targets_of(drained(there)) == ["bc", "bc"]
    assert [one.name for one in drained(there)] == ["t"]
    assert ("u", 0) in placement.held_back(there)


def test_no_topic_is_left_with_fewer_copies_than_it_needs_to_be_written() -> None:
    there = view(no_racks("abc"), topic("t", ["abc", "bca"]), drains="a")
    assert drained(there, min_isr=3) == []
    assert placement.held_back(there) == [("t", 0), ("t", 1)]
    assert targets_of(drained(there, min_isr=2)) == ["bc", "bc"]


def test_a_drain_leaves_no_single_copy_where_there_were_two() -> None:
    there = view(no_racks("ab"), topic("t", ["ab", "b"]), drains="b")
    assert drained(there) == [placement.retargeted(there.catalog.by_name["t"], {1: "a"})]
    assert placement.held_back(there) == [("t", 0), ("t", 1)]


def test_the_last_copy_stays_if_nobody_can_take_it() -> None:
    assert drained(view(no_racks("a"), topic("t", ["a"]), drains="a")) == []


def test_several_brokers_are_drained_at_once() -> None:
    there = view(no_racks("abcdef"), topic("t", ["abc", "bcd", "cda"]), drains="ab")
    for target in targets_of(drained(there)):
        assert len(set(target)) == 3
        assert not set(target) & set("ab")


@given(
    st.lists(st.permutations("abcde").map(lambda one: tuple(one[:3])), min_size=1, max_size=20),
    st.sampled_from("abcde"),
)
def test_draining_moves_only_what_was_there(targets: list[tuple[str, ...]], gone: str) -> None:
    there = view(no_racks("abcde"), topic("t", targets), drains=gone)
    changed = drained(there)
    after = [one.replicas for one in changed[0].partitions] if changed else targets
    for before, target in zip(targets, after, strict=True):
        assert gone not in target
        assert len(set(target)) == 3
        same = [old == new for old, new in zip(before, target, strict=True)]
        assert same == [old != gone for old in before]


def test_what_leaves_a_broker_goes_to_those_with_least() -> None:
    targets = ["ab", "ab", "ab", "ab", "cd", "cd"]
    there = view(no_racks("abcd"), topic("t", targets), drains="a")
    changed = drained(there)
    load = placement.Load.of(one.replicas for one in changed[0].partitions)
    assert load.copies == {"b": 4, "c": 4, "d": 4}


# ── auto ─────────────────────────────────────────────────────────────────────────────────────


def test_auto_topics_get_copies_when_brokers_join() -> None:
    auto, fixed = topic("t", ["a", "a", "a"]), topic("u", ["a"], replicas=1)
    there = view(no_racks("ab"), auto, fixed)
    assert targets_of(placement.raised(there)) == ["ab", "ab", "ab"]
    assert [one.name for one in placement.raised(there)] == ["t"]
    there = view(no_racks("abcde"), auto)
    (raised,) = placement.raised(there)
    assert all(len(one.replicas) == 3 and one.replicas[0] == "a" for one in raised.partitions)
    load = placement.Load.of(one.replicas for one in raised.partitions)
    assert range_of(load.copies, no_racks("bcde")) <= 1


def test_auto_topics_keep_what_they_have() -> None:
    assert placement.raised(view(no_racks("ab"), topic("t", ["abc"]))) == []
    assert placement.raised(view(no_racks("abcd"), topic("t", ["abc"]))) == []
