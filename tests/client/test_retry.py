"""The pauses between attempts."""

from random import Random

from tailrace.client.retry import Backoff, reconnecting


def test_pauses_grow_from_a_tenth_of_a_second_to_five_with_jitter() -> None:
    for seed in range(50):
        backoff = Backoff(Random(seed))
        pauses = [backoff.next() for _ in range(12)]
        assert 0.1 <= pauses[0] <= 0.2
        assert 0.2 <= pauses[1] <= 0.4
        assert all(2.5 <= pause <= 5.0 for pause in pauses[5:])
        backoff.reset()
        assert backoff.next() <= 0.2


def test_another_leader_is_looked_for_at_once_and_then_ever_more_rarely() -> None:
    for seed in range(50):
        backoff = Backoff(Random(seed))
        pauses = [backoff.next_leader() for _ in range(12)]
        assert 0.015 <= pauses[0] <= 0.03
        assert all(0.25 <= pause <= 0.5 for pause in pauses[5:])


def test_the_same_seed_gives_the_same_pauses() -> None:
    one, two = Backoff(Random(7)), Backoff(Random(7))
    assert [one.next() for _ in range(5)] == [two.next() for _ in range(5)]


def test_the_line_of_an_attempt() -> None:
    assert reconnecting("127.0.0.1:7400", "connection refused", 2, 0.4) == (
        "reconnecting 127.0.0.1:7400 (connection refused), attempt 2, next in 0.4 s"
    )
