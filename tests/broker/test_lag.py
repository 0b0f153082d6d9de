"""What is made of a group's progress: rates, drain and verdict."""

import pytest

from tailrace.broker.lag import NOTHING, Track, drain_s, present_s, worst

WINDOW = 60.0


class Watched:
    """A track that is looked at each second."""

    def __init__(self, committed: int = 0, end: int = 0, start: int = 0) -> None:
        self.now, self.start = 100.0, start
        self.track = Track(self.now, committed, end)

    def go_on(self, seconds: int, commits: int = 0, writes: int = 0) -> None:
        """So many offsets each second."""
        for _ in range(seconds):
            track, before = self.track, self.now
            self.now += 1.0
            self.look(track.committed + commits, track.end + writes, before)

    def look(self, committed: int, end: int, before: float) -> None:
        self.track.observe(self.now, before, committed, end, self.start, WINDOW)

    @property
    def verdict(self) -> str:
        at = self.start if self.track.committed == NOTHING else self.track.committed
        return self.track.verdict(self.now, self.track.end - at, window_s=WINDOW)

    def rates(self, over_s: float = WINDOW) -> tuple[float, float]:
        return self.track.rates(self.now, over_s)


def test_group_that_keeps_up_is_ok() -> None:
    group = Watched()
    group.go_on(300, commits=10, writes=10)
    assert group.verdict == "ok"
    assert group.rates() == pytest.approx((10, 10))


def test_group_that_does_not_move_is_stalled_after_a_window() -> None:
    group = Watched()
    group.go_on(100, commits=10, writes=10)
    group.go_on(59, writes=10)
    assert group.verdict == "ok"
    group.go_on(2, writes=10)
    assert group.verdict == "stalled"
    group.go_on(1, commits=1)
    assert group.verdict == "warn"


def test_group_with_nothing_to_read_is_never_stalled() -> None:
    group = Watched(committed=50, end=50)
    group.go_on(1_000)
    assert group.verdict == "ok"
    group.go_on(1, writes=1)
    group.go_on(58)
    assert group.verdict == "ok"  # behind for 58 seconds, whatever was before
    group.go_on(2)
    assert group.verdict == "stalled"


def test_group_that_stopped_with_unread_records_in_a_log_that_grows_no_more_is_stalled() -> None:
    group = Watched(committed=0, end=500)
    group.go_on(61)
    assert group.verdict == "stalled"


def test_group_that_falls_behind_is_warned_of() -> None:
    group = Watched()
    group.go_on(200, commits=10, writes=15)
    assert group.verdict == "warn"
    group.go_on(70, commits=16, writes=15)
    assert group.verdict == "ok"  # far behind, and catching up


def test_slowly_falling_behind_is_noticed_once_it_is_more_than_the_noise_of_commits() -> None:
    group = Watched()
    group.go_on(100, commits=100, writes=101)
    assert group.verdict == "ok"
    group.go_on(200, commits=100, writes=101)
    assert group.verdict == "warn"


def test_what_one_commit_covers_is_no_falling_behind() -> None:
    group = Watched(committed=0, end=1_000)
    group.go_on(120, commits=1_000, writes=1_000)
    group.go_on(1, commits=1_000, writes=1_300)
    assert group.verdict == "ok"


def test_burst_that_was_read_to_its_end_is_forgotten() -> None:
    group = Watched()
    group.go_on(1, writes=100_000)
    group.go_on(10, commits=10_000)
    group.go_on(1, writes=100_000)
    group.go_on(5, commits=10_000)
    assert group.verdict == "ok"
    _, write_rate = group.rates(present_s(WINDOW))
    group.go_on(8)
    assert group.rates(present_s(WINDOW))[1] < write_rate


