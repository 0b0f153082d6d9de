"""Who leads a partition, and who may: one stored state after the other."""

from collections.abc import Callable

from tailrace.broker import election, reassignment
from tailrace.broker.catalog import Leadership


def there(brokers: str) -> Callable[[str], bool]:
    return lambda one: one in brokers


def state(
    leader: str | None, isr: str, elr: str = "", *, replicas: str = "abc", epoch: int = 3
) -> Leadership:
    return Leadership(leader, epoch, tuple(isr), tuple(elr), tuple(replicas), revision=7)


def told(one: Leadership | None) -> str:
    """'a3 isr elr': leader, epoch, and the sets."""
    if one is None:
        return "nothing"
    assert one.revision == 7, "compared with what was seen"
    return f"{one.leader or '-'}{one.leader_epoch} {''.join(one.isr)} {''.join(one.elr)}".strip()


def failed_over(one: Leadership, alive: str, *, need: int = 2, may_lead: str | None = None) -> str:
    may = alive if may_lead is None else may_lead
    return told(election.fail_over(one, need, alive=there(alive), may_lead=there(may)))


def test_a_majority_must_be_in_sync_unless_said_otherwise() -> None:
    assert [election.min_isr(None, n) for n in (1, 2, 3, 5)] == [1, 2, 2, 3]
    assert election.min_isr(1, 3) == 1


# ── ISR and ELR ──────────────────────────────────────────────────────────────────────────────


def test_who_leaves_an_isr_that_is_large_enough_is_no_candidate() -> None:
    assert told(election.with_isr(state("a", "abc"), "ab", 2)) == "a3 ab"


def test_who_leaves_it_below_its_minimum_stays_eligible() -> None:
    assert told(election.with_isr(state("a", "ab"), "a", 2)) == "a3 a b"
    assert told(election.with_isr(state("a", "a", "b"), "", 2)) == "a3  ba"


def test_candidates_get_no_fewer_below_the_minimum() -> None:
    one = state("a", "abc")
    for isr in ("a", "", "b", "bc"[:1]):
        one = election.with_isr(one, isr, 2)
        assert election.candidates(one) == {"a", "b", "c"}
    assert told(election.with_isr(one, "bc", 2)) == "a3 bc"


# ── failover ─────────────────────────────────────────────────────────────────────────────────


def test_the_first_of_the_isr_in_the_order_of_replicas_leads_next() -> None:
    assert failed_over(state("a", "acb"), "bc") == "b4 cb"
    assert failed_over(state("a", "acb", replicas="acb"), "bc") == "c4 cb"


def test_nothing_changes_while_all_live() -> None:
    assert failed_over(state("a", "abc"), "abc") == "nothing"
    assert failed_over(state("a", "ab"), "ab") == "nothing"


def test_a_dead_follower_leaves_the_isr_in_the_same_epoch() -> None:
    assert failed_over(state("a", "abc"), "ab") == "a3 ab"
    assert failed_over(state("a", "ab"), "a") == "a3 a b"


def test_a_broker_that_stops_leads_only_if_nobody_else_can() -> None:
    assert failed_over(state("a", "abc"), "bc", may_lead="c") == "c4 bc"
    assert failed_over(state("a", "abc"), "b", may_lead="") == "b4 b ac"


def test_without_the_isr_the_elr_leads() -> None:
    assert failed_over(state("a", "a", "b"), "bc") == "b4 b a"


def test_nobody_leads_without_a_candidate_until_one_is_back() -> None:
    one = election.fail_over(state("a", "a", "b"), 2, alive=there("c"), may_lead=there("c"))
    assert told(one) == "-3  ba"
    assert one is not None
    assert failed_over(one, "c") == "nothing"
    assert failed_over(one, "ac") == "a4 a b"


def test_a_partition_without_leader_gets_one_from_the_isr() -> None:
    assert failed_over(state(None, "bc"), "abc") == "b4 bc"


def placed_anew(one: Leadership, alive: str, target: str, may_lead: str | None = None) -> str:
    may = alive if may_lead is None else may_lead
    found = election.placed_anew(one, tuple(target), alive=there(alive), may_lead=there(may))
    assert found is None or found.leader in found.replicas
    return told(found)


