"""What the transcripts do not tell of groups: limits, refusals, notices, deadlines."""

import math

import pytest

from tailrace.broker.group_balance import SUBSCRIBED_MAX
from tailrace.broker.group_members import SUBSCRIPTIONS_MAX, TOPICS_MAX
from tailrace.broker.group_notices import KEPT_MAX, PARTITIONS_MAX
from tailrace.protocol.errors import ConfigError, GroupConfigMismatch, GroupFenced, InvalidName
from tailrace.protocol.messages import AssignedPartitionName, MemberDescription
from tailrace.protocol.messages_group import AWAY_EPOCH, LEAVE_EPOCH
from tests.broker.grouping import (
    HELLO,
    NOW_MS,
    WORLD,
    new_group,
    numbers_of,
    request,
    send,
    settle,
    shapes,
    who,
)

# ── being told ───────────────────────────────────────────────────────────────────────────────


def test_nothing_is_told_before_it_is_written() -> None:
    group = new_group()
    join = request("ann")
    group.heartbeat(0.0, join, who("ann"))
    assert group.dirty
    assert not group.ready(join)
    with pytest.raises(AssertionError, match="written"):
        group.answer(join)
    group.written = group.changes
    assert group.ready(join)
    assert numbers_of(group.answer(join)) == [0, 1, 2, 3]


def test_a_heartbeat_without_news_waits_and_changes_nothing() -> None:
    group = new_group()
    answer = send(group, request("ann"))
    beat = request("ann", answer.member_epoch, owned=range(4), told=1)
    group.heartbeat(1.0, beat, who("ann"))
    assert not group.ready(beat)
    assert not group.dirty
    assert group.hold_s(beat) == 3.0


def test_a_heartbeat_waits_no_longer_than_a_third_of_the_session() -> None:
    group = new_group()
    short = request("ann", session_ms=3_000)
    assert send(group, short).interval_ms == 1_000
    assert group.hold_s(short) == 1.0


def test_who_was_thrown_out_while_its_heartbeat_waited_is_told() -> None:
    group = new_group()
    answer = send(group, request("ann"))
    beat = request("ann", answer.member_epoch, told=1)
    group.leave(1.0, "ann", reason="session timed out")
    group.written = group.changes
    assert group.ready(beat)
    with pytest.raises(GroupFenced, match="session timed out"):
        group.answer(beat)


def test_goodbye_is_answered() -> None:
    group = new_group()
    send(group, request("ann"))
    assert send(group, request("ann", LEAVE_EPOCH)).assigned == ()
    assert group.state == "empty"
    assert send(group, request("ann", LEAVE_EPOCH)).members == 0  # once more: the answer was lost


def test_who_cannot_come_back_by_an_instance_id_leaves_for_good() -> None:
    group = new_group()
    send(group, request("ann"))
    send(group, request("ann", AWAY_EPOCH))
    assert group.state == "empty"


def test_an_away_member_is_not_brought_back_by_a_late_heartbeat() -> None:
    group = new_group()
    epoch = send(group, request("ann", instance_id="a")).member_epoch
    send(group, request("ann", AWAY_EPOCH, instance_id="a"))
    with pytest.raises(GroupFenced, match="goes away"):
        send(group, request("ann", epoch, instance_id="a"))
    assert numbers_of(send(group, request("ann", instance_id="a"))) == [0, 1, 2, 3]


def test_what_an_away_member_shall_give_up_goes_at_once() -> None:
    group = new_group()
    send(group, request("ann", instance_id="a"))
    send(group, request("ann", AWAY_EPOCH, instance_id="a"))
    assert len(numbers_of(send(group, request("bob")))) == 2
    assert group.stable


def test_epochs_of_a_former_life_are_never_given_again() -> None:
    """Else a late heartbeat of it would pass for one of this life, and release partitions."""
    group = new_group(shapes(hello=2))
    old = send(group, request("ann")).member_epoch
    group.leave(1.0, "ann")
    assert send(group, request("ann")).member_epoch > old


