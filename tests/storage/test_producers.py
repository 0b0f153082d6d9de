"""Sequences of idempotent producers: what is new, what is a duplicate, what is refused."""

import pytest

from tailrace.protocol.batch import BatchHeader, parse_header
from tailrace.protocol.errors import TailraceError
from tailrace.storage import checkpoint, producers
from tailrace.storage.producers import (
    EXPIRY_MS,
    SEQUENCES,
    WINDOW,
    ProducerTable,
    Sent,
    decode_producers,
    encode_producers,
)
from tests.storage.logs import batch


def header(sequence: int, count: int = 1, *, producer: int = 7, epoch: int = 0) -> BatchHeader:
    return parse_header(batch(*[b"v"] * count, producer=(producer, epoch, sequence)))


def send(
    table: ProducerTable, sequence: int, count: int = 1, *, offset: int = 0, epoch: int = 0
) -> Sent | str | None:
    """The duplicate found, the code of the refusal, or None if it was taken in."""
    plan = table.plan()
    batch_header = header(sequence, count, epoch=epoch)
    try:
        found = plan.check(batch_header)
    except TailraceError as error:
        return error.code
    if found is None:
        plan.add(batch_header, offset, append_time=5)
        plan.commit()
    return found


@pytest.fixture
def table() -> ProducerTable:
    return ProducerTable("orders", 3)


def test_batches_without_a_producer_are_not_kept(table: ProducerTable) -> None:
    plan = table.plan()
    plain = parse_header(batch(b"v"))
    assert plan.check(plain) is None
    plan.add(plain, 0, 0)
    plan.commit()
    assert len(table) == 0


def test_unknown_producer_may_begin_at_zero_only(table: ProducerTable) -> None:
    assert send(table, 3) == "T039"
    assert send(table, 0) is None


def test_each_batch_follows_the_one_before(table: ProducerTable) -> None:
    assert send(table, 0, 3) is None
    assert send(table, 4) == "T038"
    assert send(table, 2) == "T038"
    assert send(table, 3, 2) is None
    assert send(table, 5) is None


def test_duplicates_inside_the_window_get_their_first_offset(table: ProducerTable) -> None:
    for number in range(7):
        assert send(table, number, offset=100 + number) is None
    for number in range(7 - WINDOW, 7):
        found = send(table, number)
        assert isinstance(found, Sent)
        assert (found.base_offset, found.next_offset) == (100 + number, 101 + number)
    assert send(table, 7 - WINDOW - 1) == "T038"


def test_same_first_but_other_last_sequence_is_no_duplicate(table: ProducerTable) -> None:
    send(table, 0, 3)
    assert send(table, 0, 2) == "T038"


def test_sequence_wraps(table: ProducerTable) -> None:
    last = header(SEQUENCES - 2, 3)
    table.put(7, producers.Producer(0, (Sent(0, SEQUENCES - 3, 0, 1, 0),)))
    plan = table.plan()
    assert plan.check(last) is None
    plan.add(last, 10, 5)
    plan.commit()
    known = table.get(7)
    assert known is not None
    assert known.window[-1].last_sequence == 0
    assert send(table, 1) is None


def test_new_epoch_begins_at_zero_and_fences_the_old_one(table: ProducerTable) -> None:
    send(table, 0)
    assert send(table, 1, epoch=1) == "T038"
    assert send(table, 0, epoch=1) is None
    assert send(table, 1, epoch=0) == "T028"


def test_plan_sees_its_own_batches_and_changes_nothing_uncommitted(table: ProducerTable) -> None:
    plan = table.plan()
    for number in range(3):
        assert plan.check(header(number)) is None
        plan.add(header(number), number, 0)
    assert isinstance(plan.check(header(1)), Sent)
    assert len(table) == 0


def test_snapshot_round_trip(table: ProducerTable) -> None:
    for number in range(7):
        send(table, number, offset=number)
    table.put(9, producers.Producer(4, (Sent(0, 2, 50, 53, 99),)))
    body = checkpoint.decode(checkpoint.Kind.PRODUCERS, encode_producers(table, 60))
    assert body is not None
    found = decode_producers(body, 60, "orders", 3)
    assert found is not None
    assert list(found) == list(table)
    assert decode_producers(body, 61, "orders", 3) is None
    for cut in range(len(body)):
        assert decode_producers(body[:cut], 60, "orders", 3) is None


def test_replay_of_the_log_gives_the_same_table(table: ProducerTable) -> None:
    replayed = ProducerTable("orders", 3)
    for number in range(8):
        send(table, number, offset=number)
        replayed.replay(7, 0, Sent(number, number, number, number + 1, 5))
    assert list(replayed) == list(table)


def test_silent_producers_are_forgotten_and_then_unknown(table: ProducerTable) -> None:
    send(table, 0)
    assert table.expire(EXPIRY_MS + 5) == 0
    assert table.expire(EXPIRY_MS + 6) == 1
    assert send(table, 1) == "T039"


def test_number_of_producers_is_bounded(
    table: ProducerTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_MAX", 3)
    for producer_id in (1, 2, 3, 1, 4):
        table.put(producer_id, producers.Producer(0, (Sent(0, 0, 0, 1, 0),)))
    assert [producer_id for producer_id, _ in table] == [3, 1, 4]