def test_present_rate_is_that_of_the_last_seconds() -> None:
    group = Watched()
    group.go_on(120, commits=10, writes=10)
    group.go_on(12, writes=10)
    assert group.rates(present_s(WINDOW)) == pytest.approx((0, 10), abs=0.5)
    assert group.rates()[0] == pytest.approx(48 / 6, rel=0.1)


def test_pace_of_a_group_that_keeps_up_is_that_of_the_log() -> None:
    group = Watched()
    group.go_on(100, commits=100, writes=100)
    group.go_on(1, commits=0, writes=130)
    rate, write_rate = group.track.pace(group.now, window_s=WINDOW)
    assert rate == write_rate


def test_pace_of_a_slow_group_is_its_own() -> None:
    group = Watched()
    group.go_on(100, commits=90, writes=100)
    assert group.track.pace(group.now, window_s=WINDOW) == pytest.approx((90, 100))


def test_pace_of_a_group_that_has_just_stopped_is_nothing() -> None:
    group = Watched()
    group.go_on(100, commits=100, writes=100)
    group.go_on(16, writes=100)
    assert group.track.pace(group.now, window_s=WINDOW) == pytest.approx((0, 100))


def test_group_that_never_committed_is_behind_by_the_log() -> None:
    group = Watched(committed=NOTHING, start=10, end=10)
    group.go_on(500)
    assert group.verdict == "ok"
    group.go_on(1, writes=3)
    group.go_on(50)
    assert group.verdict == "ok"
    group.go_on(10)
    assert group.verdict == "stalled"


def test_records_that_all_expired_unread_leave_a_group_without_commits_at_the_end() -> None:
    group = Watched(committed=NOTHING, end=10)
    group.go_on(70)
    assert group.verdict == "stalled"
    group.start = 10
    assert group.verdict == "ok"
    group.go_on(1, writes=1)
    assert group.verdict == "ok"


def test_first_commit_is_no_progress_of_a_second() -> None:
    group = Watched(committed=NOTHING, start=1_000_000, end=1_000_500)
    group.go_on(30)
    group.look(1_000_100, 1_000_500, group.now - 1)
    group.go_on(10, commits=10)
    assert group.rates()[0] == pytest.approx(10)


def test_reset_begins_anew() -> None:
    group = Watched(committed=5_000, end=9_000)
    group.go_on(100, commits=10, writes=10)
    group.look(0, 9_000, group.now - 1)
    assert group.rates() == (0.0, 0.0)
    assert group.verdict == "ok"
    group.go_on(61)
    assert group.verdict == "stalled"


def test_idle_track_keeps_no_points_and_a_busy_one_a_dozen() -> None:
    idle, busy = Watched(5, 5), Watched()
    idle.go_on(1_000)
    busy.go_on(1_000, commits=1, writes=1)
    assert idle.track.points == []
    assert len(busy.track.points) <= 14


def test_after_a_long_silence_the_past_was_still() -> None:
    group = Watched(committed=10, end=10)
    group.go_on(500)
    group.go_on(1, commits=600, writes=600)
    assert group.rates() == pytest.approx((10, 10), rel=0.05)
    group.go_on(30)
    assert group.rates() == pytest.approx((10, 10), rel=0.05)
    group.go_on(40)
    assert group.rates() == (0.0, 0.0)


@pytest.mark.parametrize(
    ("lag", "rate", "write_rate", "expected"),
    [
        (0, 0.0, 0.0, 0.0),
        (1_000, 100.0, 50.0, 20.0),
        (1_000, 100.0, 100.0, None),
        (1_000, 0.0, 0.0, None),
        (150, 100.0, 101.0, 1.5),
    ],
)
def test_drain(lag: int, rate: float, write_rate: float, expected: float | None) -> None:
    assert drain_s(lag, rate, write_rate) == expected


def test_group_is_as_bad_as_its_worst_partition() -> None:
    assert worst([]) == "ok"
    assert worst(["ok", "warn", "ok"]) == "warn"
    assert worst(["warn", "stalled", "ok"]) == "stalled"
