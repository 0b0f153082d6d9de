"""Which segments retention lets go."""

from collections.abc import Callable, Sequence

from hypothesis import given, strategies as st

from tailrace.storage.retention import (
    RetentionPolicy,
    SegmentFacts,
    oldest_to_drop,
    segment_size_bytes,
    segments_to_drop,
)

HOUR = 3_600_000
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NO_LIMIT = RetentionPolicy(age_ms=None, size_bytes=None)
ONE_HOUR = RetentionPolicy(age_ms=HOUR, size_bytes=None)


def segments(*times: int | None, size: int = 100) -> list[SegmentFacts]:
    """Ten offsets each, with these last append times; the last one is active."""
    return [
        SegmentFacts(at * 10, at * 10 + 10, size, time, time, at < len(times) - 1)
        for at, time in enumerate(times)
    ]


def at(now_ms: int) -> Callable[[SegmentFacts], int]:
    """Ages by a clock that never steps."""
    return lambda segment: now_ms - (segment.last_append_time or 0)


def count(
    some: Sequence[SegmentFacts], policy: RetentionPolicy, now_ms: int, high_watermark: int = 99
) -> int:
    return segments_to_drop(some, policy, age_ms=at(now_ms), high_watermark=high_watermark)


def test_nothing_goes_without_a_limit() -> None:
    assert count(segments(0, 0, 0), NO_LIMIT, 10**15) == 0


def test_segment_goes_when_its_last_record_is_past_the_limit() -> None:
    some = segments(1000, 2000, 3000)
    assert count(some, ONE_HOUR, 1000 + HOUR) == 0
    assert count(some, ONE_HOUR, 1001 + HOUR) == 1
    assert count(some, ONE_HOUR, 2001 + HOUR) == 2


def test_active_segment_stays() -> None:
    assert count(segments(0, 0, 0), ONE_HOUR, 10 * HOUR) == 2


def test_nothing_at_or_above_the_high_watermark_goes() -> None:
    assert count(segments(0, 0, 0), ONE_HOUR, 10 * HOUR, high_watermark=19) == 1


def test_younger_segment_protects_those_behind_it() -> None:
    assert count(segments(0, 10 * HOUR, 0, 0), ONE_HOUR, 10 * HOUR) == 1


def test_size_keeps_at_least_the_limit() -> None:
    policy = RetentionPolicy(age_ms=None, size_bytes=250)
    assert count(segments(0, 0, 0, 0, 0), policy, 0) == 2


def test_segment_in_which_nothing_is_readable_is_kept_as_long_as_what_follows_it() -> None:
    some = segments(None, 1000, 2000)
    assert count(some, ONE_HOUR, 1000 + HOUR) == 0
    assert count(some, ONE_HOUR, 1001 + HOUR) == 2
    assert count(segments(None, None), ONE_HOUR, 10 * HOUR) == 0, "nobody knows how old it is"


def test_segment_from_the_future_is_not_old() -> None:
    assert count(segments(5 * HOUR, 5 * HOUR, 5 * HOUR), ONE_HOUR, 0) == 0


def test_the_oldest_over_all_logs_go_until_there_is_room() -> None:
    busy, idle = segments(10, 20, 30, 40, 50), segments(15, 45, 60)
    logs = [(busy, 99), (idle, 99)]
    for wanted, expected in (
        (0, [0, 0]),
        (1, [1, 0]),
        (101, [1, 1]),
        (300, [2, 1]),
        (10_000, [4, 2]),  # never the active ones
    ):
        assert oldest_to_drop(logs, wanted, now_ms=100) == expected


def test_nothing_that_is_not_committed_goes_for_room() -> None:
    assert oldest_to_drop([(segments(1, 2, 3), 15)], 1000, now_ms=100) == [1]


def test_a_log_stamped_ahead_gives_its_share_from_now_on() -> None:
    ahead, here = segments(10**15, 10**15, 10**15), segments(99, 101, 102)
    assert oldest_to_drop([(ahead, 99), (here, 99)], 300, now_ms=100) == [2, 1]


stamps = st.lists(st.integers(0, 1000), min_size=1, max_size=12).map(sorted)


@given(st.lists(stamps, max_size=6), st.integers(0, 4000))
def test_what_stays_is_never_older_than_what_goes(times: list[list[int]], wanted: int) -> None:
    logs = [(segments(*some), 1000) for some in times]
    counts = oldest_to_drop(logs, wanted, now_ms=10_000)
    gone = [one for (some, _), n in zip(logs, counts, strict=True) for one in some[:n]]
    stays = [one for (some, _), n in zip(logs, counts, strict=True) for one in some[n:-1]]
    freed = sum(one.size_bytes for one in gone)
    assert freed >= wanted or not stays
    assert freed - 100 < max(wanted, 1)  # not one too many
    if gone and stays:
        newest_gone = max(one.last_append_time or 0 for one in gone)
        assert newest_gone <= min(one.last_append_time or 0 for one in stays)


# ── how large segments are ───────────────────────────────────────────────────────────────────


def size(wanted: int, capacity: int, partitions: int = 1, retention: int | None = None) -> int:
    return segment_size_bytes(
        wanted, capacity_bytes=capacity, partitions=partitions, retention_bytes=retention
    )


def test_segments_are_as_large_as_was_set_where_there_is_room() -> None:
    assert size(128 * MIB, 500 * GIB, 100) == 128 * MIB
    assert size(4 * KIB, 96 * MIB) == 4 * KIB


def test_on_a_small_disk_there_are_closed_segments_all_the_same() -> None:
    assert size(128 * MIB, 96 * MIB) == 3 * MIB
    assert size(128 * MIB, 10 * GIB, 1000) < 10 * GIB // 1000 // 2
    assert size(128 * MIB, 16 * MIB) == MIB


def test_a_retained_size_is_cut_into_eight() -> None:
    assert size(128 * MIB, 500 * GIB, retention=80 * MIB) == 10 * MIB
    assert size(128 * MIB, 500 * GIB, retention=1) == 64 * KIB
