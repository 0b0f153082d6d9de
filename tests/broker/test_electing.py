"""What operators ask of leaders, as functions of a view."""

from dataclasses import replace

import pytest

from tailrace.broker import electing
from tailrace.broker.cluster_view import ClusterView
from tailrace.protocol.messages import ConfirmedLeader, ReplicaDescription
from tests.broker.test_moving import ABC, ID, view, whole


def test_preferred_leader_is_the_first_wanted_if_it_is_in_sync() -> None:
    seen = view(("n1", ABC, ABC), ("n2", ABC, ABC))
    assert electing.preferred(seen, whole(seen)) is None
    found = electing.preferred(seen, whole(seen, 1))
    assert found is not None
    assert (found.leader, found.error) == ("n1", None)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (view(("n2", ("n2", "n3"), ABC)), "preferred leader n1 is not in sync"),
        (view(("n2", ABC, ABC), brokers=("n2", "n3")), "n1 is not up"),
        (view(("n2", ABC, ABC), drains=("n1",)), "n1 is about to stop, or is being drained"),
        (view((None, (), ABC), elr=("n1", "n3")), "Start n1 and n3, or lose what others lack"),
    ],
)
def test_why_the_preferred_leader_does_not_lead(seen: ClusterView, reason: str) -> None:
    found = electing.preferred(seen, whole(seen))
    assert found is not None
    assert reason in str(found.error)
    assert found.leader is None


def copy(broker_id: str, epoch: int, end: int) -> ReplicaDescription:
    return ReplicaDescription("orders", 0, broker_id, epoch, 0, end, 0)


def test_unclean_leader_is_the_living_one_that_has_the_most() -> None:
    seen = view((None, (), ABC), elr=("n1",), brokers=("n2", "n3"))
    copies = [copy("n2", 2, 900), copy("n3", 3, 17), copy("n4", 9, 99)]
    found = electing.unclean(seen, whole(seen), copies)
    assert (found.leader, found.log_end, found.missing) == ("n3", 17, ("n1",))
    told = electing.leader_move(found)
    assert (told.before, told.after, told.leader_epoch) == (None, "n3", 3)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (view(("n1", ABC, ABC)), "is led by n1: nothing needs to be lost"),
        (view((None, (), ABC), elr=("n2",)), "n2 can lead without losing anything"),
        (view((None, (), ABC), elr=("n1",), brokers=("n4",)), "Start n1, n2 and n3."),
    ],
)
def test_nothing_is_lost_where_nothing_has_to_be(seen: ClusterView, reason: str) -> None:
    found = electing.unclean(seen, whole(seen), [])
    assert reason in str(found.error)
    assert electing.leader_move(found).after is None


def test_nothing_is_elected_but_what_was_confirmed() -> None:
    seen = view((None, (), ABC), elr=("n1",), brokers=("n2", "n3"))
    found = [electing.unclean(seen, whole(seen), [copy("n3", 3, 17)])]
    yes = ConfirmedLeader("orders", 0, "n3", 3, 17)
    assert electing.as_confirmed(found, None) == found, "nobody was asked"
    assert electing.as_confirmed(found, [yes]) == found
    for other in (
        [],
        [replace(yes, partition=1)],
        [replace(yes, leader="n2")],
        [replace(yes, leader_epoch=2)],  # somebody led in between, and took records
        [replace(yes, log_end=18)],
    ):
        (refused,) = electing.as_confirmed(found, other)
        assert electing.leader_move(refused).after is None
        assert str(refused.error) == (
            "T033: orders[0]: n3 would lead now, with a log that ends at 17: something else was"
            " confirmed. Look again: tailrace cluster elect orders:0 --unclean --dry-run"
        )


def test_what_was_not_stored_is_told_with_what_to_do() -> None:
    seen = view(("n2", ABC, ABC), ("n2", ABC, ABC))
    found = [one for number in (0, 1) if (one := electing.preferred(seen, whole(seen, number)))]
    kept, lost = electing.as_stored(found, {(ID, 0)}, unclean=False)
    assert kept == found[0]
    assert (lost.leader, electing.leader_move(lost).after) == (None, None)
    assert str(lost.error) == (
        "T033: orders[1]: others changed who leads it or has copies of it meanwhile. Try again:"
        " tailrace cluster elect orders:1"
    )
