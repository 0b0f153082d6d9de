"""When heartbeats leave: always one under way, news at once, never in a tight loop."""

import math
from random import Random

import pytest

from tailrace.client.membership import Failed, Left, Lost, Membership
from tailrace.client.pulse import Beat, Pulse
from tailrace.protocol import texts, texts_client, texts_group
from tests.client.group_messages import answer, identity, owned


def make() -> Pulse:
    pulse = Pulse(Membership(identity()), Random(1))
    pulse.astray = False
    return pulse


def joined(partitions: list[int]) -> tuple[Pulse, Beat]:
    """A pulse with its second heartbeat under way, at second 1."""
    pulse = make()
    pulse.answered(pulse.send(0.0), answer(1, partitions), 1.0)
    return pulse, pulse.send(1.0)


def test_next_heartbeat_leaves_with_the_answer_to_the_one_before() -> None:
    pulse = make()
    assert pulse.next_at() == -math.inf
    beat = pulse.send(0.0)
    assert beat.request.wait_ms == 3_000
    assert pulse.next_at() == math.inf
    pulse.answered(beat, answer(1, [0]), 0.1)
    assert pulse.next_at() <= 0.1


def test_release_goes_out_beside_the_heartbeat_that_is_held_back() -> None:
    pulse, held = joined([0, 1])
    pulse.answered(held, answer(2, [0]), 2.0)
    held = pulse.send(2.0)
    (gone,) = (one for one in pulse.membership.held.values() if one.partition == 1)
    pulse.release(gone)
    assert pulse.next_at() <= 2.0
    newer = pulse.send(2.0)
    assert (owned(held.request), owned(newer.request)) == ([0, 1], [0])
    assert pulse.next_at() == math.inf, "two are enough"
    pulse.answered(held, answer(2, [0]), 2.1)
    assert pulse.next_at() == math.inf, "the newer one is under way"


def test_answer_that_came_too_soon_and_brought_nothing_is_followed_by_a_pause() -> None:
    pulse, held = joined([0])
    pulse.answered(held, answer(1, [0]), 1.001)
    assert pulse.next_at() == pytest.approx(1.051)


def test_answer_that_was_held_back_is_followed_at_once() -> None:
    pulse, held = joined([0])
    pulse.answered(held, answer(1, [0]), 4.0)
    assert pulse.next_at() == -math.inf


def test_connection_is_given_up_well_before_the_session_ends() -> None:
    pulse, _ = joined([0])
    assert pulse.overdue_at() == pytest.approx(1.0 + 3.0 + 3.0)


def test_coordinator_says_how_often() -> None:
    pulse = make()
    pulse.answered(pulse.send(0.0), answer(1, interval_ms=500), 0.1)
    assert pulse.send(0.1).request.wait_ms == 500
    assert pulse.patience_s == 0.5


def test_loading_coordinator_is_asked_again_after_a_growing_pause() -> None:
    pulse = make()
    loading = texts_group.coordinator_loading("g", broker="n1")
    pauses: list[float] = []
    for _ in range(8):
        assert pulse.refused(pulse.send(0.0), loading, 0.0) == []
        pauses.append(pulse.next_at())
        pulse.hurry()
    assert 0.1 <= pauses[0] <= 0.2
    assert pauses[-1] == pulse.patience_s / 2, "never so long that the session runs out"
    assert not pulse.astray


def test_somebody_else_is_the_coordinator() -> None:
    pulse = make()
    error = texts.not_leader("__offsets", 3, broker="n1", leader="n2")
    assert pulse.refused(pulse.send(0.0), error, 0.0) == []
    assert pulse.astray


def test_lost_connection_is_no_loss_of_partitions() -> None:
    pulse, _ = joined([0])
    pulse.lost_connection(2.0)
    assert pulse.astray
    assert 2.1 <= pulse.next_at() <= 2.2
    assert owned(pulse.send(3.0).request) == [0]


def test_answers_to_a_former_life_change_nothing() -> None:
    pulse, held = joined([0])
    pulse.membership.unsaid = True
    newer = pulse.send(1.0)
    fenced = texts_group.group_fenced("g", "m1", reason="it was silent")
    (lost,) = pulse.refused(held, fenced, 9.0)
    assert isinstance(lost, Lost)
    assert pulse.refused(newer, fenced, 9.0) == []
    pulse.hurry()
    again = pulse.send(9.0)
    assert again.request.member_epoch == 0
    assert not pulse.over


def test_goodbye_leaves_at_once_and_is_the_last_one() -> None:
    pulse, held = joined([0])
    pulse.leave()
    assert pulse.next_at() <= 1.0
    last = pulse.send(1.0)
    assert last.last
    assert pulse.next_at() == math.inf
    fenced = texts_group.group_fenced("g", "m1", reason="it left")
    assert pulse.refused(held, fenced, 1.1) == [], "thrown out while it waited: by its own goodbye"
    assert pulse.answered(last, answer(-1), 1.1) == [Left()]
    assert pulse.over
    assert pulse.next_at() == math.inf


def test_goodbye_is_said_again_if_the_connection_broke() -> None:
    pulse, _ = joined([0])
    pulse.leave()
    pulse.send(1.0)
    pulse.lost_connection(1.1)
    assert pulse.send(2.0).last


def test_refusal_for_good_ends_it() -> None:
    pulse = make()
    error = texts_client.not_open("x")
    assert pulse.refused(pulse.send(0.0), error, 0.0) == [Failed(error)]
    assert pulse.over


def test_answer_after_trouble_is_wanted_at_once() -> None:
    pulse, _ = joined([0])
    pulse.lost_connection(2.0)
    first = pulse.send(3.0)
    assert first.request.wait_ms == 0
    pulse.answered(first, answer(1, [0]), 3.001)
    assert pulse.send(3.001).request.wait_ms == 3_000
