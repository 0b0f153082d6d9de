"""What is due to be committed, and what a commit may not be."""

import pytest

from tailrace.client.commits import CommitPoint, Ledger, check_metadata
from tailrace.client.membership import Assignment
from tailrace.protocol.errors import ConfigError


def assignment(partition: int, epoch: int = 1) -> Assignment:
    return Assignment("orders", b"t" * 16, partition, epoch, added_later=False)


def test_what_is_committed_already_is_not_due() -> None:
    ledger = Ledger()
    zero, one = assignment(0), assignment(1)
    points = {zero: CommitPoint(5), one: CommitPoint(3)}
    assert ledger.due(points) == points
    ledger.stored(zero, 5)
    assert ledger.due(points) == {one: CommitPoint(3)}
    assert ledger.due({zero: CommitPoint(6)}) == {zero: CommitPoint(6)}


def test_lower_commits_never_go_out_by_themselves() -> None:
    ledger = Ledger()
    ledger.stored(assignment(0), 5)
    assert ledger.due({assignment(0): CommitPoint(4)}) == {}


def test_beginning_of_a_log_is_worth_a_commit() -> None:
    assert Ledger().due({assignment(0): CommitPoint(0)})


def test_next_assignment_of_a_partition_knows_nothing_of_the_one_before() -> None:
    ledger = Ledger()
    ledger.stored(assignment(0), 5)
    assert ledger.due({assignment(0, epoch=2): CommitPoint(4)})
    ledger.forget(assignment(0))
    assert ledger.known(assignment(0)) == -1


def test_metadata_has_a_limit_in_bytes() -> None:
    check_metadata("é" * 2_048)
    with pytest.raises(ConfigError, match="at most 4,096 bytes, not 4,098") as caught:
        check_metadata("é" * 2_049)
    assert caught.value.code == "T082"
