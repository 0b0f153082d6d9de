"""Assignments: even, sticky, deterministic."""

import random
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given, strategies as st

from tailrace.broker.assignment import Partition, assign

A, B, C = (bytes([one]) * 16 for one in b"abc")


def numbers(**counts: int) -> dict[bytes, range]:
    return {name.encode() * 16: range(count) for name, count in counts.items()}


def everybody(*members: str, topics: frozenset[bytes]) -> dict[str, frozenset[bytes]]:
    return dict.fromkeys(members, topics)


def loads(
    result: Mapping[Partition, str], members: Mapping[str, frozenset[bytes]]
) -> dict[str, int]:
    return {member: 0 for member in members} | Counter(result.values())


def moves(before: Mapping[Partition, str], after: Mapping[Partition, str]) -> int:
    return sum(1 for key, member in before.items() if after.get(key) != member)


def test_partitions_are_dealt_out_topic_by_topic_to_members_in_turn() -> None:
    result = assign(numbers(a=3, b=2), everybody("ann", "bob", topics=frozenset((A, B))), {})
    assert result == {(A, 0): "ann", (A, 1): "bob", (A, 2): "ann", (B, 0): "bob", (B, 1): "ann"}


def test_nobody_gets_a_topic_that_nobody_subscribes_to() -> None:
    assert assign(numbers(a=2, b=1), {"ann": frozenset((B,))}, {(A, 0): "ann"}) == {(B, 0): "ann"}
    assert assign(numbers(a=2), {}, {(A, 0): "ann"}) == {}


def test_a_newcomer_gets_its_share_and_nothing_else_moves() -> None:
    members = everybody("ann", "bob", topics=frozenset((A,)))
    before = assign(numbers(a=9), members, {})
    after = assign(numbers(a=9), members | everybody("cid", topics=frozenset((A,))), before)
    assert sorted(Counter(after.values()).values()) == [3, 3, 3]
    assert moves(before, after) == 3
    assert {after[key] for key in before if after[key] != before[key]} == {"cid"}


def test_what_a_member_leaves_behind_is_all_that_moves() -> None:
    members = everybody("ann", "bob", "cid", topics=frozenset((A,)))
    before = assign(numbers(a=10), members, {})
    del members["bob"]
    after = assign(numbers(a=10), members, before)
    assert {before[key] for key in before if after[key] != before[key]} == {"bob"}


def test_the_one_too_many_stays_with_whoever_has_it() -> None:
    members = everybody("ann", "bob", topics=frozenset((A,)))
    current = {(A, 0): "bob", (A, 1): "ann", (A, 2): "bob"}
    assert assign(numbers(a=3), members, current) == current


def test_partitions_on_their_way_are_given_up_first() -> None:
    members = everybody("ann", "bob", "cid", topics=frozenset((A,)))
    current = {(A, number): "ann" if number < 3 else "bob" for number in range(6)}
    after = assign(numbers(a=6), members, current, loose={(A, 0), (A, 4)})
    assert {key for key in current if after[key] != current[key]} == {(A, 0), (A, 4)}


def test_who_gives_up_one_is_who_has_some_on_their_way() -> None:
    members = everybody("ann", "bob", "cid", topics=frozenset((A,)))
    current = {(A, 0): "ann", (A, 1): "ann", (A, 2): "bob", (A, 3): "bob"}
    for loose in ((A, 0), (A, 2)):
        after = assign(numbers(a=4), members, current, loose={loose})
        assert {key for key in current if after[key] != current[key]} == {loose}


def test_a_member_gives_up_the_same_share_of_every_topic() -> None:
    members = everybody("ann", "bob", topics=frozenset((A, B)))
    current = dict.fromkeys([(A, 0), (A, 1), (A, 2), (A, 3), (B, 0), (B, 1)], "ann")
    after = assign(numbers(a=4, b=2), members, current)
    assert Counter(topic for (topic, _), member in after.items() if member == "bob") == {A: 2, B: 1}


def test_who_may_read_more_gets_less_of_what_others_may_read_too() -> None:
    """A rolling deploy: the new version subscribes one topic more."""
    members = {"ann": frozenset((A,)), "bob": frozenset((A, B))}
    result = assign(numbers(a=8, b=4), members, {})
    assert loads(result, members) == {"ann": 6, "bob": 6}
    lopsided = assign(numbers(a=2, b=6), members, {})
    assert loads(lopsided, members) == {"ann": 2, "bob": 6}


TIERS = (frozenset((A,)), frozenset((A, B)), frozenset((A, B, C)))
MEMBERS = st.dictionaries(st.sampled_from("stuvwxyz"), st.sampled_from(TIERS), max_size=8)
COUNTS = st.fixed_dictionaries({topic: st.integers(0, 9).map(range) for topic in (A, B, C)})
ROUNDS = st.lists(st.tuples(COUNTS, MEMBERS), min_size=1, max_size=4)


@given(ROUNDS)
def test_every_assignment_is_complete_even_and_stays_as_it_is(
    rounds: list[tuple[dict[bytes, range], dict[str, frozenset[bytes]]]],
) -> None:
    current: dict[Partition, str] = {}
    for counts, members in rounds:
        result = assign(counts, members, current)
        read = frozenset[bytes]().union(*members.values())
        assert set(result) == {(topic, one) for topic in read for one in counts[topic]}
        assert all(topic in members[member] for (topic, _), member in result.items())
        number = loads(result, members)
        for (topic, _), member in result.items():  # no single move would make it more even
            least = min(number[other] for other in members if topic in members[other])
            assert number[member] - least <= 1
        assert assign(counts, members, result) == result
        current = result


@given(st.integers(0, 30), st.lists(st.sets(st.sampled_from("stuvwxyz"), min_size=1), min_size=2))
def test_no_more_partitions_move_than_have_to(count: int, rounds: list[set[str]]) -> None:
    current: dict[Partition, str] = {}
    for names in rounds:
        members = everybody(*names, topics=frozenset((A,)))
        result = assign(numbers(a=count), members, current)
        held = sorted(sum(current.get(key) == name for key in current) for name in names)
        low, rest = divmod(count, len(names))
        quotas = [low] * (len(names) - rest) + [low + 1] * rest
        kept = sum(min(*pair) for pair in zip(held, quotas, strict=True))
        assert count - moves(result, current) == kept
        current = result


def test_the_order_of_dicts_does_not_matter() -> None:
    members = everybody(*"stuvwxyz", topics=frozenset((A, B)))
    keys = [(topic, number) for topic in (A, B) for number in range(10)]
    current = {key: "stuvwxyz"[place % 5] for place, key in enumerate(keys)}
    results: list[dict[Partition, str]] = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(sorted(members), len(members))
        some = random.Random(seed).sample(keys, len(keys))
        results.append(
            assign(
                numbers(b=10, a=10) if seed else numbers(a=10, b=10),
                {member: members[member] for member in shuffled},
                {key: current[key] for key in some},
            )
        )
    assert all(one == other for one, other in pairwise(results))


def test_a_thousand_members_of_a_thousand_partitions() -> None:
    members = {f"member-{number}": frozenset((A,)) for number in range(1_000)}
    before = assign(numbers(a=1_000), members, {})
    assert set(Counter(before.values()).values()) == {1}
    half = dict(list(members.items())[:500])
    after = assign(numbers(a=1_000), half, before)
    assert (moves(before, after), set(Counter(after.values()).values())) == (500, {2})
