"""Committed offsets of a group: who may commit, what holds, what is on its way to the disk."""

import pytest

from tailrace.broker.group import Group
from tailrace.broker.group_offsets import Writes
from tailrace.protocol.errors import GroupNotEmpty
from tailrace.protocol.messages import CommitOffsetsRequest, CommittedOffset, OwnedPartitions
from tailrace.protocol.messages_group import METADATA_BYTES_MAX
from tests.broker.grouping import (
    HELLO,
    NOW_MS,
    WORLD,
    commit,
    commits,
    new_group,
    request,
    send,
    shapes,
)


def store(group: Group, one: CommitOffsetsRequest) -> list[tuple[int, int]]:
    """Commit and write; code (0: none) and what holds, of each partition."""
    writes = group.check_commit(one, NOW_MS)
    group.applied(writes.puts)
    return outcome(group, one, writes)


def outcome(group: Group, one: CommitOffsetsRequest, writes: Writes) -> list[tuple[int, int]]:
    return [
        (0 if result.error is None else result.error.code, result.offset)
        for result in group.commit_response(one, writes).results
    ]


def with_ann() -> Group:
    group = new_group(shapes(hello=2))
    send(group, request("ann"))
    return group


def test_each_partition_succeeds_or_fails_for_itself() -> None:
    group = with_ann()
    one = commits(
        "ann",
        commit(0, 10, 1),
        commit(1, 11, 7),
        commit(2, 12, 1),
        commit(0, 13, 1, topic_id=WORLD),
        commit(1, 14, 1, metadata="é" * METADATA_BYTES_MAX),
    )
    assert store(group, one) == [(0, 10), (42, -1), (11, -1), (10, -1), (82, -1)]
    assert set(group.offsets) == {(HELLO, 0)}


def test_a_member_that_is_none_commits_nothing() -> None:
    group = with_ann()
    assert store(group, commits("bob", commit(0, 10, 1))) == [(42, -1)]


def test_from_outside_only_while_there_are_no_members() -> None:
    group = with_ann()
    with pytest.raises(GroupNotEmpty):
        group.check_commit(commits("", commit(0, 10, -1)), NOW_MS)
    group.leave(0.0, "ann")
    assert store(group, commits("", commit(0, 10, -1))) == [(0, 10)]


def test_a_lower_commit_changes_nothing_and_says_what_holds() -> None:
    group = with_ann()
    store(group, commits("ann", commit(0, 10, 1)))
    lower = commits("ann", commit(0, 4, 1))
    assert group.check_commit(lower, NOW_MS).puts == {}
    assert store(group, lower) == [(0, 10)]


def test_the_same_offset_again_is_written_only_for_other_words() -> None:
    group = with_ann()
    store(group, commits("ann", commit(0, 10, 1, metadata="a")))
    assert not group.check_commit(commits("ann", commit(0, 10, 1, metadata="a")), NOW_MS).puts
    assert store(group, commits("ann", commit(0, 10, 1, metadata="b"))) == [(0, 10)]
    assert group.offsets[HELLO, 0].metadata == "b"


def test_a_commit_reckons_with_what_is_on_its_way_to_the_disk() -> None:
    """S24: else the lower one would be written behind the higher one, and hold after a restart."""
    group = with_ann()
    high, low = commits("ann", commit(0, 90, 1)), commits("ann", commit(0, 60, 1))
    first, second = group.check_commit(high, NOW_MS), group.check_commit(low, NOW_MS)
    assert second.puts == {}
    assert group.fetch(None).offsets == ()  # not durable yet
    group.applied(first.puts)
    assert outcome(group, low, second) == [(0, 90)]


def test_a_commit_that_was_not_written_never_happened() -> None:
    group = with_ann()
    group.check_commit(commits("ann", commit(0, 90, 1)), NOW_MS)
    group.failed()
    assert store(group, commits("ann", commit(0, 60, 1))) == [(0, 60)]


def test_two_commits_on_their_way_end_with_the_newer_one() -> None:
    group = with_ann()
    first = group.check_commit(commits("ann", commit(0, 5, 1)), NOW_MS)
    second = group.check_commit(commits("ann", commit(0, 6, 1)), NOW_MS)
    group.applied(first.puts)
    assert not group.check_commit(commits("ann", commit(0, 6, 1)), NOW_MS).puts
    group.applied(second.puts)
    assert group.offsets[HELLO, 0].offset == 6


def test_what_was_never_committed_is_answered_so() -> None:
    group = with_ann()
    store(group, commits("ann", commit(1, 10, 1, metadata="x")))
    present = CommittedOffset(HELLO, 1, 10, 3, 1_000, 2_000, NOW_MS, "x")
    missing = CommittedOffset(WORLD, 0, -1, -1, -1, -1, -1, "")
    asked = (OwnedPartitions(WORLD, (0,)), OwnedPartitions(HELLO, (1,)))
    assert group.fetch(asked).offsets == (missing, present)
    assert group.fetch(None).offsets == (present,)


def test_only_a_reset_lowers_and_only_in_an_empty_group() -> None:
    group = with_ann()
    store(group, commits("ann", commit(0, 10, 1)))
    with pytest.raises(GroupNotEmpty):
        group.check_reset({(HELLO, 0): 3}, NOW_MS)
    group.leave(0.0, "ann")
    group.applied(group.check_reset({(HELLO, 0): 3}, NOW_MS).puts)
    assert (group.offsets[HELLO, 0].offset, group.offsets[HELLO, 0].leader_epoch) == (3, -1)


def test_offsets_of_a_topic_that_is_gone_are_forgotten_and_named() -> None:
    group = new_group(shapes(hello=1, world=1))
    store(group, commits("", commit(0, 1, -1), commit(0, 2, -1, topic_id=WORLD)))
    assert group.topics() == ("hello", "world")
    assert group.topics_changed(0.0, shapes(hello=1)) == [(WORLD, 0)]
    assert set(group.offsets) == {(HELLO, 0)}
