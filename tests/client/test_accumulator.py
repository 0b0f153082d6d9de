"""One lane by itself: order, sequences and renumbering, decided without any I/O."""

from random import Random

from tailrace.client.accumulator import SKIPPED_MAX, Identity, Lane, PendingBatch
from tailrace.client.retry import Backoff
from tailrace.protocol import texts
from tailrace.protocol.batch import decode_columns, is_compressed, parse_header
from tailrace.protocol.errors import TailraceError

GAP = texts.out_of_order_sequence("t", 0, producer_id=1, epoch=0, sequence=9, expected=0)
REFUSED = texts.not_leader("t", 0, broker="n1")


def lane_of(batches: int, *, records: int = 2) -> tuple[Lane, list[PendingBatch]]:
    """A lane with an identity and so many closed batches waiting."""
    lane = Lane("t", bytes(16), 0, 5, Backoff(Random(1)))
    lane.identity = Identity(1, 0)
    made: list[PendingBatch] = []
    for number in range(batches):
        batch = lane.start_batch(number, float(number), 1_000)
        for _ in range(records):
            batch.add(b"v", None, 5, (), 17)
        lane.open = None
        made.append(batch)
    return lane, made


def back(lane: Lane, batch: PendingBatch, error: TailraceError, *, uncertain: bool = False) -> None:
    lane.came_back(batch, error, uncertain=uncertain)


def test_sequences_are_given_at_the_first_departure_and_kept() -> None:
    lane, (a, b, _) = lane_of(3)
    assert lane.take() is a
    assert lane.take() is b
    back(lane, b, REFUSED)
    back(lane, a, REFUSED)
    assert lane.line_up() is a
    assert [lane.take().sequence for _ in range(3)] == [0, 2, 4]
    assert (a.attempts, b.attempts) == (2, 2)


def test_nothing_leaves_while_a_batch_that_came_back_waits_for_those_behind_it() -> None:
    lane, (a, b, _) = lane_of(3)
    lane.take()
    lane.take()
    back(lane, a, REFUSED)
    assert lane.line_up() is None
    assert not lane.ready(9.0, idle=True, linger=0.0, batch_bytes=1)
    back(lane, b, GAP)
    assert lane.line_up() is a
    assert lane.ready(9.0, idle=True, linger=0.0, batch_bytes=1)


def test_the_oldest_is_the_first_without_an_outcome_wherever_it_is() -> None:
    lane, (a, b, c, d) = lane_of(4)
    assert lane.oldest() is a
    assert [lane.take() for _ in range(3)] == [a, b, c]
    assert lane.oldest() is a
    a.finish(-1, -1, REFUSED)  # given up, and its answer is still to come
    assert lane.oldest() is b
    back(lane, c, REFUSED)
    assert lane.oldest() is b, "which is still in flight"
    back(lane, b, REFUSED)
    assert lane.oldest() is b
    lane.acknowledged(a)
    assert lane.line_up() is b
    assert lane.oldest() is b
    assert [lane.take(), lane.take()] == [b, c]
    lane.acknowledged(b)
    lane.acknowledged(c)
    assert lane.oldest() is d
    lane.give_up(d)
    assert lane.oldest() is None


def test_at_most_the_window_is_in_flight() -> None:
    lane, _ = lane_of(7)
    while lane.ready(9.0, idle=True, linger=0.0, batch_bytes=1):
        lane.take()
    assert len(lane.in_flight) == 5


def leave(lane: Lane) -> list[PendingBatch]:
    """Everything that may leave now."""
    left: list[PendingBatch] = []
    while lane.ready(9.0, idle=True, linger=0.0, batch_bytes=1):
        left.append(lane.take())
    return left


def test_a_batch_without_an_ack_never_falls_out_of_the_brokers_memory() -> None:
    """The broker knows a producer's last five batches, those acknowledged long ago among them."""
    lane, (a, b, c, d, e, *later) = lane_of(8)
    assert [lane.take() for _ in range(3)] == [a, b, c]
    lane.acknowledged(c)  # answers come in any order
    back(lane, a, REFUSED, uncertain=True)
    back(lane, b, REFUSED, uncertain=True)
    lane.line_up()
    assert leave(lane) == [a, b, d, e]  # a sixth would push a out of the five
    lane.acknowledged(a)
    assert leave(lane) == later[:1]
    lane.acknowledged(b)  # and c is known to be written: two places at once
    assert leave(lane) == later[1:]


def test_a_batch_that_was_given_up_leaves_its_place_in_the_brokers_memory() -> None:
    lane, (a, *rest) = lane_of(7)
    assert leave(lane) == [a, *rest[:4]]
    back(lane, a, REFUSED, uncertain=True)
    for batch in rest[:4]:
        lane.acknowledged(batch)
    lane.give_up(a)
    assert leave(lane) == rest[4:]


def move(lane: Lane, topic_id: bytes) -> None:
    """Whoever was asked last names this topic."""
    lane.latest_topic_id = topic_id
    assert lane.follow_topic()


def test_a_topic_that_is_named_again_after_an_older_one_goes_on_where_it_was() -> None:
    lane, (a, b, c) = lane_of(3)
    new, old = lane.topic_id, b"o" * 16
    lane.acknowledged(lane.take())
    lane.take()
    back(lane, b, REFUSED, uncertain=True)
    lane.latest_topic_id = old  # told by a broker that has not heard of the new one
    assert not lane.follow_topic(), "the answer of b is not yet dealt with"
    lane.line_up()
    move(lane, old)
    lane.identity = Identity(1, 0)
    assert (lane.take(), b.sequence) == (b, 0)
    back(lane, b, REFUSED)
    lane.line_up()
    move(lane, new)
    assert lane.identity == Identity(1, 0)
    assert (b.sequence, b.encoded, c.sequence) == (2, None, -1), "b may be there already"
    assert (lane.take(), lane.take()) == (b, c)
    assert (a.sequence, b.sequence, c.sequence) == (0, 2, 4)