def test_what_nobody_has_led_yet_is_given_to_any_that_lives() -> None:
    lost = state(None, "", replicas="a", epoch=0)  # its disk is another one
    assert placed_anew(lost, "a", "a") == "a0 a"
    assert placed_anew(state("a", "a", replicas="a", epoch=0), "bc", "abc") == "b0 b"
    assert placed_anew(state("a", "ab", "c", replicas="abcd", epoch=0), "d", "abcd") == "d0 d"
    assert placed_anew(state(None, "", "a", epoch=0), "bc", "abc", may_lead="c") == "c0 c"


def test_what_nobody_has_led_yet_is_left_to_those_who_are_to_begin_with_it() -> None:
    assert placed_anew(state("a", "a", replicas="a", epoch=0), "abc", "abc") == "nothing"
    assert placed_anew(state("a", "a", "b", epoch=0), "bc", "abc") == "nothing"
    assert placed_anew(state("a", "a", replicas="a", epoch=0), "bc", "a") == "nothing"


def test_what_was_led_once_is_never_placed_anew() -> None:
    assert placed_anew(state(None, "", replicas="a", epoch=1), "abc", "abc") == "nothing"
    assert placed_anew(state("a", "a", epoch=1), "bc", "abc") == "nothing"


# ── by hand ──────────────────────────────────────────────────────────────────────────────────


def test_who_stops_hands_over_to_one_that_has_everything() -> None:
    def handed(holders: str, may_lead: str = "abc") -> str:
        one = state("a", "abc")
        return told(election.hand_over(one, holders, may_lead=there(may_lead)))

    assert handed("cb") == "b4 abc"
    assert handed("cb", may_lead="ac") == "c4 abc"
    assert handed("a") == "nothing"
    assert handed("d") == "nothing"


def test_a_preferred_leader_leads_again_if_it_is_in_sync() -> None:
    def preferred(one: Leadership, may_lead: str = "abc") -> str:
        return told(election.prefer(one, "a", may_lead=there(may_lead)))

    assert preferred(state("b", "ab")) == "a4 ab"
    assert preferred(state("b", "bc")) == "nothing"
    assert preferred(state("b", "ab"), may_lead="b") == "nothing"
    assert preferred(state("a", "ab")) == "nothing"
    assert preferred(state(None, "ab")) == "nothing"


def test_an_unclean_leader_is_alone_in_sync() -> None:
    assert told(election.unclean(state(None, "", "ab"), "c")) == "c4 c"


# ── lost data ────────────────────────────────────────────────────────────────────────────────


def test_a_wiped_broker_is_no_candidate_even_if_it_was_the_last() -> None:
    assert told(election.wiped(state("a", "ab", "c"), "b")) == "a3 a c"
    assert told(election.wiped(state("a", "a", "c"), "c")) == "a3 a"
    assert told(election.wiped(state("a", "a"), "a")) == "-3"
    assert told(election.wiped(state("a", "a"), "b")) == "nothing"


def test_an_unclean_restart_gives_way_to_others_only() -> None:
    assert told(election.restarted_unclean(state("a", "ab"), "a")) == "-3 b"
    assert told(election.restarted_unclean(state("a", "a"), "a")) == "nothing"
    assert told(election.restarted_unclean(state("b", "b"), "a")) == "nothing"


def all_restarted(*held: tuple[str, tuple[int, int]], damaged: str = "") -> Leadership:
    """Everybody restarted without a clean stop, in this order, and told how much it holds."""
    one = state("a", "abc")
    for broker, _ in held:
        one = election.restarted_unclean(one, broker) or one
    assert told(one) == "-3"
    for broker, much in held:
        one = election.told(one, broker, (*much, broker not in damaged)) or one
    return one


def recovered(one: Leadership, alive: str = "abc", may_lead: str = "abc") -> str:
    return told(election.least_lost(one, alive=there(alive), may_lead=there(may_lead)))


