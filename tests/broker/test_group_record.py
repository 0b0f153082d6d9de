"""Groups as bytes: what is written comes back, and nothing else is taken for it."""

import pytest
from hypothesis import given, strategies as st

from tailrace.broker.group import Group
from tailrace.broker.group_offsets import Committed
from tailrace.broker.group_record import (
    RecordError,
    offset_key,
    offset_value,
    read_key,
    read_offset,
    restore,
    state_key,
    state_value,
)
from tailrace.protocol.messages_group import AWAY_EPOCH
from tailrace.protocol.packing import pack
from tests.broker.grouping import HELLO, new_group, request, send, shapes

I64 = st.integers(-(1 << 63), (1 << 63) - 1)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def reloaded(group: Group, now: float = 100.0) -> Group:
    anew = new_group(group.balance.topics)
    restore(anew, state_value(group), now)
    anew.reloaded(now)
    return anew


@given(NAMES, st.binary(min_size=16, max_size=16), st.integers(0, (1 << 32) - 1))
def test_keys_begin_with_the_name_and_come_back(name: str, topic_id: bytes, number: int) -> None:
    for key, partition in (
        (state_key(name), None),
        (offset_key(name, (topic_id, number)), (topic_id, number)),
    ):
        assert key.startswith(name.encode())
        assert read_key(key) == (name, partition)


@given(st.builds(Committed, I64, I64, I64, I64, I64, st.text()))
def test_offsets_come_back(committed: Committed) -> None:
    assert read_offset(offset_value(committed)) == committed


def test_a_group_comes_back_as_it_was() -> None:
    group = new_group(shapes(hello=5, world=2))
    send(group, request("ann", topics=("hello", "world"), instance_id="a"), 1.0)
    send(group, request("ann2", topics=("hello", "world"), instance_id="a"), 2.0)
    send(group, request("bob", topics=("hello",), rebalance_ms=7_000), 3.0)
    send(group, request("ann2", AWAY_EPOCH, instance_id="a"))
    anew = reloaded(group)
    assert state_value(anew) == state_value(group)
    assert (anew.changes, anew.stable) == (0, True)
    assert [member.expires_at for member in anew.members] == [110.0, 110.0]


def test_a_withdrawal_goes_on_after_a_reload_with_all_of_its_time() -> None:
    group = new_group(shapes(hello=2))
    send(group, request("ann", session_ms=100_000), 0.0)
    send(group, request("bob", session_ms=100_000), 1.0)
    anew = reloaded(group, 50.0)
    anew.written = anew.changes
    assert anew.next_deadline() == 110.0
    answer = send(anew, request("ann", group.members["ann"].epoch, owned=[0]), 51.0)
    assert answer.stable
    assert anew.owner(HELLO, 1) == "bob"


def test_a_topic_that_went_while_nobody_looked_is_gone_after_a_reload() -> None:
    group = new_group(shapes(hello=1, world=1))
    send(group, request("ann", topics=("hello", "world")))
    anew = new_group(shapes(hello=1))
    restore(anew, state_value(group), 0.0)
    anew.reloaded(0.0)
    assert anew.dirty
    assert (anew.generation, list(anew.ownership.holdings)) == (2, [(HELLO, 0)])


def test_members_that_waited_for_the_first_assignment_get_it_after_a_reload() -> None:
    group = new_group(assign_delay_s=0.2)
    send(group, request("ann"))
    assert not group.ownership.holdings
    assert len(reloaded(group).ownership.holdings) == 4


def test_a_group_is_void_until_something_of_it_is_stored() -> None:
    group = new_group()
    assert group.void
    group.applied({(HELLO, 0): Committed(1, -1, -1, -1, 0, "")})
    assert not group.void


def test_an_empty_group_stays_empty() -> None:
    group = new_group()
    send(group, request("ann"))
    group.leave(0.0, "ann")
    anew = reloaded(group)
    assert (anew.state, anew.generation, anew.changes) == ("empty", 2, 0)
    assert not anew.void


@pytest.mark.parametrize(
    "key", [b"", b"app", b"app\x00", b"app\x00x", b"app\x00o123", b"\xff\x00g", b"app\x00gg"]
)
def test_a_key_of_another_kind_is_refused(key: bytes) -> None:
    with pytest.raises(RecordError):
        read_key(key)


@pytest.mark.parametrize("value", [b"", b"\xc1", pack(1), pack([]), pack([2, 1]), pack([1, 2])])
def test_a_value_of_another_version_or_shape_is_refused(value: bytes) -> None:
    with pytest.raises(RecordError):
        read_offset(value)
    with pytest.raises(RecordError):
        restore(new_group(), value, 0.0)


def test_every_cut_of_a_state_is_refused() -> None:
    group = new_group()
    send(group, request("ann"))
    value = state_value(group)
    for length in range(len(value)):
        with pytest.raises(RecordError):
            restore(new_group(), value[:length], 0.0)
