"""One member's view of its group: what it reports, and what each answer means."""

from tailrace.client.membership import (
    Assigned,
    Assignment,
    Event,
    Failed,
    Left,
    Lost,
    Membership,
    Rebalanced,
    Status,
    Withdrawn,
)
from tailrace.protocol import texts_group
from tailrace.protocol.errors import GroupFenced
from tailrace.protocol.messages import Rebalance
from tailrace.protocol.messages_group import AWAY_EPOCH, JOIN_EPOCH, LEAVE_EPOCH
from tests.client.group_messages import answer, identity, owned


def numbers(event: Event) -> list[int]:
    assert isinstance(event, Assigned | Withdrawn | Lost)
    return [one.partition for one in event.partitions]


def place_of(membership: Membership, number: int) -> Assignment:
    return next(one for one in membership.held.values() if one.partition == number)


def joined(partitions: list[int], epoch: int = 1) -> Membership:
    membership = Membership(identity())
    membership.answered(answer(epoch, partitions))
    return membership


def fenced(reason: str = "it was silent") -> GroupFenced:
    return texts_group.group_fenced("g", "m1", reason=reason)


def test_first_heartbeat_joins_and_owns_nothing() -> None:
    request = Membership(identity()).request(3_000)
    assert request.member_epoch == JOIN_EPOCH
    assert (request.group, request.member_id, request.topics) == ("g", "m1", ("orders",))
    assert request.owned == ()
    assert request.wait_ms == 3_000
    assert request.told_generation == -1


def test_first_answer_assigns_and_tells_how_the_group_stands() -> None:
    membership = Membership(identity())
    assigned, status = membership.answered(answer(1, [0, 1], stable=False))
    assert numbers(assigned) == [0, 1]
    assert status == Status(generation=1, stable=False, members=1, partitions=4, held=2)
    request = membership.request(3_000)
    assert (request.member_epoch, owned(request)) == (1, [0, 1])


def test_same_answer_again_is_no_news() -> None:
    membership = joined([0, 1])
    assert membership.answered(answer(1, [0, 1])) == []


def test_withdrawn_partition_stays_owned_until_it_is_released() -> None:
    membership = joined([0, 1])
    withdrawn, _ = membership.answered(answer(2, [0]))
    assert numbers(withdrawn) == [1]
    request = membership.request(3_000)
    assert (request.member_epoch, owned(request)) == (2, [0, 1])
    assert membership.release(place_of(membership, 1)) == []
    assert membership.unsaid
    assert owned(membership.request(3_000)) == [0]


def test_withdrawal_is_told_once() -> None:
    membership = joined([0, 1])
    membership.answered(answer(2, [0]))
    assert [type(event) for event in membership.answered(answer(3, [0]))] == [Status]


def test_partition_that_is_not_withdrawn_cannot_be_released() -> None:
    membership = joined([0])
    assert membership.release(place_of(membership, 0)) == []
    assert owned(membership.request(3_000)) == [0]


def test_partition_that_comes_back_before_it_is_released_is_assigned_again_afterwards() -> None:
    membership = joined([0, 1])
    membership.answered(answer(2, [0]))
    assert [type(event) for event in membership.answered(answer(3, [0, 1]))] == [Status]
    (again,) = membership.release(place_of(membership, 1))
    assert isinstance(again, Assigned)
    assert numbers(again) == [1]
    assert owned(membership.request(3_000)) == [0, 1]


def test_partition_that_was_elsewhere_in_between_is_lost_first() -> None:
    membership = joined([0, 1])
    lost, assigned, _ = membership.answered(answer(2, {0: 1, 1: 2}))
    assert isinstance(lost, Lost)
    assert isinstance(assigned, Assigned)
    assert numbers(lost) == numbers(assigned) == [1]
    assert place_of(membership, 1).assignment_epoch == 2


def test_older_answer_changes_nothing() -> None:
    membership = joined([0, 1], epoch=5)
    assert membership.answered(answer(4, [])) == []
    assert owned(membership.request(3_000)) == [0, 1]


def test_fenced_member_loses_everything_once_and_joins_again() -> None:
    membership = joined([0, 1])
    membership.answered(answer(2, [0]))
    (lost,) = membership.refused(fenced())
    assert isinstance(lost, Lost)
    assert numbers(lost) == [0, 1]
    assert "it was silent" in lost.reason
    request = membership.request(3_000)
    assert (request.member_id, request.member_epoch, owned(request)) == ("m1", JOIN_EPOCH, [])
    assigned, status = membership.answered(answer(7, {0: 7}))
    assert numbers(assigned) == [0]
    assert isinstance(status, Status)


def test_release_of_a_former_life_does_not_touch_the_present_one() -> None:
    membership = joined([0])
    old = place_of(membership, 0)
    membership.answered(answer(2, []))
    membership.refused(fenced())
    membership.answered(answer(3, {0: 3}))
    membership.answered(answer(4, {}))
    assert membership.release(old) == []
    assert owned(membership.request(3_000)) == [0]


def test_fenced_while_joining_is_the_end() -> None:
    membership = Membership(identity("till-1"))
    error = fenced("its instance id is member 'm2' now")
    assert membership.refused(error) == [Failed(error)]


def test_other_subscription_is_the_end() -> None:
    membership = Membership(identity())
    error = texts_group.subscription_mismatch(
        group="g", member="m2", yours=("orders",), theirs=("bills",)
    )
    assert membership.refused(error) == [Failed(error)]


def test_last_heartbeat_leaves_or_goes_away() -> None:
    for instance_id, epoch in ((None, LEAVE_EPOCH), ("till-1", AWAY_EPOCH)):
        membership = Membership(identity(instance_id))
        membership.answered(answer(1, [0]))
        membership.leave()
        request = membership.request(3_000)
        assert (request.member_epoch, request.owned, request.wait_ms) == (epoch, (), 0)
        assert membership.answered(answer(epoch)) == [Left()]


def test_goodbye_of_one_that_was_thrown_out_is_heard_too() -> None:
    membership = joined([0])
    membership.leave()
    assert membership.refused(fenced()) == [Left()]


def test_every_rebalance_is_told_once_and_in_order() -> None:
    first, second = (Rebalance(number, "member joined", 3, (), 0) for number in (4, 5))
    membership = joined([0])
    told = membership.answered(answer(2, [0], rebalances=(first, second)))
    assert told[:2] == [Rebalanced(first), Rebalanced(second)]
    assert membership.request(3_000).told_generation == 5
    assert membership.answered(answer(2, [0], rebalances=(second,))) == []
