"""What operators ask of copies, as functions of a view."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tailrace.broker import moving
from tailrace.broker.catalog import Catalog, Leadership, PartitionRecord, Topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BrokerRecord
from tailrace.broker.moving import Chosen
from tailrace.protocol.errors import (
    ConfigError,
    PartitionNotFound,
    PartitionOffline,
    TopicNotFound,
)
from tailrace.protocol.messages import (
    PartitionRange,
    ReassignRequest,
)

ID = b"1" * 16


def broker(broker_id: str, rack: str | None = None) -> BrokerRecord:
    return BrokerRecord(broker_id, {}, None, rack, "0.1", 0, "d", 1)


def view(
    *partitions: tuple[str | None, Sequence[str], Sequence[str]],
    brokers: Sequence[str] = ("n1", "n2", "n3", "n4"),
    drains: Sequence[str] = (),
    elr: Sequence[str] = (),
    wanted: Sequence[str] | None = None,
    replicas: int | None = None,
) -> ClusterView:
    """One topic; of each partition its leader, its in-sync set, and who holds a copy."""
    records = tuple(
        PartitionRecord(0, 0, tuple(wanted if wanted is not None else held))
        for _, _, held in partitions
    )
    topic = Topic("orders", ID, {}, records, replicas, revision=7)
    return ClusterView(
        brokers={one: broker(one) for one in brokers},
        drains=frozenset(drains),
        catalog=Catalog.of([topic]),
        leaderships={
            (ID, number): Leadership(leader, 3, tuple(isr), tuple(elr), tuple(held), 9)
            for number, (leader, isr, held) in enumerate(partitions)
        },
    )


def whole(view_: ClusterView, number: int = 0) -> Chosen:
    return Chosen(view_.catalog.by_name["orders"], number)


ABC = ("n1", "n2", "n3")


def test_partitions_are_named_once_and_must_be_there() -> None:
    seen = view(("n1", ABC, ABC), ("n2", ABC, ABC))
    named = [PartitionRange("orders", 1), PartitionRange("orders", None)]
    assert [one.number for one in moving.chosen(seen, named)] == [1, 0]
    with pytest.raises(PartitionNotFound):
        moving.chosen(seen, [PartitionRange("orders", 2)])
    with pytest.raises(TopicNotFound, match="Similar: orders"):
        moving.chosen(seen, [PartitionRange("order", None)])


# ── copies ───────────────────────────────────────────────────────────────────────────────────


def asked(
    *brokers: str, replicas: int | None = None, partition: int | None = None, cancel: bool = False
) -> ReassignRequest:
    named = (PartitionRange("orders", partition),)
    return ReassignRequest(named, brokers or None, replicas, cancel, False)


def targets(seen: ClusterView, request: ReassignRequest) -> list[tuple[str, ...]]:
    found = moving.reassigned(seen, request, lambda topic: None)
    return [one.replicas for topic in found for one in topic.partitions]


def test_copies_go_where_they_are_sent() -> None:
    seen = view(("n1", ABC, ABC), ("n2", ABC, ABC))
    new = ("n4", "n2", "n3")
    assert targets(seen, asked(*new)) == [new, new]
    assert targets(seen, asked(*new, partition=1)) == [ABC, new]
    assert targets(seen, asked(*ABC)) == [], "they are there"


def test_number_of_copies_is_the_whole_topics() -> None:
    seen = view(("n1", ABC, ABC), ("n2", ABC, ABC))
    (topic,) = moving.reassigned(seen, asked("n1", "n4"), lambda topic: None)
    assert topic.replicas == 2, "or the controller would raise it again"
    with pytest.raises(ConfigError, match="2 brokers for a partition of 'orders'"):
        targets(seen, asked("n1", "n4", partition=0))
    with pytest.raises(ConfigError, match="min_isr 3 > replicas 2"):
        moving.reassigned(seen, asked("n1", "n4"), lambda topic: 3)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (asked("n1", "n9"), "broker n9 is none of the cluster's: n1, n2, n3, n4"),
        (asked("n1", "n1"), "broker n1 is named twice"),
        (asked(replicas=5), "replicas 5 > 4 brokers that take copies"),
    ],
)
def test_brokers_that_cannot_be_are_refused(request_: ReassignRequest, reason: str) -> None:
    with pytest.raises(ConfigError, match="T082") as caught:
        targets(view(("n1", ABC, ABC)), request_)
    assert reason in str(caught.value)


def test_no_broker_at_all_is_refused() -> None:
    nowhere = ReassignRequest((PartitionRange("orders", None),), (), None, False, False)
    with pytest.raises(ConfigError, match="T082: no broker is named"):
        targets(view(("n1", ABC, ABC)), nowhere)


def test_broker_that_is_drained_is_given_no_copies() -> None:
    seen = view(("n1", ABC, ABC), drains=("n4",))
    with pytest.raises(ConfigError, match="T082: broker n4 is being drained") as caught:
        targets(seen, asked("n4", "n2", "n3"))
    assert "tailrace cluster drain n4 --cancel" in str(caught.value)


def test_spreading_moves_no_more_than_it_must() -> None:
    seen = view(*[("n1", ABC, ABC)] * 4)
    found = targets(seen, asked(replicas=3))
    held = [sum(broker in target for target in found) for broker in ("n1", "n2", "n3", "n4")]
    assert held == [3, 3, 3, 3]
    assert sorted(target[0] for target in found) == ["n1", "n2", "n3", "n4"]
    moved = sum(len(set(target) - set(ABC)) for target in found)
    assert moved == 3, "the new broker's share"
    again = view(*((target[0], target, target) for target in found))
    assert targets(again, asked(replicas=3)) == []


def test_cancelling_keeps_the_copies_that_are_complete() -> None:
    held = ("n1", "n2", "n3", "n4")
    seen = view(("n1", ABC, held), wanted=("n4", "n2", "n3"))
    assert targets(seen, asked(cancel=True)) == [ABC]
    assert targets(view(("n1", ABC, ABC)), asked(cancel=True)) == []


def cancelled(seen: ClusterView, partition: int | None = None) -> list[Topic]:
    return moving.reassigned(seen, asked(cancel=True, partition=partition), lambda topic: None)


def test_cancelling_keeps_the_leader_first_and_what_is_at_its_end() -> None:
    added = ("n4", "n2", "n3", "n1")  # as they stand when a copy was added
    seen = view(("n1", ABC, added), wanted=("n4", "n2", "n3"))
    assert targets(seen, asked(cancel=True)) == [("n1", "n2", "n3")]
    complete = view(("n1", added, added), wanted=("n4", "n2", "n3"))
    assert targets(complete, asked(cancel=True)) == [], "it is there: nothing is left to cancel"


def test_growth_that_is_cancelled_leaves_the_complete_copies() -> None:
    both, dead = ("n1", "n2"), ("n1", "n2", "n4")
    for brokers in (ABC, dead):  # n3 fills its copy, or is not there to do that
        seen = view(("n2", both, both), ("n1", both, ABC), wanted=ABC, brokers=brokers)
        (topic,) = cancelled(seen)
        assert [one.replicas for one in topic.partitions] == [both, both], "their order stays"
        assert topic.replicas == 2, "or the controller would raise it again"
    seen = view(("n1", both, ABC), ("n1", ABC, ABC), wanted=ABC)
    (topic,) = cancelled(seen)
    assert [one.replicas for one in topic.partitions] == [both, ABC], "no complete copy goes"
    assert topic.replicas == 3


def test_copies_that_have_all_that_was_acknowledged_count_as_complete() -> None:
    (topic,) = cancelled(view(("n1", ("n1",), ABC), elr=("n3",)))
    assert [one.replicas for one in topic.partitions] == [("n1", "n3")]


def test_cancelling_never_leaves_a_single_copy() -> None:
    """It may have had more, of which the others are lost or far behind just now."""
    with pytest.raises(ConfigError, match="T082") as caught:
        cancelled(view(("n1", ("n1", "n2"), ABC), ("n1", ("n1",), ABC)))
    assert "a single one of the 3 copies of orders[1] is complete" in str(caught.value)
    assert "tailrace cluster reassign orders --replicas 1" in str(caught.value)


def test_why_a_growth_is_not_cancelled() -> None:
    both = ("n1", "n2")
    seen = view(("n1", both, ABC), ("n1", ABC, ABC), wanted=ABC)
    assert cancelled(seen, 1) == []
    with pytest.raises(ConfigError, match="T082") as caught:
        cancelled(seen, 0)
    assert "2 of the 3 copies of orders[0] are complete" in str(caught.value)
    assert "tailrace cluster reassign orders --cancel" in str(caught.value)
    with pytest.raises(ConfigError, match="min_isr 3 > replicas 2"):
        moving.reassigned(seen, asked(cancel=True), lambda topic: 3)
    counted = replace(seen, catalog=Catalog.of([replace(whole(seen).topic, replicas=3)]))
    with pytest.raises(ConfigError, match="min_isr 3 > replicas 2"):
        moving.reassigned(counted, asked(cancel=True), lambda topic: 3)
    with pytest.raises(PartitionOffline, match="T033"):
        cancelled(view((None, (), ABC), wanted=("n4", *both)))


def test_moves_are_what_lacks_something() -> None:
    held = ("n1", "n2", "n3", "n4")
    seen = view(("n1", ABC, held), wanted=("n4", "n2", "n3"))
    (move,) = moving.moves(seen)
    assert (move.before, move.after, move.filling) == (held, ("n4", "n2", "n3"), ("n4",))
    assert moving.moves(view(("n1", ABC, ABC))) == []


def test_copy_of_a_broker_that_is_not_up_is_still_to_be_filled() -> None:
    dead = view(("n1", ("n1", "n2"), ABC), brokers=("n1", "n2"))
    (move,) = moving.moves(dead)
    assert (move.filling, move.down) == (("n3",), ("n3",))
    (move,) = moving.moves(view(("n1", ("n1", "n2"), ABC)))
    assert (move.filling, move.down) == (("n3",), ())


# ── drains ───────────────────────────────────────────────────────────────────────────────────


def test_drain_tells_where_everything_goes_and_what_cannot() -> None:
    seen = view(("n1", ABC, ABC), ("n2", ABC, ABC), replicas=3)
    found = moving.drain(seen, "n1", lambda topic: None)
    assert (found.leads, found.holds, found.stuck) == (1, 2, ())
    assert all("n4" in move.after and "n1" not in move.after for move in found.moves)
    small = view(("n1", ABC, ABC), brokers=ABC, replicas=3)
    assert [
        (one.topic, one.partition) for one in moving.drain(small, "n1", lambda topic: None).stuck
    ] == [("orders", 0)]


def test_drained_broker_holds_nothing_and_a_strange_one_is_refused() -> None:
    seen = view(("n1", ABC, ABC))
    assert moving.drain(seen, "n4", lambda topic: None) == moving.Drain(0, 0, (), ())
    with pytest.raises(ConfigError, match="broker n9 is none"):
        moving.drain(seen, "n9", lambda topic: None)
    gone = view(("n1", ABC, ABC), brokers=("n1", "n2", "n4"))
    assert moving.drain(gone, "n3", lambda topic: None).holds == 1, "a dead one can be drained"
