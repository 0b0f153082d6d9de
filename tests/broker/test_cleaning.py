"""When a log is due for cleaning, and in which pieces it is rewritten."""

from dataclasses import replace

import pytest

from tailrace.broker.cleaning import Dirt, groups, look
from tailrace.broker.config import TopicConfig, from_mapping
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rewrite import SegmentSource
from tailrace.storage.survey import Surveyed

HOUR_MS = 3_600_000
NOTHING = Cleaned()
NOW_MS = 1_000 * HOUR_MS
CONFIG: TopicConfig = from_mapping(
    {
        "topic.cleanup": "compact",
        "topic.compaction_lag_max": "10h",
        "topic.tombstone_retention": "100h",
    }
).topic


def segments(*sizes: int, active: int = 10) -> list[SegmentFacts]:
    """Closed segments of so many bytes, 100 offsets each and an hour apart, and an open one."""
    found = [
        SegmentFacts(at * 100, at * 100 + 100, size, stamp(at), stamp(at), True)
        for at, size in enumerate(sizes)
    ]
    at = len(sizes)
    return [*found, SegmentFacts(at * 100, at * 100 + 5, active, stamp(at), stamp(at), False)]


def stamp(at: int) -> int:
    return NOW_MS - 5 * HOUR_MS + at * HOUR_MS


def source(facts: SegmentFacts) -> SegmentSource:
    return SegmentSource(
        f"{facts.base_offset}.log", facts.base_offset, facts.next_offset, facts.size_bytes
    )


def seen(
    facts: list[SegmentFacts],
    cleaned: Cleaned = NOTHING,
    *,
    without: tuple[int, ...] = (),
    now_ms: int = NOW_MS,
    config: TopicConfig = CONFIG,
    others_moved: bool = True,
) -> Dirt:
    sources = [source(one) for one in facts if one.sealed and one.base_offset not in without]
    return look(
        *(facts, sources, cleaned, config),
        now_ms=now_ms,
        age_ms=lambda append: now_ms - append,
        others_moved=others_moved,
    )


def test_a_log_is_due_when_enough_of_it_is_dirty() -> None:
    facts = segments(60, 39)
    assert seen(facts).due, "nothing was ever cleaned"
    clean = seen(facts, Cleaned(100, 100))
    assert (clean.clean_bytes, clean.dirty_bytes, round(clean.ratio, 2)) == (60, 39, 0.39)
    assert not clean.due
    assert "39% of 99 B is dirty: cleaned from 50% on" in clean.reason
    assert "has been there for 10h (14,400 s so far)" in clean.reason
    assert seen(segments(50, 50), Cleaned(100, 100)).due


def test_a_log_is_due_when_its_oldest_dirty_record_is_too_old() -> None:
    facts, cleaned = segments(60, 10), Cleaned(100, 100)
    assert not seen(facts, cleaned, now_ms=NOW_MS + 5 * HOUR_MS).due
    late = seen(facts, cleaned, now_ms=NOW_MS + 6 * HOUR_MS)
    assert late.due
    assert late.reason == "14% of 70 B is dirty, the oldest record of it for 36,000 s"


def test_a_log_is_due_some_time_after_tombstones_may_go() -> None:
    facts, cleaned = segments(60, 10), Cleaned(200, 200, next_horizon_ms=NOW_MS)
    assert not seen(facts, cleaned, now_ms=NOW_MS + 10 * HOUR_MS).due
    late = seen(facts, cleaned, now_ms=NOW_MS + 10 * HOUR_MS + 1)
    assert late.due
    assert late.reason == "tombstones have been kept for their time"


def test_a_ratio_of_nothing_cleans_at_once_and_only_what_is_dirty() -> None:
    eager = replace(CONFIG, compaction_dirty_ratio=0.0)
    assert seen(segments(60, 1), Cleaned(100, 100), config=eager).due
    assert not seen(segments(60, 1), Cleaned(200, 200), config=eager).due


@pytest.mark.parametrize(
    ("facts", "cleaned", "reason"),
    [
        (segments(active=0), Cleaned(), "no segment is closed yet"),
        (
            segments(active=2048),
            Cleaned(),
            "no segment is closed yet; the open one (2 KiB) is closed at 128 MiB or after 10h",
        ),
        (segments(60, active=0), Cleaned(100, 100), "all that is closed is clean"),
    ],
)
def test_why_there_is_nothing_to_do(
    facts: list[SegmentFacts], cleaned: Cleaned, reason: str
) -> None:
    assert seen(facts, cleaned).reason == reason


def test_segments_that_cannot_be_rewritten_bound_what_may_be_said_of_tombstones() -> None:
    facts = segments(10, 10, 10)
    assert seen(facts).whole_below == 300
    holed = seen(facts, without=(100,))
    assert (holed.whole_below, holed.left_out, holed.end) == (100, 1, 300)
    assert holed.dirty_bytes == 20
    clean = seen(facts, Cleaned(300, 100), without=(100,))
    assert clean.reason.endswith("; 1 closed segment cannot be cleaned: damaged, or not yet synced")


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def surveyed(at: int, size: int, superseded: int = 0, **changed: int) -> Surveyed:
    return Surveyed(
        source=SegmentSource(f"{at}.log", at * 100, at * 100 + 100, size),
        records=100,
        superseded=superseded,
        keyless=0,
        closed=0,
        removable=changed.get("removable", 0),
        unstamped=changed.get("unstamped", 0),
        next_horizon_ms=None,
        waits=False,
        marks_at=0,
        marks_end=0,
        marks_check=0,
    )


def pieces(*found: Surveyed) -> list[list[int]]:
    return [
        [one.source.base_offset // 100 for one in group]
        for group in groups(found, segment_bytes=1_000)
    ]


def test_tombstones_that_waited_for_other_replicas_make_it_due_when_these_are_further() -> None:
    facts = segments(60, 10)
    waiting = Cleaned(200, 200, waits=True)
    assert seen(facts, waiting).due
    assert not seen(facts, waiting, others_moved=False).due
    assert not seen(facts, Cleaned(200, 200)).due


def test_neighbours_are_joined_while_what_stays_of_them_fits() -> None:
    assert pieces(*(surveyed(at, 1_000, superseded=70) for at in range(7))) == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]


def test_a_segment_that_loses_nothing_is_not_touched() -> None:
    assert pieces(surveyed(0, 1_000), surveyed(1, 1_000, superseded=1), surveyed(2, 1_000)) == [[1]]
    assert pieces(surveyed(0, 900)) == []


def test_a_segment_with_tombstones_to_stamp_or_remove_is_rewritten() -> None:
    assert pieces(surveyed(0, 900, unstamped=1)) == [[0]]
    assert pieces(surveyed(0, 900, removable=1)) == [[0]]


def test_small_segments_are_joined_even_if_they_lose_nothing_large_ones_are_not() -> None:
    assert pieces(surveyed(0, 100), surveyed(1, 100)) == [[0, 1]]
    assert pieces(surveyed(0, 600), surveyed(1, 100)) == []


def test_only_neighbours_are_joined() -> None:
    assert pieces(surveyed(0, 100), surveyed(2, 100, superseded=1)) == [[2]]
