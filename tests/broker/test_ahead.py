"""Zeros ahead are for logs that grow by little and little."""

from tailrace.broker.ahead import AGAIN_BYTES, FIRST_BYTES, SYNC_BYTES, Ahead


def grown(ahead: Ahead, syncs: int, size_bytes: int) -> bool:
    """Appended and synced so often, so much each time; whether zeros are wanted then."""
    for _ in range(syncs):
        ahead.appended(size_bytes)
        ahead.synced()
    return ahead.wanted()


def test_a_log_that_is_hardly_used_gets_none() -> None:
    assert not grown(Ahead(), 10, FIRST_BYTES // 11)


def test_one_that_grows_by_small_syncs_gets_some_and_more_when_half_are_used_up() -> None:
    ahead = Ahead()
    assert grown(ahead, 100, FIRST_BYTES // 100 + 1)
    assert ahead.wanted()  # until they are written
    ahead.written(4_000)
    assert not grown(ahead, 19, 100)
    assert grown(ahead, 1, 100)


def test_one_that_takes_large_batches_gets_none_until_they_are_small_again() -> None:
    ahead = Ahead()
    assert not grown(ahead, 50, SYNC_BYTES + 1)
    assert not grown(ahead, 10, FIRST_BYTES // 11)
    assert grown(ahead, 10, FIRST_BYTES // 11)


def test_where_none_could_be_written_they_are_wanted_again_much_later() -> None:
    ahead = Ahead()
    ahead.written(0)
    assert not grown(ahead, 1_000, AGAIN_BYTES // 1_001)
    assert grown(ahead, 2, AGAIN_BYTES // 1_001)
