"""The high watermark and the in-sync set, by rules R3-R6, R9 and R12."""

from dataclasses import replace
from typing import Literal

import pytest

from tailrace.broker.catalog import Leadership
from tailrace.broker.replica import IsrChange, Replica

LAG_MAX = 10.0


def leadership(isr: str = "abc", *, elr: str = "", leader: str = "a", epoch: int = 1) -> Leadership:
    return Leadership(leader, epoch, tuple(isr), tuple(elr), tuple("abc"), revision=5)


def leading(
    isr: str = "abc",
    *,
    elr: str = "",
    min_isr: int = 2,
    high_watermark: int = 0,
    start: int = 0,
    durability: Literal["fsync", "replicated"] = "fsync",
) -> Replica:
    replica = Replica(durability, high_watermark)
    replica.lead(leadership(isr, elr=elr), epoch_start=start, min_isr=min_isr)
    replica.isr_change(0.0, LAG_MAX)  # looks for the first time
    return replica


def fetch(replica: Replica, who: str, end: int, *, now: float = 0.0, epoch: int = 7) -> bool:
    return replica.observe_fetch(who, end, end, epoch, now)


def due(replica: Replica, now: float) -> IsrChange:
    change = replica.isr_change(now, LAG_MAX)
    assert change is not None
    return change


def stored(change: IsrChange) -> Leadership:
    return replace(change.leadership, revision=change.leadership.revision + 1)


def shown(replica: Replica) -> int | None:
    return replica.shown_high_watermark


# ── high watermark ───────────────────────────────────────────────────────────────────────────


def test_one_node_commits_what_it_flushed() -> None:
    replica = Replica("fsync", 0)
    assert not replica.observe_own(5, 5)  # not leading yet
    replica.lead(Leadership("a", 1, ("a",), (), ("a",)), epoch_start=5, min_isr=1)
    assert shown(replica) is None
    assert not replica.observe_own(7, 0)
    assert replica.observe_own(7, 5)
    assert shown(replica) == 5
    assert not replica.observe_own(7, 5)
    assert replica.isr_change(100.0, LAG_MAX) is None


def test_watermark_waits_for_every_member_of_the_isr() -> None:
    replica = leading()
    assert not replica.observe_own(10, 10)
    assert not fetch(replica, "b", 10)
    assert fetch(replica, "c", 4)
    assert replica.high_watermark == 4


def test_a_follower_outside_the_isr_does_not_count() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    assert fetch(replica, "b", 10)
    assert not fetch(replica, "c", 3)
    assert replica.high_watermark == 10


def test_with_fsync_only_flushed_ends_count_else_written_ones() -> None:
    for durability, expected in (("fsync", 3), ("replicated", 8)):
        replica = leading("ab", durability="fsync" if durability == "fsync" else "replicated")
        replica.observe_own(9, 9)
        replica.observe_fetch("b", 8, 3, 7, 0.0)
        assert replica.high_watermark == expected


def test_changed_durability_counts_at_once() -> None:
    replica = leading("ab")
    replica.observe_own(9, 9)
    replica.observe_fetch("b", 8, 3, 7, 0.0)
    assert replica.reconfigure("replicated", 2)
    assert replica.high_watermark == 8


def test_what_is_not_synced_is_not_committed_by_a_setting_that_asks_for_it() -> None:
    replica = leading("a", durability="replicated")
    replica.observe_own(100, 40)
    assert not replica.reconfigure("fsync", 1)
    assert replica.high_watermark <= 40


def test_who_was_paused_itself_gives_its_followers_time_to_show_themselves() -> None:
    replica = leading("ab")
    replica.observe_own(9, 9)
    replica.watch_anew(LAG_MAX * 2)
    assert replica.isr_change(LAG_MAX * 2.5, LAG_MAX) is None
    assert due(replica, LAG_MAX * 3 + 1).leadership.isr == ("a",)


def test_watermark_stands_below_min_isr() -> None:
    replica = leading("a", elr="b")
    assert not replica.enough
    assert not replica.observe_own(10, 10)
    assert replica.high_watermark == 0


