"""How much is copied at once, and when again."""

from tailrace.broker.catch_up import CatchUp


def test_an_answer_is_no_larger_than_the_rate_asks_for() -> None:
    most = 8 << 20
    assert CatchUp(None).step_bytes(most) == most
    assert CatchUp(65_536).step_bytes(most) == CatchUp(32 << 20).step_bytes(most) == 256 << 10
    assert CatchUp(256 << 20).step_bytes(most) == 2 << 20
    assert CatchUp(64 << 30).step_bytes(most) == most


def test_an_answer_that_goes_beyond_the_rate_is_paid_for_before_the_next() -> None:
    catch_up = CatchUp(1_000)
    assert catch_up.take(500, 10.0) == 0.5
    assert catch_up.take(500, 10.5) == 0.5
    assert CatchUp(None).take(1 << 30, 0.0) == 0.0
