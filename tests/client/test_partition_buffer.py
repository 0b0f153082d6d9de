"""What is at hand of a partition: only verified bytes, in order, from the position on."""

from collections.abc import Sequence

import pytest

from tailrace.client.codecs import Undecodable, bind
from tailrace.client.commits import CommitPoint
from tailrace.client.partition_buffer import Budget, Codecs, PartitionBuffer
from tailrace.client.records import Slice
from tailrace.protocol.batch import encode_entry, header_seed, patch
from tailrace.protocol.columns import Columns
from tailrace.protocol.errors import CorruptBatch
from tailrace.protocol.shapes import TopicPartition

TOPIC_ID = bytes(range(16))
SEED = header_seed(TOPIC_ID, 3)
LIMIT = 1 << 20


def entry(
    base: int,
    values: Sequence[bytes | None],
    *,
    offsets: list[int] | None = None,
    attributes: int = 0,
    last_offset_delta: int | None = None,
) -> bytes:
    columns = Columns(1_000, None, offsets, None, list(values), None)
    return encode_entry(
        SEED,
        columns,
        base_offset=base,
        last_offset_delta=last_offset_delta,
        leader_epoch=1,
        append_time=5,
        attributes=attributes,
    )


def buffer(position: int = 0, *, value: object = bytes) -> PartitionBuffer:
    call = "test"
    codecs = Codecs(
        bind(bytes, part="key", call=call),
        bind(value, part="value", call=call),  # type: ignore[arg-type]
    )
    at = TopicPartition("orders", 3)
    return PartitionBuffer(at, TOPIC_ID, position, codecs=codecs, budget=Budget(LIMIT))


def answer(target: PartitionBuffer, *entries: bytes, end: int = 100, now: float = 0.0) -> None:
    target.take_answer(memoryview(b"".join(entries)), end=end, broker="n1", now=now)


def drain(target: PartitionBuffer, at_most: int = 1_000) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while target.load():
        part = target.take(at_most)
        assert isinstance(part, Slice)
        stored, start, stop = part
        found += [(stored.offset(n), stored.raw_values[n] or b"") for n in range(start, stop)]
        target.index = stop
    return found


def test_records_come_out_as_they_were_written() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]), entry(2, [b"c"]))
    assert (target.available, target.fetch_offset, target.position) == (3, 3, 0)
    assert drain(target) == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert (target.available, target.position, target.lag) == (0, 3, 97)


def test_records_below_the_position_are_left_out() -> None:
    target = buffer(4)
    answer(target, entry(2, [b"c", b"d", b"e", b"f"]))
    assert target.load()
    assert target.available == 2
    assert drain(target) == [(4, b"e"), (5, b"f")]


def test_gaps_in_offsets_are_stepped_over() -> None:
    target = buffer(1)
    answer(target, entry(0, [b"a", b"b"], offsets=[0, 5]), entry(9, [b"c"]))
    assert drain(target) == [(5, b"b"), (9, b"c")]


def test_control_batches_take_offsets_and_are_no_records() -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]), entry(1, [b"marker"], attributes=0x20), entry(2, [b"b"]))
    assert target.available == 2
    assert drain(target) == [(0, b"a"), (2, b"b")]
    answer(target, entry(3, [b"marker"], attributes=0x20))
    assert drain(target) == []
    assert target.position == 4


def test_emptied_range_is_stepped_over() -> None:
    target = buffer()
    answer(target, entry(0, [], offsets=[], last_offset_delta=7), entry(8, [b"a"]))
    assert drain(target) == [(8, b"a")]


def test_emptied_tail_ends_the_reading() -> None:
    """Erased or compacted records at the end: nothing is left to wait for."""
    target = buffer()
    target.stop = 20
    answer(target, entry(0, [b"a"], offsets=[2], last_offset_delta=4), end=20)
    assert drain(target) == [(2, b"a")]
    assert (target.position, target.lag, target.finished) == (5, 15, False)
    assert target.wants(LIMIT)
    answer(target, entry(5, [], offsets=[], last_offset_delta=14), end=20)
    assert target.available == 0
    assert drain(target) == []
    assert (target.position, target.lag, target.finished) == (20, 0, True)
    assert not target.wants(LIMIT)


def test_stop_inside_a_gap_is_reached() -> None:
    target = buffer()
    target.stop = 7
    answer(target, entry(0, [b"a", b"b"], offsets=[1, 8], last_offset_delta=9), end=10)
    assert drain(target) == [(1, b"a")]
    assert target.finished