def test_watermark_stands_while_others_may_be_elected_from_the_elr() -> None:
    # min_isr was lowered, but who stores the metadata still goes by the old one.
    replica = leading("a", elr="b", min_isr=1)
    assert not replica.observe_own(10, 10)
    change = due(replica, 1.0)
    assert change.leadership.elr == ()
    assert change.leadership.isr == ("a",)
    replica.begin_change(change)
    assert not replica.observe_own(10, 10)
    assert replica.commit_change(stored(change))
    assert replica.high_watermark == 10


def test_watermark_is_not_shown_before_the_start_of_the_epoch() -> None:
    replica = leading("ab", high_watermark=3, start=8)
    replica.observe_own(9, 9)
    assert fetch(replica, "b", 7)
    assert replica.high_watermark == 7
    assert shown(replica) is None
    assert fetch(replica, "b", 8)
    assert shown(replica) == 8


def test_a_follower_knows_what_it_holds_of_what_the_leader_committed() -> None:
    replica = Replica("fsync", 0)
    replica.follow(leadership(leader="b"))
    assert replica.observe_leader(10, 7, 5)
    assert replica.high_watermark == 5
    assert not replica.observe_leader(4, 7, 7)
    assert replica.high_watermark == 5


def test_in_a_new_epoch_nobody_counts_by_the_old_one() -> None:
    replica = leading("ab")
    replica.observe_own(5, 5)
    fetch(replica, "b", 5)
    replica.lead(leadership("ab", epoch=2), epoch_start=5, min_isr=2)
    assert not replica.observe_own(9, 9)
    assert replica.holders() == []
    assert fetch(replica, "b", 9)


def test_a_fetch_from_before_the_follower_registered_anew_is_ignored() -> None:
    replica = leading("ab")
    replica.observe_own(9, 9)
    fetch(replica, "b", 2, epoch=8)
    assert not fetch(replica, "b", 9, epoch=7)
    assert replica.high_watermark == 2
    assert not fetch(replica, "stranger", 9)


# ── shrinking ────────────────────────────────────────────────────────────────────────────────


def test_who_lags_too_long_leaves_the_isr() -> None:
    replica = leading()
    replica.observe_own(10, 10)
    fetch(replica, "b", 10, now=1.0)
    fetch(replica, "c", 9, now=1.0)
    assert replica.isr_change(9.0, LAG_MAX) is None
    change = due(replica, 11.5)
    assert change.removed == ("c",)
    assert change.leadership.isr == ("a", "b")
    assert change.leadership.elr == ()
    assert change.leadership.revision == 5


def test_whoever_left_below_min_isr_stays_eligible() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    change = due(replica, 11.0)
    assert change.leadership.isr == ("a",)
    assert change.leadership.elr == ("b",)


def test_one_that_is_always_a_fetch_behind_is_in_sync() -> None:
    replica = leading("ab")
    for second in range(60):
        replica.observe_own(second + 1, second + 1)
        fetch(replica, "b", second, now=float(second))
        assert replica.isr_change(float(second), LAG_MAX) is None
    assert due(replica, 70.0).removed == ("b",)


def test_an_idle_follower_that_has_everything_stays() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    assert replica.isr_change(1e6, LAG_MAX) is None


def test_until_the_shrink_is_stored_the_one_who_leaves_still_counts() -> None:
    replica = leading()
    replica.observe_own(10, 10)
    fetch(replica, "b", 10, now=11.0)
    change = due(replica, 11.0)
    replica.begin_change(change)
    assert replica.isr_change(12.0, LAG_MAX) is None
    assert replica.maximal_isr == {"a", "b", "c"}
    assert not replica.observe_own(10, 10)
    assert replica.commit_change(stored(change))
    assert replica.high_watermark == 10


# ── expanding ────────────────────────────────────────────────────────────────────────────────


def test_who_reached_the_watermark_comes_in_with_the_broker_epoch_of_its_fetches() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    fetch(replica, "c", 9)
    assert replica.isr_change(0.0, LAG_MAX) is None
    fetch(replica, "c", 10, epoch=42)
    change = due(replica, 0.0)
    assert change.added == {"c": 42}
    assert change.leadership.isr == ("a", "b", "c")


def test_nobody_comes_in_below_the_start_of_the_epoch() -> None:
    replica = leading("ab", high_watermark=3, start=8)
    replica.observe_own(8, 8)
    fetch(replica, "c", 7)
    assert replica.isr_change(0.0, LAG_MAX) is None
    fetch(replica, "c", 8)
    assert due(replica, 0.0).added == {"c": 7}


