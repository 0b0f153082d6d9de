"""Which partitions a member has, and what is remembered of those it had."""

import pytest

from tailrace.client.commits import CommitPoint, Ledger
from tailrace.client.membership import Assignment
from tailrace.client.tenure import Tenure
from tailrace.protocol.errors import UsageError
from tailrace.protocol.shapes import TopicPartition


def at(partition: int) -> TopicPartition:
    return TopicPartition("orders", partition)


def assignment(partition: int, epoch: int = 1) -> Assignment:
    return Assignment("orders", b"t" * 16, partition, epoch, added_later=False)


def having(*partitions: int) -> Tenure:
    tenure = Tenure(Ledger())
    tenure.take([assignment(partition) for partition in partitions])
    return tenure


def test_partition_under_another_assignment_is_another_one() -> None:
    tenure = having(0)
    assert tenure.has(assignment(0))
    assert not tenure.has(assignment(0, epoch=2))


def test_points_of_an_older_assignment_are_left_out() -> None:
    tenure = having(0, 1)
    points = {
        at(0): CommitPoint(5, assignment_epoch=1),
        at(1): CommitPoint(5, assignment_epoch=7),
        at(2): CommitPoint(5),
    }
    assert tenure.points(points) == {assignment(0): points[at(0)]}


def test_loss_is_told_once_and_then_it_is_nobodys() -> None:
    tenure = having(0)
    tenure.drop(assignment(0), "it was silent")
    tenure.check([at(0)])
    lost = tenure.lost({at(0): CommitPoint(5)}, "g")
    assert lost is not None
    assert lost.code == "T040"
    assert lost.offsets == {at(0): 5}
    assert "it was silent" in str(lost)
    with pytest.raises(UsageError):
        tenure.check([at(0)])


def test_partition_that_came_back_is_its_own_again() -> None:
    tenure = having(0)
    tenure.drop(assignment(0), "it was silent")
    tenure.take([assignment(0, epoch=2)])
    lost = tenure.lost({at(0): CommitPoint(5, assignment_epoch=1)}, "g")
    assert lost is not None
    assert "assigned anew" in str(lost)
    tenure.check([at(0)])


def test_what_was_committed_is_known_after_the_partition_went() -> None:
    ledger = Ledger()
    tenure = Tenure(ledger)
    tenure.take([assignment(0)])
    assert tenure.known_committed(at(0)) == -1
    ledger.stored(assignment(0), 5)
    tenure.drop(assignment(0), "it was silent")
    assert tenure.known_committed(at(0)) == 5
    assert ledger.known(assignment(0)) == -1


def test_nothing_is_lost_by_leaving() -> None:
    tenure = having(0)
    tenure.clear()
    with pytest.raises(UsageError):
        tenure.check([at(0)])


def test_what_is_due_is_named_in_order() -> None:
    tenure = having(2, 0, 1)
    tenure.drop(assignment(1), "it was silent")
    points = {assignment(n): CommitPoint(5) for n in (2, 1, 0)}
    assert tenure.due(points) == ["orders[0]", "orders[2]"]