@pytest.mark.parametrize("position", [0, 3, 4, 5])
def test_position_in_a_gap_goes_on_with_the_next_record(position: int) -> None:
    target = buffer(position)
    answer(
        target,
        entry(0, [], offsets=[], last_offset_delta=3),
        entry(4, [b"a"], offsets=[2], last_offset_delta=2),
    )
    assert drain(target) == [(6, b"a")]
    assert target.position == 7


def test_every_flipped_bit_is_found_and_what_is_before_it_is_served() -> None:
    good, spoilt = entry(0, [b"good"]), entry(1, [b"some value", None])
    for place in range(len(spoilt)):
        for bit in range(8):
            bad = bytearray(spoilt)
            bad[place] ^= 1 << bit
            target = buffer()
            answer(target, good, bytes(bad))
            assert drain(target) == [(0, b"good")]
            failure = target.take_failure()
            assert isinstance(failure, CorruptBatch), (place, bit)
            assert (failure.topic, failure.partition, failure.offset) == ("orders", 3, 1)
            assert (failure.broker, target.position, target.fetch_offset) == ("n1", 1, 1)


def test_batch_of_another_partition_is_corrupt() -> None:
    moved = bytearray(entry(0, [b"a"]))
    patch(moved, seed=header_seed(TOPIC_ID, 4), base_offset=0, leader_epoch=1, append_time=5)
    target = buffer()
    answer(target, bytes(moved))
    assert not target.load()
    failure = target.take_failure()
    assert failure is not None
    assert "the header check does not match" in str(failure)


@pytest.mark.parametrize("left", [1, 84, 85, 90])
def test_batch_that_is_cut_short_is_corrupt(left: int) -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]), entry(1, [bytes(100)])[:left])
    assert drain(target) == [(0, b"a")]
    assert "the batch is cut short" in str(target.take_failure())


def test_offsets_that_fall_are_corrupt() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]), entry(1, [b"x"]))
    assert drain(target) == [(0, b"a"), (1, b"b")]
    assert "offsets do not rise" in str(target.take_failure())


def test_answer_without_progress_is_corrupt() -> None:
    target = buffer(5)
    answer(target, entry(0, [b"a", b"b"]))
    assert not target.load()
    assert "only older records" in str(target.take_failure())


def test_columns_that_do_not_decode_are_corrupt_and_fetched_again() -> None:
    import xxhash

    bad = bytearray(entry(0, [b"a", b"b"]))
    bad[-1] ^= 1  # one length within the columns; both checksums are made to fit
    bad[8:16] = xxhash.xxh3_64_intdigest(bytes(bad[45:])).to_bytes(8)
    bad[86] = 0x01
    bad[8:16] = xxhash.xxh3_64_intdigest(bytes(bad[45:])).to_bytes(8)
    patch(bad, seed=SEED, base_offset=0, leader_epoch=1, append_time=5)
    target = buffer()
    answer(target, bytes(bad))
    with pytest.raises(CorruptBatch, match=r"orders\[3\]@0 is corrupt on broker"):
        target.load()
    assert (target.position, target.fetch_offset, target.available) == (0, 0, 0)


def test_failure_waits_until_everything_before_it_was_handed_out() -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]), b"garbage" * 20)
    assert not target.wants(LIMIT)
    assert drain(target) == [(0, b"a")]
    assert target.take_failure() is not None
    assert target.wants(LIMIT)
    assert target.take_failure() is None


def test_seek_drops_what_is_at_hand_and_on_its_way() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]))
    assert target.load()
    target.in_flight, before = True, target.generation
    target.seek(40)
    assert (target.position, target.fetch_offset, target.available) == (40, 40, 0)
    assert target.generation != before
    assert target.wants(LIMIT)


def test_pause_keeps_the_position_and_gives_back_what_was_not_opened() -> None:
    budget = Budget(LIMIT)
    codecs = Codecs(bind(bytes, part="key", call="test"), bind(bytes, part="value", call="test"))
    target = PartitionBuffer(TopicPartition("orders", 3), TOPIC_ID, 0, codecs=codecs, budget=budget)
    answer(target, entry(0, [b"a", b"b"]), entry(2, [b"c"]))
    assert target.load()
    target.index = 1
    assert budget.used
    target.pause()
    assert (target.position, target.fetch_offset, budget.used) == (1, 2, 0)
    assert not target.wants(LIMIT)
    target.resume()
    assert target.wants(LIMIT)
    answer(target, entry(2, [b"c"]))
    assert drain(target) == [(1, b"b"), (2, b"c")]