def test_where_all_restarted_unclean_whoever_holds_most_leads() -> None:
    assert recovered(all_restarted(("a", (3, 100)), ("b", (3, 90)), ("c", (3, 50)))) == "a4 a"
    assert recovered(all_restarted(("b", (3, 90)), ("a", (3, 50)), ("c", (2, 95)))) == "b4 b"
    assert recovered(all_restarted(("c", (3, 90)), ("b", (3, 90)), ("a", (3, 50)))) == "b4 b"


def test_of_those_that_hold_as_much_one_without_damage_leads() -> None:
    held = ("a", (3, 90)), ("b", (3, 90)), ("c", (3, 90))
    assert recovered(all_restarted(*held)) == "a4 a"
    assert recovered(all_restarted(*held, damaged="a")) == "b4 b"
    assert recovered(all_restarted(*held), may_lead="bc") == "b4 b"


def test_all_who_start_at_once_come_to_one_note() -> None:
    one = state("a", "abc")
    for broker in "cab":
        one = election.restarted_unclean(one, broker) or one
    assert all(election.restarted_unclean(one, broker) is None for broker in "abc")


def test_what_others_hold_counts_until_enough_are_in_sync() -> None:
    one = state("a", "abc")
    for broker in "bc":
        one = election.restarted_unclean(one, broker) or one
    assert election.at_work(one, 2) == one
    again = election.restarted_unclean(election.at_work(one, 2), "a")
    assert again is not None
    assert election.waited_for(again) == ("a", "b", "c")
    assert election.waited_for(election.at_work(election.with_isr(one, "ab", 2), 2)) == ("a", "b")
    assert not election.at_work(election.with_isr(one, "ab", 2), 2).doubted


def test_who_is_elected_before_its_lease_ends_and_restarts_unclean_is_one_of_all() -> None:
    one = election.restarted_unclean(state("a", "abc"), "a")
    for broker in "bc":  # each is taken to be alive still
        assert one is not None
        one = election.restarted_unclean(one.elected(broker), broker)
    assert one is not None
    assert told(one) == "-5"
    assert election.waited_for(one) == ("a", "b", "c")


def test_what_is_told_counts_only_while_nobody_holds_all() -> None:
    half = election.restarted_unclean(state("a", "abc"), "a")
    assert half is not None
    assert told(election.told(half, "a", (3, 7, True))) == "nothing"


def test_a_copy_of_no_use_is_not_waited_for() -> None:
    one = all_restarted(("a", (3, 100)), ("b", (3, 90)), ("c", (3, 50)))
    without = election.given_up(one, "a")
    assert without is not None
    assert recovered(without, "bc") == "b4 b"
    for broker in "bc":
        without = election.given_up(without, broker) or without
    assert election.waited_for(without) == ("c",), "the last one is"


def test_without_the_last_that_held_all_an_operator_decides() -> None:
    one = state("a", "abc")
    for broker in "bc":
        one = election.restarted_unclean(one, broker) or one
    lost = election.wiped(one, "a")
    assert lost is not None
    assert election.waited_for(lost) == ()


def test_all_who_restarted_unclean_are_waited_for() -> None:
    one = all_restarted(("a", (3, 100)), ("b", (3, 90)), ("c", (3, 50)))
    assert recovered(one, "ab") == "nothing"
    again = election.restarted_unclean(one, "c")
    assert again is not None
    assert recovered(again) == "nothing", "what it holds now is not known yet"
    assert election.waited_for(again) == ("a", "b", "c")


def test_nobody_waits_for_a_disk_that_is_lost_or_where_somebody_holds_all() -> None:
    one = all_restarted(("a", (3, 100)), ("b", (3, 90)), ("c", (3, 50)))
    assert recovered(election.wiped(one, "a") or one, "bc") == "b4 b"
    half = election.restarted_unclean(state("a", "abc"), "a") or one
    assert recovered(half) == "nothing"
    assert told(election.restarted_unclean(half, "a")) == "nothing", "it is noted already"
    assert failed_over(half, "bc") == "b4 bc"


