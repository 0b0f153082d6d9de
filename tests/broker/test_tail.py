"""What a tail sends, leaves out and counts, by hand."""

import json
import random

import pytest

from tailrace.broker import tail as module
from tailrace.broker.record_reading import Chunk
from tailrace.broker.tail import Tail, parse_last_id
from tests.broker.tailing import Event, Reader


def chunk(first: int, count: int, partition: int = 0, behind: int = 0) -> Chunk:
    """Records from an offset on; ``behind``: where to go on, if there is a gap."""
    offsets = range(first, first + count)
    lines = [json.dumps({"partition": partition, "offset": one}).encode() for one in offsets]
    ends = [one + 1 for one in offsets]
    return Chunk(partition, lines, ends, behind or first + count, sum(map(len, lines)))


def offsets(events: list[Event]) -> list[int]:
    return [event.data["offset"] for event in events if event.kind == "record"]


def read(tail: Tail, reader: Reader, bytes_max: int = 1 << 30) -> list[Event]:
    found: list[Event] = []
    while tail.pending:
        found += reader.feed(tail.take(bytes_max))
    return found


def test_every_event_says_where_to_go_on_in_every_partition() -> None:
    tail, reader = Tail({0: 5, 1: 0, 12: 7}, rate=None, now=0.0), Reader()
    assert tail.opening() == b"id: 0:5,1:0,12:7\n\n"
    tail.offer(chunk(5, 1), 0.0)
    tail.offer(chunk(0, 2, partition=1), 0.0)
    tail.offer(chunk(7, 1, partition=12), 0.0)
    ids: list[str] = []
    while tail.pending:
        list(reader.feed(tail.take(1)))
        ids.append(reader.last_id)
    assert ids == ["0:6,1:0,12:7", "0:6,1:1,12:7", "0:6,1:2,12:7", "0:6,1:2,12:8"]


def test_known_records_are_skipped_without_a_word() -> None:
    tail, reader = Tail({0: 3}, rate=None, now=0.0), Reader()
    tail.offer(chunk(0, 5), 0.0)
    tail.offer(chunk(0, 5), 0.0)
    assert offsets(read(tail, reader)) == [3, 4]
    assert tail.dropped == 0


def test_tails_of_one_partition_share_their_events() -> None:
    first, second = Tail({0: 0}, rate=None, now=0.0), Tail({0: 2}, rate=None, now=0.0)
    shared = chunk(0, 4)
    first.offer(shared, 0.0)
    second.offer(shared, 0.0)
    first.take(1 << 20)
    events = list(shared.events)
    assert b"".join(events[2:]) == second.take(1 << 20)
    assert all(one is other for one, other in zip(shared.events, events, strict=True))


def test_a_reader_that_does_not_keep_up_is_told_how_much_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 200)
    tail, reader = Tail({0: 0}, rate=None, now=0.0), Reader()
    for first in range(0, 100, 10):
        tail.offer(chunk(first, 10), 0.0)
    assert tail.waiting_bytes < 1_000
    events = read(tail, reader)
    assert events[-1] == Event("dropped", {"records": tail.dropped})
    assert len(offsets(events)) + tail.dropped == 100
    assert tail.dropped > 0
    assert reader.last_id == "0:100"
    assert tail.waiting_bytes == 0
    tail.offer(chunk(100, 1), 0.0)
    assert offsets(read(tail, reader)) == [100]


def test_what_exceeds_the_rate_is_left_out_and_counted() -> None:
    tail, reader = Tail({0: 0}, rate=10, now=0.0), Reader()
    tail.offer(chunk(0, 25), 0.0)
    assert read(tail, reader)[10:] == [Event("dropped", {"records": 15})]
    tail.offer(chunk(25, 10), 0.5)
    events = read(tail, reader)
    assert offsets(events) == [25, 26, 27, 28, 29]
    assert events[-1] == Event("dropped", {"records": 5})
    tail.drop(0, 7, 42)  # known only by their number
    assert read(tail, reader) == [Event("dropped", {"records": 7})]
    assert reader.last_id == "0:42"


def test_gaps_move_on_without_an_event() -> None:
    tail, reader = Tail({0: 0}, rate=None, now=0.0), Reader()
    tail.offer(Chunk(0, [], [], 9, 0), 0.0)
    assert not tail.pending
    tail.offer(chunk(12, 1, behind=20), 0.0)
    assert offsets(read(tail, reader)) == [12]
    assert reader.last_id == "0:13"
    tail.skip(0, 30)
    assert tail.opening() == b"id: 0:30\n\n"


def test_whatever_is_offered_comes_once_or_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUEUE_BYTES", 2_000)
    for seed in range(50):
        rng = random.Random(seed)
        rate = rng.choice((None, 20, 1_000))
        tail, reader = Tail({0: 0, 1: 0}, rate=rate, now=0.0), Reader()
        ends, now, seen, dropped = [0, 0], 0.0, list[tuple[int, int]](), 0
        for _ in range(100):
            now += rng.random() / 10
            part, count = rng.randrange(2), rng.randrange(1, 30)
            tail.offer(chunk(ends[part], count, partition=part), now)
            ends[part] += count
            if rng.random() < 0.3:
                for event in reader.feed(tail.take(rng.randrange(1, 3_000))):
                    if event.kind == "dropped":
                        dropped += event.data["records"]
                    else:
                        seen.append((event.data["partition"], event.data["offset"]))
        for event in read(tail, reader):
            if event.kind == "dropped":
                dropped += event.data["records"]
            else:
                seen.append((event.data["partition"], event.data["offset"]))
        assert len(seen) + dropped == sum(ends), seed
        assert len(set(seen)) == len(seen)
        for part in (0, 1):
            mine = [offset for number, offset in seen if number == part]
            assert mine == sorted(mine)
        assert reader.last_id == f"0:{ends[0]},1:{ends[1]}"


@pytest.mark.parametrize(
    "text", ["x", "0", "0:", ":1", "0:-1", "2:1", "0:1,0:2", "0:1;1:1", "0:\u0661", "0:1,"]
)
def test_what_is_no_id_of_this_tail_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"partition|PARTITION"):
        parse_last_id(text, (0, 1))


def test_ids_may_name_fewer_partitions() -> None:
    assert parse_last_id("1:5", (0, 1)) == {1: 5}
    assert parse_last_id("0:1, 1:5", (0, 1)) == {0: 1, 1: 5}