# ── who gets in ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("session_ms", [999, 300_001])
def test_a_session_outside_the_bounds_is_refused_by_the_names_of_the_settings(
    session_ms: int,
) -> None:
    group = new_group()
    with pytest.raises(ConfigError, match=r"group\.session_timeout_min.*_max") as caught:
        send(group, request("ann", session_ms=session_ms))
    assert caught.value.code == "T082"
    assert group.changes == 0


def test_a_full_group_still_takes_back_its_own() -> None:
    group = new_group(members_max=2)
    send(group, request("ann", instance_id="a"))
    send(group, request("bob"))
    with pytest.raises(ConfigError, match=r"group\.members_max = 2"):
        send(group, request("cid"))
    send(group, request("bob"))
    send(group, request("ann2", instance_id="a"))
    assert group.members.ids() == ["ann2", "bob"]


@pytest.mark.parametrize("member_id", ["", "a\nb", "x" * 256])
def test_ids_nobody_may_have_are_refused(member_id: str) -> None:
    group = new_group()
    with pytest.raises(InvalidName):
        send(group, request(member_id))
    with pytest.raises(InvalidName):
        send(group, request("ann", instance_id=member_id))


def test_a_subscription_is_bounded() -> None:
    group = new_group()
    with pytest.raises(ConfigError, match="1,001 topics must be at most 1,000"):
        send(group, request("ann", topics=("hello",) * (TOPICS_MAX + 1)))
    for topic in ("", "a\nb", "x" * 250):
        with pytest.raises(InvalidName):
            send(group, request("ann", topics=(topic,)))


def test_subscriptions_of_a_group_differ_in_a_few_ways_at_most() -> None:
    group = new_group()
    for number in range(SUBSCRIPTIONS_MAX):
        names = tuple(f"t{one}" for one in range(number + 1))
        send(group, request(f"member-{number}", topics=names))
    with pytest.raises(ConfigError, match="16 different subscriptions"):
        send(group, request("ann", topics=()))
    send(group, request("ann", topics=("t0", "t1")))


