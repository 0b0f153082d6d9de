"""Which connections are overdue."""

from tailrace.broker.limits import BODY_BYTES_PER_S, BODY_S, HEADER_S, HELLO_S, WRITE_STALL_S
from tailrace.broker.pulse import Pulse

IDLE_S = 600.0


def greeted() -> Pulse:
    pulse = Pulse(0.0, IDLE_S)
    pulse.greeted = True
    pulse.waits(0.0, 0)
    return pulse


def overdue(pulse: Pulse, now: float, *, waiting: bool = False) -> str | None:
    return pulse.overdue(now, waiting=waiting, unsent_bytes=0, sent_bytes=0)


def test_hello_has_ten_seconds_however_busy_the_peer_is() -> None:
    pulse = Pulse(0.0, IDLE_S)
    pulse.waits(0.0, 8)
    pulse.heard(9.0)
    pulse.waits(9.0, 4)
    assert overdue(pulse, HELLO_S) is None
    assert overdue(pulse, HELLO_S + 0.1) == "no hello in 10 s"


def test_a_header_that_comes_byte_by_byte_is_overdue() -> None:
    pulse = greeted()
    pulse.heard(100.0)
    pulse.waits(100.0, 19)
    pulse.heard(104.0)
    pulse.waits(104.0, 15)
    assert overdue(pulse, 100.0 + HEADER_S) is None
    assert overdue(pulse, 100.1 + HEADER_S) is not None


def test_a_body_has_time_by_its_length() -> None:
    for missing, allowed in ((1_000, BODY_S), (1_000_000, 1_000_000 / BODY_BYTES_PER_S)):
        pulse = greeted()
        pulse.heard(100.0)
        pulse.waits(100.0, missing)
        pulse.heard(100.5)
        pulse.waits(100.5, missing - 500)
        assert overdue(pulse, 100.0 + allowed) is None
        assert overdue(pulse, 100.1 + allowed) is not None


def test_a_stream_of_frames_is_never_overdue() -> None:
    pulse = greeted()
    for second in range(100):
        pulse.heard(float(second))
        pulse.completed()
        pulse.waits(float(second), 1_000)
        assert overdue(pulse, second + 0.9) is None


def test_time_the_broker_did_not_read_is_not_held_against_the_peer() -> None:
    pulse = greeted()
    pulse.heard(100.0)
    pulse.waits(100.0, 1_000)
    pulse.heard(101.0)
    assert overdue(pulse, 200.0) is None  # not reading
    pulse.waits(200.0, 500)
    assert overdue(pulse, 208.0) is None
    assert overdue(pulse, 209.5) is not None


def test_silence_is_overdue_unless_an_answer_is_awaited() -> None:
    pulse = greeted()
    assert overdue(pulse, IDLE_S) is None
    assert overdue(pulse, IDLE_S + 1) == "idle for 600 s"
    assert overdue(pulse, IDLE_S + 1, waiting=True) is None


def test_answers_not_taken_are_overdue_but_a_slow_reader_is_not() -> None:
    pulse = greeted()
    for second in range(200):
        reason = pulse.overdue(
            float(second), waiting=False, unsent_bytes=10_000, sent_bytes=second // 20
        )
        assert reason is None
    stalled_from = 180.0
    reason = pulse.overdue(
        stalled_from + WRITE_STALL_S, waiting=False, unsent_bytes=10_000, sent_bytes=9
    )
    assert reason is None
    reason = pulse.overdue(
        stalled_from + WRITE_STALL_S + 1, waiting=False, unsent_bytes=10_000, sent_bytes=9
    )
    assert reason is not None


def test_who_waits_for_answers_rests_unless_it_owes_something() -> None:
    pulse = Pulse(0.0, 600.0)
    assert not pulse.rests(1.0), "no hello yet"
    pulse.greeted = True
    pulse.waits(1.0, 0)
    assert pulse.rests(60.0)
    # Being looked at in this way counts as taking: what waits to be taken from now on is not late.
    assert pulse.overdue(61.0, waiting=True, unsent_bytes=9, sent_bytes=0) is None
    assert pulse.overdue(89.0, waiting=True, unsent_bytes=9, sent_bytes=0) is None
    assert pulse.overdue(91.0, waiting=True, unsent_bytes=9, sent_bytes=0) is not None
    pulse.waits(91.0, 10)
    assert not pulse.rests(92.0), "a frame has begun"