def test_a_proposed_member_counts_before_it_is_one() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    fetch(replica, "c", 10)
    replica.begin_change(due(replica, 0.0))
    replica.observe_own(12, 12)
    assert not fetch(replica, "b", 12)
    assert fetch(replica, "c", 11)
    assert replica.high_watermark == 11


def test_expansion_to_min_isr_commits_again_and_empties_the_elr() -> None:
    replica = leading("a", elr="c")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    change = due(replica, 0.0)
    assert change.leadership.elr == ()
    replica.begin_change(change)
    assert replica.high_watermark == 0
    assert replica.commit_change(stored(change))
    assert replica.high_watermark == 10


# ── outcomes ─────────────────────────────────────────────────────────────────────────────────


def test_a_refused_change_is_as_if_it_never_was() -> None:
    replica = leading("ab")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    fetch(replica, "c", 10)
    change = due(replica, 0.0)
    replica.begin_change(change)
    replica.observe_own(12, 12)
    fetch(replica, "b", 12)
    assert replica.abort_change(change)
    assert not replica.abort_change(change)
    assert replica.high_watermark == 12
    assert replica.maximal_isr == {"a", "b"}


def doubting() -> Replica:
    """Whether c came in is unknown."""
    replica = leading("ab")
    replica.observe_own(10, 10)
    fetch(replica, "b", 10)
    fetch(replica, "c", 10)
    change = due(replica, 0.0)
    replica.begin_change(change)
    replica.doubt_change(change)
    replica.observe_own(12, 12)
    return replica


def test_with_an_unknown_outcome_all_proposed_members_count_until_a_later_revision() -> None:
    replica = doubting()
    # The store still has the old revision: the change may be stored yet, when it arrives.
    assert not replica.commit_change(leadership("ab"))
    assert replica.maximal_isr == {"a", "b", "c"}
    assert not fetch(replica, "b", 12)
    assert replica.commit_change(replace(leadership("ab"), revision=9))
    assert replica.high_watermark == 12


def test_what_the_store_refused_is_past_even_if_it_was_tried_before() -> None:
    replica = doubting()
    fetch(replica, "b", 12)
    change = due(replica, 0.0)
    replica.begin_change(change)
    assert replica.abort_change(change)
    assert replica.maximal_isr == {"a", "b"}


def test_a_change_that_changes_nothing_ends_a_doubt() -> None:
    replica = doubting()
    fetch(replica, "b", 12, now=11.0)
    change = due(replica, 11.0)  # c did not fetch again: it need not come in any more
    assert change.leadership == leadership("ab")
    replica.begin_change(change)
    assert replica.maximal_isr == {"a", "b", "c"}
    assert replica.commit_change(stored(change))
    assert replica.isr_change(11.0, LAG_MAX) is None


def test_news_from_the_controller_settles_what_was_proposed() -> None:
    replica = leading()
    replica.observe_own(10, 10)
    fetch(replica, "b", 10, now=11.0)
    change = due(replica, 11.0)
    replica.begin_change(change)
    assert replica.commit_change(replace(leadership("ab"), revision=6))
    assert not replica.change_pending
    assert replica.high_watermark == 10
    replica.doubt_change(change)  # its own outcome comes late
    assert not replica.abort_change(change)
    assert replica.maximal_isr == {"a", "b"}


def test_only_holders_of_everything_are_handed_the_partition() -> None:
    replica = leading()
    replica.observe_own(10, 10)
    fetch(replica, "b", 9)
    fetch(replica, "c", 10)
    assert replica.holders() == ["c"]


def test_clean_offset_of_all_is_unknown_while_one_has_not_told() -> None:
    replica = leading("ab")
    replica.observe_fetch("b", 5, 5, 7, 0.0, 4)
    assert replica.cleaned_min(9) == -1
    replica.observe_fetch("c", 5, 5, 7, 0.0, 3)
    assert replica.cleaned_min(9) == 3
    assert replica.cleaned_min(2) == 2


def test_a_leader_outside_the_isr_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="in sync with itself"):
        Replica("fsync", 0).lead(leadership("bc"), epoch_start=0, min_isr=2)
