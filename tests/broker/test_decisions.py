"""What the controller does about a view: what is urgent first, little of what is not."""

from collections.abc import Sequence
from dataclasses import replace

from tailrace.broker.catalog import Catalog, Leadership, Topic, new_topic
from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.controller import LEADERS_MAX, transactions
from tailrace.broker.decisions import BALANCE_MAX, FILLING_MAX, Change, decide, joined, leaderless
from tests.broker.test_placement import broker

ID = bytes(15) + b"t"


def view(
    partitions: Sequence[Leadership], *, alive: str = "abc", targets: str | None = None
) -> ClusterView:
    placement = [tuple(targets) if targets else one.replicas for one in partitions]
    topic = new_topic("t", ID, placement=placement, replicas=3, config={})
    return ClusterView(
        brokers={one: broker(one, epoch=100) for one in alive},
        catalog=Catalog.of([topic]),
        leaderships={(ID, number): one for number, one in enumerate(partitions)},
    )


def led(leader: str | None, isr: str = "abc", replicas: str = "abc", elr: str = "") -> Leadership:
    return Leadership(leader, 4, tuple(isr), tuple(elr), tuple(replicas), revision=9)


def auto(topic: Topic) -> int | None:
    return None


def told(changes: Sequence[Change]) -> list[tuple[int, str, str | None]]:
    return [(one.where[1], one.reason, one.leadership.leader) for one in changes]


def test_nothing_is_due_where_all_is_well() -> None:
    assert decide(view([led("a")] * 5), auto) == []


def test_brokers_that_are_gone_are_replaced_and_leave_the_isr() -> None:
    changes = decide(view([led("a"), led("b"), led("c", "bc")], alive="bc"), auto)
    assert told(changes) == [(0, "failover", "b"), (1, "shrink", "b")]
    assert [one.new_leader for one in changes] == ["b", None]
    assert all("a" not in one.leadership.isr for one in changes)


def test_a_partition_nobody_can_lead_is_left_without() -> None:
    there = view([led("a", "a")], alive="bc")
    (change,) = decide(there, auto)
    assert told([change]) == [(0, "failover", None)]
    assert change.leadership.elr == ("a",)
    after = replace(there, leaderships={change.where: change.leadership})
    assert decide(after, auto) == []
    assert leaderless(after) == [(ID, 0)]


def test_a_partition_nobody_has_led_yet_is_begun_by_another_that_is_compared_with() -> None:
    new = replace(led("a", "a", replicas="a"), leader_epoch=0)
    (change,) = decide(view([new], alive="bc", targets="abc"), auto)
    assert (change.reason, change.new_leader) == ("failover", "b")
    after = change.leadership
    assert (after.leader, after.leader_epoch, after.isr, after.elr) == ("b", 0, ("b",), ())
    assert after.replicas == ("b", "a")
    assert decide(view([new], alive="bc"), auto, spared=frozenset("a")) == []


def test_min_isr_says_who_stays_eligible() -> None:
    there = view([led("a", "ab")], alive="b")
    (change,) = decide(there, lambda topic: 1)
    assert change.leadership.elr == ()
    (change,) = decide(there, auto)
    assert change.leadership.elr == ("a",)


def test_a_broker_that_is_spared_is_neither_replaced_nor_chosen() -> None:
    there = view([led("a"), led("b")], alive="bc")
    assert decide(there, auto, spared=frozenset("a")) == []
    there = view([led("b", "abc")], alive="")
    assert decide(there, auto, spared=frozenset("a")) == []
    there = view([led("b", "abc")], alive="c")
    assert told(decide(there, auto, spared=frozenset("a"))) == [(0, "failover", "c")]


def test_only_so_many_partitions_fill_copies_at_once() -> None:
    waiting = [led("a", "a", "a")] * (FILLING_MAX + 5)
    filling = [led("a", "a", "ab")] * 4
    there = view([*filling, *waiting], alive="ab", targets="ab")
    changes = decide(there, auto)
    assert len(changes) == FILLING_MAX - 4
    assert all(one.leadership.replicas == ("a", "b") for one in changes)
    assert {one.new_leader for one in changes} == {None}


def test_a_copy_that_nobody_fills_keeps_no_other_waiting() -> None:
    dead = [led("a", "a", "ab")] * (FILLING_MAX + 5)
    there = view([*dead, led("a", "a", "a")], alive="a", targets="ab")
    assert told(decide(there, auto)) == [(len(dead), "reassign", "a")]


def test_steps_that_end_a_move_are_not_counted() -> None:
    ready = [led("a", "ab", "ba")] * (FILLING_MAX + 5)
    changes = decide(view(ready, alive="ab", targets="b"), auto)
    assert len(changes) == FILLING_MAX + 5
    assert {one.new_leader for one in changes} == {"b"}


def test_leaders_are_moved_for_balance_a_few_at_a_time_and_only_in_peace() -> None:
    there = view([led("b")] * 20)
    assert told(decide(there, auto)) == [(n, "balance", "a") for n in range(BALANCE_MAX)]
    assert decide(there, auto, calm=False) == []
    assert decide(replace(there, draining=frozenset("a")), auto) == []


def test_no_leader_goes_back_to_a_broker_that_came_into_sync_just_now() -> None:
    there = view([led("b"), led("c")])
    assert joined(view([led("b", isr="bc"), led("c")]), there) == {"a"}
    assert joined(there, there) == joined(ClusterView(), there) == set()  # not a new topic
    assert decide(there, auto, settling=frozenset("a")) == []
    assert len(decide(there, auto, settling=frozenset("bc"))) == 2


def test_no_leader_goes_back_to_a_broker_that_has_copies_to_fill_still() -> None:
    behind = led("c", isr="bc")
    assert decide(view([led("b"), behind]), auto) == []
    assert told(decide(view([led("b"), led("c")]), auto)) == [
        (0, "balance", "a"),
        (1, "balance", "a"),
    ]


def test_a_transaction_has_at_most_a_hundred_changes_and_few_new_leaders() -> None:
    changes = [Change((ID, n), led("a"), "failover", "a") for n in range(250)]
    assert [len(one) for one in transactions(changes)] == [100, 100, 50]
    changes = [Change((ID, n), led("a"), "failover", f"n{n}") for n in range(60)]
    assert [len(one) for one in transactions(changes)] == [LEADERS_MAX, LEADERS_MAX, 10]
    assert list(transactions([])) == []
