"""Which segments retention lets go."""

from tailrace.storage.retention import RetentionPolicy, SegmentFacts, segments_to_drop

HOUR = 3_600_000
NO_LIMIT = RetentionPolicy(age_ms=None, size_bytes=None)
ONE_HOUR = RetentionPolicy(age_ms=HOUR, size_bytes=None)


def segments(*times: int | None, size: int = 100) -> list[SegmentFacts]:
    """Ten offsets each, with these last append times; the last one is active."""
    return [
        SegmentFacts(at * 10, at * 10 + 10, size, time, time, at < len(times) - 1)
        for at, time in enumerate(times)
    ]


def test_nothing_goes_without_a_limit() -> None:
    assert segments_to_drop(segments(0, 0, 0), NO_LIMIT, now_ms=10**15, high_watermark=99) == 0


def test_segment_goes_when_its_last_record_is_past_the_limit() -> None:
    some = segments(1000, 2000, 3000)
    assert segments_to_drop(some, ONE_HOUR, now_ms=1000 + HOUR, high_watermark=99) == 0
    assert segments_to_drop(some, ONE_HOUR, now_ms=1001 + HOUR, high_watermark=99) == 1
    assert segments_to_drop(some, ONE_HOUR, now_ms=2001 + HOUR, high_watermark=99) == 2


def test_active_segment_stays() -> None:
    assert segments_to_drop(segments(0, 0, 0), ONE_HOUR, now_ms=10 * HOUR, high_watermark=99) == 2


def test_nothing_at_or_above_the_high_watermark_goes() -> None:
    assert segments_to_drop(segments(0, 0, 0), ONE_HOUR, now_ms=10 * HOUR, high_watermark=19) == 1


def test_younger_segment_protects_those_behind_it() -> None:
    some = segments(0, 10 * HOUR, 0, 0)
    assert segments_to_drop(some, ONE_HOUR, now_ms=10 * HOUR, high_watermark=99) == 1


def test_size_keeps_at_least_the_limit() -> None:
    policy = RetentionPolicy(age_ms=None, size_bytes=250)
    some = segments(0, 0, 0, 0, 0)
    assert segments_to_drop(some, policy, now_ms=0, high_watermark=99) == 2


def test_clock_set_back_deletes_nothing() -> None:
    some = segments(5 * HOUR, 5 * HOUR, 5 * HOUR)
    assert segments_to_drop(some, ONE_HOUR, now_ms=0, high_watermark=99) == 0


def test_segment_stamped_ahead_ages_from_when_it_was_seen_so() -> None:
    some = segments(5 * HOUR, 5 * HOUR, 5 * HOUR)
    seen = {0: HOUR + 1, 10: HOUR}
    assert segments_to_drop(some, ONE_HOUR, now_ms=0, high_watermark=99, ahead_ms=seen) == 1


def test_empty_segment_goes_by_age() -> None:
    assert segments_to_drop(segments(None, 0), ONE_HOUR, now_ms=0, high_watermark=99) == 1
    assert segments_to_drop(segments(None, 0), NO_LIMIT, now_ms=0, high_watermark=99) == 0
