"""Who a partition is read from, by a clock in the test's hand."""

from tailrace.client.served_by import BARRED_S, NEAR_S, ServedBy


def test_only_another_leader_or_epoch_is_a_move() -> None:
    served = ServedBy()
    assert served.broker(0.0) is None
    assert served.led_by("n1", 3)
    assert not served.led_by("n1", 3)
    served.forget()
    assert served.broker(0.0) is None
    assert not served.led_by("n1", 3), "the same one again"
    assert served.led_by("n1", 4), "a new epoch of the same one"
    assert served.led_by("n2", 5)
    assert not served.led_by("n1", 4), "old news"
    assert served.broker(0.0) == "n2"
    assert not served.led_by(None, 5)
    assert served.broker(0.0) is None


def test_follower_is_asked_for_a_while_then_the_leader_again() -> None:
    served = ServedBy()
    served.led_by("n1", 1)
    served.go_near("n2", now=100.0)
    assert served.broker(100.0 + NEAR_S - 0.1) == "n2"
    assert served.broker(100.0 + NEAR_S) == "n1"
    assert served.tells_rack(100.0 + NEAR_S), "who may name it again"


def test_follower_that_failed_is_not_named_again_for_a_while() -> None:
    served = ServedBy()
    served.led_by("n1", 1)
    served.go_near("n2", now=0.0)
    served.leave_near(now=1.0)
    assert served.broker(1.0) == "n1"
    assert not served.tells_rack(1.0)
    assert served.tells_rack(1.0 + BARRED_S)


def test_new_leader_is_asked_itself_first() -> None:
    served = ServedBy()
    served.led_by("n1", 1)
    served.go_near("n2", now=0.0)
    served.led_by("n3", 2)
    assert served.broker(0.0) == "n3"
