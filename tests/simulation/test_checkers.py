"""Each checker finds the history it exists for, and accepts a good one."""

from tailrace.simulation.checkers import check
from tailrace.simulation.history import FinalLog, History, Read

TOPIC = "orders"


def good() -> History:
    """Two producers, five records, the third without an answer, the fourth refused."""
    history = History()
    for number, producer in enumerate(["a", "b", "a", "b", "a"]):
        send = history.send(producer, b"k", f"v{number}".encode(), at=number * 1.0)
        if number == 2:
            continue
        if number == 3:
            send.failed(3.5, maybe_written=False)
        else:
            send.acked(number + 0.5, TOPIC, 0, min(number, 3))
    for offset, number in enumerate([0, 1, 2, 4]):
        for reader in ("r", "final"):
            value = f"v{number}".encode()
            history.reads.append(Read(reader, TOPIC, 0, offset, b"k", value, 10.0))
    return history


def broken(history: History, final: FinalLog | None = None) -> set[str]:
    return {each.invariant for each in check(history, final or history.final("final"))}


def test_a_good_history_is_accepted() -> None:
    assert check(good(), good().final("final")) == []


def test_a_lost_ack_is_found() -> None:
    history = good()
    final = history.final("final")
    del final[TOPIC, 0][3]
    assert broken(history, final) == {"S2", "S12"}


def test_changed_bytes_are_found() -> None:
    history = good()
    history.reads[6] = Read("r", TOPIC, 0, 3, b"k", b"other", 10.0)
    assert broken(history) == {"S12"}
    history = good()
    history.reads = [read for read in history.reads if read.reader == "final"]
    final = history.final("final")
    final[TOPIC, 0][3] = b"other key", b"v4"
    assert "S2" in broken(history, final)


def test_a_record_written_twice_is_found() -> None:
    history = good()
    history.reads.append(Read("final", TOPIC, 0, 4, b"k", b"v4", 11.0))
    assert broken(history) == {"S15"}


def test_a_record_from_nowhere_is_found() -> None:
    history = good()
    history.reads.append(Read("final", TOPIC, 0, 4, b"k", b"ghost", 11.0))
    assert broken(history) == {"S15"}


def test_an_unanswered_send_may_appear_once_or_never() -> None:
    history = good()
    history.sends[2].failed(9.0, maybe_written=True)
    assert broken(history) == set()


def test_a_refused_send_that_was_written_is_found() -> None:
    history = good()
    history.sends[2].failed(9.0, maybe_written=False)
    assert broken(history) == {"C4"}


def test_a_skipped_offset_is_found() -> None:
    history = good()
    history.reads = [r for r in history.reads if (r.reader, r.offset) != ("r", 1)]
    assert broken(history) == {"S10"}


def test_disorder_in_real_time_is_found() -> None:
    history = good()
    history.sends[1].ended_at, history.sends[1].began_at = 9.9, 9.0
    assert broken(history) == {"S14"}


def test_disorder_of_one_producer_is_found() -> None:
    history = good()
    for send in history.sends:
        send.began_at, send.ended_at = 0.0, 10.0  # all at once: no order in real time
    history.sends[0].number = 9
    assert broken(history) == {"S16"}