def test_names_of_topics_that_never_were_are_not_remembered_for_ever() -> None:
    group = new_group()
    for round_ in range(SUBSCRIBED_MAX // TOPICS_MAX + 1):
        names = tuple(f"typo-{round_}-{number}" for number in range(TOPICS_MAX - 1))
        send(group, request("ann", topics=("hello", *names)))
        group.leave(0.0, "ann")
    assert len(group.balance.subscribed) <= SUBSCRIBED_MAX
    assert "hello" in group.balance.subscribed


def test_an_epoch_that_means_nothing_is_refused() -> None:
    with pytest.raises(GroupFenced, match="there is no epoch -7"):
        send(new_group(), request("ann", -7))


def test_a_subscription_must_be_nested_in_every_other_one() -> None:
    group = new_group(shapes(world=1))
    send(group, request("ann", topics=("hello",)))
    send(group, request("bob", topics=("hello", "world")))
    with pytest.raises(GroupConfigMismatch) as caught:
        send(group, request("cid", topics=("world",)))
    assert (caught.value.yours, caught.value.theirs) == (["world"], ["hello"])
    assert "client of ann" in caught.value.message


def test_equal_subscriptions_are_kept_once() -> None:
    group = new_group(shapes(hello=1, world=1))
    for member_id in ("ann", "bob"):
        send(group, request(member_id, topics=("".join("hello"), "world")))
    assert group.members["ann"].topics is group.members["bob"].topics
    told = send(group, request("bob", group.members["bob"].epoch, topics=("hello",)))
    send(group, request("bob", told.member_epoch, topics=("hello", "".join("world"))))
    assert group.members["ann"].topics is group.members["bob"].topics
    assert group.members.topics() == {"hello", "world"}


def test_a_member_may_change_its_subscription() -> None:
    group = new_group(shapes(hello=1, world=1))
    epoch = send(group, request("ann", topics=("hello",))).member_epoch
    answer = send(group, request("ann", epoch, owned=[0], topics=("hello", "world")))
    assert [topic.topic for topic in answer.assigned] == ["hello", "world"]
    assert answer.rebalances[-1].reason == "subscription changed"
    late = request("ann", epoch, owned=[0], topics=("hello",))  # sent before the change
    assert [topic.topic for topic in send(group, late).assigned] == ["hello", "world"]


def test_a_topic_that_its_owner_does_not_subscribe_any_more_is_withdrawn_first() -> None:
    group = new_group(shapes(hello=1, world=1))
    send(group, request("ann", topics=("hello", "world")))
    epoch = group.members["ann"].epoch
    answer = send(group, request("ann", epoch, owned=[0], topics=("world",)))
    assert not answer.stable
    assert [topic.topic for topic in answer.assigned] == ["world"]
    assert send(group, request("ann", answer.member_epoch, topics=("world",))).stable
    assert group.owner(HELLO, 0) is None


def test_a_member_that_joins_again_keeps_what_it_says_it_owns() -> None:
    group = new_group()
    send(group, request("ann"))
    answer = send(group, request("ann", owned=[1, 2]))
    assert {
        one.partition: one.assignment_epoch for topic in answer.assigned for one in topic.partitions
    } == {0: 2, 1: 1, 2: 1, 3: 2}


# ── deadlines ────────────────────────────────────────────────────────────────────────────────


def test_the_next_deadline_is_never_late() -> None:
    group = new_group(assign_delay_s=0.2)
    assert group.next_deadline() == math.inf
    group.heartbeat(0.0, request("ann"), who("ann"))
    assert group.next_deadline() == 0.2
    group.expire(0.2)
    assert group.next_deadline() == 10.0
    group.heartbeat(4.0, request("ann", group.members["ann"].epoch), who("ann"))
    assert group.next_deadline() <= 14.0
    assert group.expire(10.0) == []
    assert group.next_deadline() == 14.0
    group.heartbeat(5.0, request("bob", rebalance_ms=1_000), who("bob"))
    assert group.next_deadline() == 14.0
    group.heartbeat(6.0, request("cid", session_ms=1_000), who("cid"))
    assert group.next_deadline() == 7.0


def test_the_first_member_may_go_before_the_first_assignment() -> None:
    group = new_group(assign_delay_s=0.2)
    send(group, request("ann"))
    group.leave(0.1, "ann")
    group.expire(0.2)
    assert (group.state, group.next_deadline()) == ("empty", math.inf)
    assert send(group, request("bob"), 5.0).assigned == ()
    group.expire(5.2)
    group.written = group.changes
    assert len(numbers_of(group.answer(request("bob")))) == 4


def test_a_withdrawal_ends_when_the_newcomer_is_gone_before_the_time_is_up() -> None:
    """Both fall due in the same moment: nothing is taken for somebody who is not there."""
    group = new_group()
    send(group, request("ann", session_ms=60_000, rebalance_ms=10_000))
    send(group, request("bob", session_ms=10_000))
    assert [member.member_id for member in group.expire(10.0)] == ["bob"]
    assert group.stable
    assert {holding.since for holding in group.ownership.holdings.values()} == {1}


def test_nobody_is_late_after_the_broker_itself_was_away() -> None:
    group = new_group()
    send(group, request("ann", rebalance_ms=20_000))
    send(group, request("bob"))
    group.fresh_sessions(500.0)
    assert group.expire(500.0) == []
    assert group.next_deadline() == pytest.approx(503.333)
    answer = send(group, request("ann", 4, owned=[0, 1, 2]), 501.0)
    assert numbers_of(answer) == [0, 1]
    assert group.owner(HELLO, 3) == "bob"


# ── notices ──────────────────────────────────────────────────────────────────────────────────


def test_changes_that_overlap_are_one_rebalance() -> None:
    group = new_group()
    send(group, request("ann"), 0.0)
    send(group, request("bob"), 1.0)
    send(group, request("cid"), 2.0)
    group.leave(2.5, "bob")
    group.take_ended()
    settle(group, "ann", "cid", now=3.0)
    (ended,) = group.take_ended()
    assert (ended.reason, ended.took_ms) == ("member joined, member left", 2_000)
    assert {one.client_id for one in ended.moved} == {"client of cid"}
    assert group.take_ended() == []


def test_a_rebalance_names_its_reasons_as_they_came() -> None:
    group = new_group(shapes(hello=1, world=1))
    told = send(group, request("ann", topics=("hello", "world")))
    group.take_ended()
    send(group, request("ann", told.member_epoch, owned=[0]))
    send(group, request("bob"))
    group.leave(0.0, "ann")
    (ended,) = group.take_ended()
    assert ended.reason == "subscription changed, member joined, member left"


def test_a_member_is_told_of_rebalances_since_it_joined() -> None:
    group = new_group()
    send(group, request("ann"))
    send(group, request("bob"))
    answers = settle(group, "ann", "bob")
    assert [one.generation for one in answers["bob"].rebalances] == [2]
    assert [one.generation for one in answers["ann"].rebalances] == [1, 2]
    told = request("ann", group.members["ann"].epoch, told=2)
    assert send(group, told).rebalances == ()


def test_notices_are_bounded() -> None:
    group = new_group(shapes(hello=PARTITIONS_MAX + 7))
    for _ in range(KEPT_MAX):
        send(group, request("ann"))
        group.leave(0.0, "ann")
    answer = send(group, request("ann", told=0))
    (newest,) = answer.rebalances
    assert sum(len(one.partitions) for one in newest.moved) == PARTITIONS_MAX
    assert newest.more == 7
    assert len(group.take_ended()) == KEPT_MAX


# ── topics ───────────────────────────────────────────────────────────────────────────────────


def test_a_topic_made_anew_is_another_one_at_once() -> None:
    group = new_group(shapes(hello=2))
    send(group, request("ann"))
    anew = shapes(hello=2)
    anew = type(anew)({"hello": anew.by_name["hello"]._replace(topic_id=WORLD)})
    group.topics_changed(1.0, anew)
    group.written = group.changes
    (topic,) = group.answer(request("ann", group.members["ann"].epoch)).assigned
    assert (topic.topic_id, [one.added_later for one in topic.partitions]) == (WORLD, [True] * 2)
    assert group.stable  # nothing of the old one has to be given up first


def test_what_existed_counts_from_the_first_subscription_of_each_topic() -> None:
    group = new_group(shapes(hello=1))
    send(group, request("ann", topics=("hello",)))
    group.leave(0.0, "ann")
    group.topics_changed(1.0, shapes(hello=2, world=3))
    answer = send(group, request("bob", topics=("hello", "world")))
    assert [
        (topic.topic, [one.added_later for one in topic.partitions]) for topic in answer.assigned
    ] == [("hello", [False, True]), ("world", [False] * 3)]


def test_a_change_of_other_topics_is_not_written() -> None:
    group = new_group(shapes(hello=1))
    send(group, request("ann"))
    assert group.topics_changed(1.0, shapes(hello=1, world=2)) == []
    assert not group.dirty


# ── looking at it ────────────────────────────────────────────────────────────────────────────


def test_members_are_described() -> None:
    group = new_group(shapes(hello=1))
    send(group, request("bob"), 1.0)
    send(group, request("ann", instance_id="a"), 2.0)
    ann, bob = group.describe_members(4.0, NOW_MS)
    assert ann == MemberDescription(
        "ann", "a", "client of ann", "10.0.0.7", "1.2", (), NOW_MS - 2_000
    )
    assert bob.assigned == (AssignedPartitionName("hello", 0),)
    assert (group.state, group.topics(), group.owner(HELLO, 0)) == ("stable", ("hello",), "bob")