def test_doubts_are_stored() -> None:
    one = all_restarted(("a", (3, 100)), ("b", (3, 90)), ("c", (3, 50)))
    assert Leadership.from_json(one.to_json(), 7) == one
    assert election.unclean(one, "b").doubted == ()


def test_in_the_first_epoch_nobody_is_doubted() -> None:
    one = election.restarted_unclean(state("a", "ab", epoch=0), "b")
    assert one is not None
    assert one.doubted == ()


def test_a_copy_without_room_is_led_by_others_and_stays_eligible_where_few_are_left() -> None:
    assert told(election.stepped_aside(state("a", "abc"), "a", 2)) == "-3 bc"
    assert told(election.stepped_aside(state("a", "ab"), "a", 2)) == "-3 b a"
    assert told(election.stepped_aside(state("a", "ab"), "b", 2)) == "a3 a b"
    assert told(election.stepped_aside(state("a", "a"), "a", 2)) == "nothing"
    assert told(election.stepped_aside(state(None, "b", "a"), "a", 2)) == "nothing"


def test_a_copy_that_is_given_up_ends_the_epoch_in_which_it_fetched() -> None:
    assert told(election.given_up(state("a", "ab"), "b")) == "a4 a"
    assert told(election.given_up(state("a", "ab"), "a")) == "-3 b"
    assert told(election.given_up(state("a", "a"), "a")) == "nothing"


def test_a_leader_begins_another_life_in_another_epoch() -> None:
    assert told(election.restarted(state("a", "ab"), "a")) == "a4 ab"
    assert told(election.restarted(state("a", "ab"), "b")) == "nothing"


# ── moving copies ────────────────────────────────────────────────────────────────────────────


def moved(one: Leadership, target: str, alive: str = "abcdef") -> Leadership | None:
    return reassignment.step(one, tuple(target), alive=there(alive), may_lead=there(alive))


def replicas(one: Leadership | None) -> str:
    return "nothing" if one is None else "".join(one.replicas)


def test_new_copies_are_added_and_nothing_is_taken_away() -> None:
    one = moved(state("a", "abc"), "dea")
    assert replicas(one) == "deabc"
    assert told(one) == "a3 abc"


def test_until_the_new_copies_are_in_sync_nothing_more_happens() -> None:
    assert moved(state("a", "abcd", replicas="deabc"), "dea") is None


def test_old_copies_go_when_all_new_ones_are_in_sync_in_a_new_epoch() -> None:
    one = moved(state("a", "abcde", replicas="deabc"), "dea")
    assert replicas(one) == "dea"
    assert told(one) == "a4 dea"
    one = moved(state("b", "abcde", replicas="deabc"), "dea")
    assert told(one) == "d4 dea"


def test_the_new_leader_is_one_that_lives() -> None:
    assert told(moved(state("b", "abcde", replicas="deabc"), "dea", alive="ae")) == "e4 dea"
    assert moved(state("b", "abcde", replicas="deabc"), "dea", alive="bc") is None


def test_a_target_can_be_taken_back() -> None:
    one = moved(state("a", "abc", replicas="deabc"), "abc")
    assert replicas(one) == "abc"
    assert told(one) == "a4 abc"


def test_another_order_is_stored_at_once() -> None:
    one = moved(state("a", "abc"), "cab")
    assert replicas(one) == "cab"
    assert told(one) == "a3 abc"
    assert moved(state("a", "abc"), "abc") is None


def test_fewer_copies_are_enough_for_the_isr_to_be_all_of_them() -> None:
    one = moved(state("a", "abc"), "b")
    assert replicas(one) == "b"
    assert told(one) == "b4 b"


def test_a_leader_that_is_gone_is_failed_over_before_old_copies_go() -> None:
    there = state("a", "abcde", replicas="deabc")
    assert moved(there, "dea", alive="bcde") is None
    assert told(moved(there, "dea", alive="abcde")) == "a4 dea"


def test_a_broker_fills_a_copy_if_it_is_there() -> None:
    one = state("a", "ab")
    assert reassignment.filling(one, alive=there("abc"))
    assert not reassignment.filling(one, alive=there("ab"))
