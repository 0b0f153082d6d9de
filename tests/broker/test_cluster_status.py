"""What a view of a cluster says of its partitions and brokers."""

from collections.abc import Collection
from dataclasses import replace

import pytest

from tailrace.broker.catalog import Catalog, Leadership, new_topic
from tailrace.broker.cluster_status import (
    ClusterCounts,
    Sightings,
    brokers_of,
    count,
    leaders_of,
    problems,
    status_of,
)
from tailrace.broker.cluster_view import ClusterView

ALL = ("n1", "n2", "n3")
LED = Leadership("n1", 4, ALL, (), ALL)
ORDERS = new_topic("orders", b"o" * 16, placement=[ALL, ALL], replicas=3, config={})


def counted(*leaderships: Leadership, up: Collection[str] = ALL) -> ClusterCounts:
    counts = ClusterCounts()
    view = ClusterView(
        catalog=Catalog.of([ORDERS]),
        leaderships={(ORDERS.topic_id, n): one for n, one in enumerate(leaderships)},
    )
    for _ in count(view, lambda topic: 2, lambda one: one in up, counts):
        pass
    return counts


@pytest.mark.parametrize(
    ("one", "up", "status"),
    [
        (LED, ALL, "ok"),
        (replace(LED, isr=("n1", "n2")), ALL, "under_replicated"),
        (LED, ("n1", "n2"), "under_replicated"),  # nobody has taken it out of the set yet
        (replace(LED, isr=("n1",)), ALL, "below_min_isr"),
        (LED, ("n1",), "below_min_isr"),
        (LED, ("n2", "n3"), "offline"),
        (replace(LED, leader=None, isr=(), elr=("n1",)), ALL, "offline"),
    ],
)
def test_a_partition_is_what_its_living_in_sync_replicas_make_it(
    one: Leadership, up: Collection[str], status: str
) -> None:
    assert status_of(one, ALL, 2, lambda broker: broker in up) == status


def test_partitions_are_counted_over_the_whole_view() -> None:
    counts = counted(LED, replace(LED, leader="n2", isr=("n2",)))
    assert (counts.topics, counts.partitions) == (1, 2)
    assert (counts.under_replicated, counts.below_min_isr, counts.offline) == (1, 1, 0)
    assert counts.leaders == {"n1": 1, "n2": 1}
    assert counts.replicas == {"n1": 2, "n2": 2, "n3": 2}
    assert counts.missing == {"n1": 1, "n3": 1}


def test_a_cluster_that_is_well_has_no_problems() -> None:
    assert problems(counted(LED, LED), {}) == []


def test_problems_name_who_is_missing_and_what_to_do() -> None:
    lacking = replace(LED, isr=("n1", "n2"))
    assert problems(counted(lacking, LED), {"n3": 14_000}) == [
        "broker n3 is offline (was last seen 14 s ago): start it, or: tailrace cluster drain n3",
        "1 partition is under-replicated: not in sync are n3; look: tailrace cluster brokers",
    ]
    assert problems(counted(replace(LED, isr=("n1",)), LED), {"n2": None}) == [
        "broker n2 is offline (was not seen yet): start it, or: tailrace cluster drain n2",
        "1 partition is below min_isr and refuse acks=all (orders[0]): bring back n2 and n3",
    ]
    nobody = replace(LED, leader=None, isr=(), elr=("n2", "n3"))
    assert problems(counted(nobody, LED), {}) == [
        "1 partition is offline (orders[0]): start n2 and n3"
    ]


def test_a_broker_that_went_was_last_seen_when_it_was_missed() -> None:
    sightings = Sightings()
    sightings.look(["n1", "n2"], 1_000)
    sightings.look(["n1"], 5_000)
    assert sightings.last_seen("n1", 9_000) == 9_000
    assert sightings.last_seen("n2", 9_000) == 5_000
    assert sightings.last_seen("n3", 9_000) is None
    sightings.look(["n1", "n2"], 9_500)
    assert sightings.last_seen("n2", 9_900) == 9_900


def test_brokers_that_hold_something_are_there_even_if_they_are_not_registered() -> None:
    assert brokers_of(ClusterView(), counted(LED, LED)) == ["n1", "n2", "n3"]


def test_leaders_are_asked_for_the_topics_they_lead_a_part_of() -> None:
    view = ClusterView(
        catalog=Catalog.of([ORDERS]),
        leaderships={
            (ORDERS.topic_id, 0): LED,
            (ORDERS.topic_id, 1): replace(LED, leader=None),
        },
    )
    assert leaders_of(view, [ORDERS]) == {"n1": ["orders"]}
