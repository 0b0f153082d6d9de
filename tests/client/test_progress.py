"""Which records of a partition are done, and which may still be begun."""

from typing import Any

from tailrace.client.progress import Finishing
from tailrace.client.records import Record
from tailrace.client.run import Lanes, Taken
from tests.client.test_run import keyed

AnyRecord = Record[Any, Any]


def taken(count: int) -> tuple[Finishing, list[AnyRecord]]:
    of, records = Finishing(), keyed(*[b"k"] * count)
    for record in records:
        of.take(record)
    return of, records


def test_only_the_finished_prefix_is_processed() -> None:
    of, records = taken(4)
    for record in records:
        of.begin(record, 1.0)
    of.done(records[2])
    of.done(records[1])
    assert of.unprocessed is not None
    assert of.unprocessed.offset == records[0].offset
    of.done(records[0])
    assert of.unprocessed.offset == records[3].offset
    assert of.unprocessed.leader_epoch == records[2].leader_epoch
    of.done(records[3])
    assert of.unprocessed is None


def test_record_that_is_handled_twice_at_once_is_processed_once() -> None:
    of, (record, other) = taken(2)
    of.begin(record, 1.0)
    of.begin(other, 1.0)
    of.take(record)  # after a seek
    of.begin(record, 2.0)
    of.done(record)
    assert of.busy_since == 1.0, "the other one, and one of the two"
    of.done(record)
    assert of.unprocessed is not None
    assert of.unprocessed.offset == other.offset
    of.done(other)
    assert len(of) == 0
    assert of.busy_since is None


def test_oldest_record_that_is_worked_on_says_since_when() -> None:
    of, records = taken(3)
    assert (of.busy_since, of.begun_last) == (None, -1)
    of.begin(records[1], 5.0)
    of.begin(records[0], 7.0)
    assert (of.busy_since, of.begun_last) == (5.0, records[1].offset)
    of.done(records[1])
    assert (of.busy_since, of.begun_last) == (7.0, records[1].offset), "the first is not done"
    of.done(records[0])
    assert (of.busy_since, of.begun_last) == (None, -1)


def test_withdrawn_partition_keeps_what_lies_before_the_last_that_was_begun() -> None:
    lanes, of, other = Lanes("key"), Finishing(), Finishing()
    records = keyed(b"a", b"a", b"b", b"a")
    a1, a2, b1, a3 = (Taken(record, of) for record in records)
    for one in (a1, a2, b1, a3):
        of.take(one.record)
        if lanes.push(one):
            of.begin(one.record, 0.0)
    elsewhere = Taken(records[-1], other)
    lanes.push(elsewhere)
    lanes.drop(of, of.begun_last)
    assert lanes.taken == 4
    assert lanes.done(a1) is a2, "it lies before b1"
    assert lanes.done(a2) is elsewhere, "a3 of the partition that went is not handled"