def test_what_was_given_up_wants_nothing_whoever_still_reads_or_seeks_in_it() -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]))
    assert target.wants(LIMIT)
    target.give_up()
    assert not target.wants(LIMIT)
    target.ask_anew()
    target.skip_to(7)
    assert not target.wants(LIMIT)


def test_rewind_takes_back_unless_somebody_sought() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b", b"c"]))
    assert target.load()
    target.index = 3
    target.rewind(1, 3)
    assert target.position == 1
    target.rewind(0, 3)
    assert target.position == 1, "3 is not where it stands any more"
    assert drain(target) == [(1, b"b"), (2, b"c")]


def test_rewind_over_several_batches_fetches_again() -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]), entry(1, [b"b"]))
    drain(target)
    target.rewind(0, 2)
    assert (target.position, target.fetch_offset) == (0, 0)


def test_nothing_at_or_behind_the_stop_is_handed_out() -> None:
    target = buffer()
    target.stop = 2
    answer(target, entry(0, [b"a"]), entry(1, [b"b", b"c"]), entry(3, [b"d"]))
    before = target.finished
    assert drain(target) == [(0, b"a"), (1, b"b")]
    assert (before, target.finished) == (False, True)
    assert not target.wants(LIMIT)
    target.seek(1)
    assert target.wants(LIMIT)


def test_decoding_goes_as_far_as_is_asked_and_stops_at_what_it_cannot() -> None:
    target = buffer(value="json")
    answer(target, entry(0, [b"1", None, b"{", b"2"]))
    assert target.load()
    first = target.take(1)
    assert isinstance(first, Slice)
    assert (first.start, first.stop, first.stored.values[0]) == (0, 1, 1)
    target.index = 1
    second = target.take(10)
    assert isinstance(second, Slice)
    assert (second.start, second.stop) == (1, 2)
    target.index = 2
    for _ in range(2):
        wrong = target.take(10)
        assert isinstance(wrong, Undecodable)
    target.step_over()
    last = target.take(10)
    assert isinstance(last, Slice)
    assert last.stored.values[3] == 2


def test_waiting_since_is_when_the_first_record_came() -> None:
    target = buffer()
    answer(target, entry(0, [b"a"]), now=1.0)
    answer(target, entry(1, [b"b"]), now=2.0)
    assert target.waiting_since == 1.0
    drain(target)
    answer(target, entry(2, [b"c"]), now=3.0)
    assert target.waiting_since == 3.0


def test_budget_gives_half_of_what_is_free_and_never_all_to_those_who_wait() -> None:
    budget = Budget(16_000)
    given: list[int] = []
    while (share := budget.next_fetch_bytes()) > 0 and len(given) < 20:
        given.append(share)
        budget.reserved += share
    assert given[:3] == [8_000, 4_000, 2_000]
    assert sum(given) <= 16_000
    budget.reserved, budget.used = 0, 15_500
    assert budget.next_fetch_bytes() == 0
    budget.used = 17_000
    assert budget.next_fetch_bytes() == 0


def test_smallest_budget_still_brings_one_batch() -> None:
    assert Budget(1).next_fetch_bytes() == 1


# ── places to go on from ─────────────────────────────────────────────────────────────────────


def test_place_knows_the_record_before_it() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]), entry(2, [b"c"]))
    assert target.load()
    assert target.point(0) == CommitPoint(0)
    assert target.point(1) == CommitPoint(1, leader_epoch=1, timestamp=1_000, append_time=5)
    assert drain(target)
    assert target.point(target.position) == CommitPoint(3, 1, 1_000, 5)


def test_place_behind_a_gap_knows_the_record_before_the_gap() -> None:
    target = buffer()
    answer(
        target,
        entry(0, [b"a"], offsets=[0], last_offset_delta=4),
        entry(5, [b"f"], attributes=0x20),
    )
    drain(target)
    assert target.position == 6
    assert target.point(6) == CommitPoint(6, 1, 1_000, 5)
    assert target.point(9) == CommitPoint(9), "nothing is known of what was not handed out"


def test_place_after_a_seek_knows_nothing_of_the_record_before() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]))
    drain(target)
    target.seek(1)
    assert target.point(1) == CommitPoint(1)


def test_buffer_that_is_given_up_keeps_where_it_stood() -> None:
    target = buffer()
    answer(target, entry(0, [b"a", b"b"]), entry(2, [b"c"]))
    assert target.load()
    target.index += 1
    asked = target.generation
    target.give_up()
    assert (target.position, target.available, target.generation) == (1, 1, asked + 1)
    target.forget()
    assert (target.position, target.stored) == (1, None)
