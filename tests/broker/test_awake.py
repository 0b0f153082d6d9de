"""Whether a broker was away."""

from tailrace.broker.awake import AWAY_S, PULSE_S, Awake
from tailrace.broker.timers import Timers


def test_a_broker_that_stood_still_notices_at_the_first_look() -> None:
    back: list[float] = []
    awake = Awake(Timers(), back.append)
    awake.start(100.0)
    awake.check(100.0 + PULSE_S)
    awake.check(100.5 + PULSE_S)
    assert back == []
    awake.check(200.0)
    assert back == [200.0]
    awake.check(200.0 + AWAY_S)
    assert back == [200.0]