def test_what_was_given_up_while_an_older_topic_was_named_may_have_been_written() -> None:
    lane, (a, b) = lane_of(2)
    new, old = lane.topic_id, b"o" * 16
    lane.take()
    back(lane, a, REFUSED, uncertain=True)
    lane.line_up()
    move(lane, old)
    lane.give_up(a)
    a.finish(-1, -1, REFUSED)
    move(lane, new)
    assert lane.gave_up_uncertain
    assert (lane.take(), b.sequence) == (b, 2)


def test_an_open_batch_waits_for_company_unless_nothing_else_is_under_way() -> None:
    lane, _ = lane_of(0)
    batch = lane.start_batch(0, 1.0, 1_000)
    batch.add(b"v", None, 5, (), 17)
    assert lane.ready(1.0, idle=True, linger=0.5, batch_bytes=100)
    assert not lane.ready(1.0, idle=False, linger=0.5, batch_bytes=100)
    assert lane.ready(1.5, idle=False, linger=0.5, batch_bytes=100)
    assert lane.ready(1.0, idle=False, linger=0.5, batch_bytes=17)
    batch.urgent = True
    assert lane.ready(1.0, idle=False, linger=0.5, batch_bytes=100)


def test_an_answer_that_comes_after_its_records_were_given_up_closes_no_gap() -> None:
    lane, (a, b) = lane_of(2)
    lane.take()
    lane.take()
    lane.give_up(a)
    a.finish(-1, -1, REFUSED)
    lane.acknowledged(a)
    back(lane, b, REFUSED, uncertain=True)
    assert lane.line_up() is b
    assert lane.may_renumber(b)


def test_what_may_have_been_written_is_not_renumbered_behind_an_uncertain_gap() -> None:
    lane, (a, b) = lane_of(2)
    lane.take()
    lane.take()
    lane.give_up(a)
    a.finish(-1, -1, REFUSED)
    back(lane, a, REFUSED, uncertain=True)
    back(lane, b, REFUSED, uncertain=True)
    assert lane.line_up() is b
    lane.take()
    back(lane, b, GAP)
    assert lane.line_up() is b
    assert not lane.may_renumber(b), "a and b may both still arrive from the broken connection"


def test_what_was_surely_not_written_goes_on_under_a_new_identity() -> None:
    lane, (a, b) = lane_of(2)
    lane.take()
    lane.take()
    lane.give_up(a)
    a.finish(-1, -1, REFUSED)
    back(lane, a, REFUSED, uncertain=True)
    back(lane, b, GAP)
    assert lane.line_up() is b
    assert lane.may_renumber(b)
    lane.renumber()
    lane.identity = Identity(2, 0)
    assert lane.take().sequence == 0
    header = parse_header(b.encode("none"))
    assert (header.producer_id, header.base_sequence) == (2, 0)


def test_columns_that_begin_late_are_filled_up_from_the_start() -> None:
    lane, _ = lane_of(0)
    batch = lane.start_batch(0, 0.0, 1_000)
    batch.add(b"1", None, 5, (), 1)
    batch.add(b"2", b"k", 6, (), 1)
    batch.extend([b"3", None], None, [7, 8], [(("h", b"x"),), ()], 2)
    lane.take()
    entry = batch.encode("none")
    columns = decode_columns(entry, parse_header(entry))
    assert columns.values == [b"1", b"2", b"3", None]
    assert columns.keys == [None, b"k", None, None]
    assert columns.timestamps == [0, 1, 2, 3]
    assert [list(of_record or ()) for of_record in columns.headers or ()] == [
        [],
        [],
        [("h", b"x")],
        [],
    ]


def compressed(lane: Lane, values: list[bytes]) -> list[bool]:
    """Which batches of one value each are."""
    found: list[bool] = []
    for number, value in enumerate(values):
        batch = lane.start_batch(number, 0.0, 1_000)
        batch.add(value, None, 5, (), len(value))
        lane.open = None
        found.append(is_compressed(batch.encode("lz4")))
    return found


def test_values_that_shrink_are_compressed_each_time() -> None:
    lane, _ = lane_of(0)
    assert all(compressed(lane, [b"a" * 1_000] * 50))


def test_what_did_not_shrink_is_let_be_for_ever_longer_but_never_for_good() -> None:
    lane, _ = lane_of(0)
    random = Random(1).randbytes
    tries: list[int] = []
    for number in range(200):
        if lane.shrinking.due():
            tries.append(number)
            lane.shrinking.tried(False)
    assert tries == [0, 2, 5, 10, 19, 36, 69, 102, 135, 168]

    lane, _ = lane_of(0)
    assert not any(compressed(lane, [random(1_000)] * 20))
    late = compressed(lane, [b"a" * 1_000] * (2 * SKIPPED_MAX))
    assert late.index(True) <= SKIPPED_MAX
    assert all(late[late.index(True) :]), "from then on each is tried again"


def test_nothing_is_tried_where_nothing_shall_be_compressed() -> None:
    lane, (batch,) = lane_of(1)
    batch.encode("none")
    assert compressed(lane, [b"a" * 1_000]) == [True]
