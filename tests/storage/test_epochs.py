"""The history of leader epochs, as replicas will ask for it."""

from hypothesis import given, strategies as st

from tailrace.storage import checkpoint
from tailrace.storage.epochs import EpochHistory, EpochStart, decode_epochs, encode_epochs


def history(*starts: tuple[int, int]) -> EpochHistory:
    return EpochHistory([EpochStart(*start) for start in starts])


def test_epoch_begins_once() -> None:
    epochs = history()
    assert epochs.latest == -1
    assert epochs.begin(4, 10)
    assert not epochs.begin(4, 12)
    assert epochs.entries == [(4, 10)]


def test_epoch_without_a_batch_leaves_no_entry() -> None:
    epochs = history((1, 0), (2, 10))
    epochs.begin(5, 10)
    assert epochs.entries == [(1, 0), (5, 10)]


def test_end_of_an_epoch_is_where_the_next_began() -> None:
    epochs = history((1, 0), (3, 10), (4, 25))
    assert epochs.end_of(1, 40) == (1, 10)
    assert epochs.end_of(2, 40) == (1, 10)
    assert epochs.end_of(3, 40) == (3, 25)
    assert epochs.end_of(4, 40) == (4, 40)


def test_unknown_epochs_have_an_answer_too() -> None:
    epochs = history((3, 10))
    assert epochs.end_of(9, 40) == (3, 40)
    assert epochs.end_of(2, 40) == (-1, 10)
    assert history().end_of(2, 40) == (-1, 40)


def test_truncation_forgets_later_epochs() -> None:
    epochs = history((1, 0), (3, 10), (4, 25))
    assert epochs.truncate_to(10)
    assert not epochs.truncate_to(10)
    assert epochs.entries == [(1, 0), (3, 10)]


@given(steps=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20))
def test_file_round_trip(steps: list[tuple[int, int]]) -> None:
    epochs, epoch, offset = EpochHistory(), 0, 0
    for more_epoch, more_offset in steps:
        epoch, offset = epoch + more_epoch, offset + more_offset
        epochs.begin(epoch, offset)
    body = checkpoint.decode(checkpoint.Kind.EPOCHS, encode_epochs(epochs))
    assert body is not None
    found = decode_epochs(body)
    assert found is not None
    assert found.entries == epochs.entries
    assert decode_epochs(body[:-1]) is None
