"""Each anomaly is found in a history that has it, and a good history has none."""

from dataclasses import replace

import pytest

from tailrace.simulation.kafka_history import Finding, Op, check, unseen_counts

K = ("orders", 0)
OTHER = ("orders", 1)


def sent(process: str, number: int, *offsets: int | None, at: float | None = None) -> Op:
    """Records ``v<offset>`` (``v?`` and the number where nobody told), acked a second later."""
    began_at = float(number) if at is None else at
    records = tuple(
        (K, f"v{number}?".encode() if offset is None else f"v{offset}".encode(), offset)
        for offset in offsets
    )
    return Op(process, "send", "ok", began_at, began_at + 0.5, sent=records)


def polled(process: str, at: float, *offsets: int) -> Op:
    records = tuple((K, offset, f"v{offset}".encode()) for offset in offsets)
    return Op(process, "poll", "ok", at, at + 0.1, polled=records)


def good() -> list[Op]:
    """Two producers, six records, one refused, one without an answer; two readers."""
    return [
        sent("a", 0, 0, 1),
        sent("b", 1, 2),
        sent("a", 2, 3),
        Op("b", "send", "fail", 3.0, 3.5, sent=((K, b"refused", None),)),
        Op("b", "send", "info", 4.0, None, sent=((K, b"v4", None),)),
        sent("a", 5, 5),
        Op("r", "assign", "ok", 6.0, 6.0),
        polled("r", 7, 0, 1, 2),
        polled("r", 8, 3, 4, 5),
        Op("s", "subscribe", "ok", 6.0, 6.0),
        polled("s", 7, 0, 1),
        polled("s", 8, 4, 5),  # a subscription may skip
        polled("s", 9, 1, 2, 3),  # and go back
    ]


def kinds(ops: list[Op], *, drained: bool = True) -> set[str]:
    return {finding.kind for finding in check(ops, drained=drained)}


def test_a_good_history_has_no_findings() -> None:
    assert check(good(), drained=True) == []


def test_an_offset_with_two_records_is_found() -> None:
    ops = good()
    ops.append(Op("t", "poll", "ok", 10, 10, polled=((K, 3, b"another"),)))
    assert kinds(ops) == {"inconsistent-offsets"}


@pytest.mark.parametrize("where", [(K, 6), (OTHER, 0)])
def test_a_record_in_two_places_is_found(where: tuple[tuple[str, int], int]) -> None:
    ops = good()
    key, offset = where
    ops.append(Op("t", "poll", "ok", 10, 10, polled=((key, offset, b"v3"),)))
    assert "duplicate" in kinds(ops)


def test_a_lost_record_is_found_only_below_what_was_read() -> None:
    ops = [op for op in good() if op.what == "send"]
    ops += [polled("r", 8, 0, 1, 2, 4, 5)]
    assert kinds(ops, drained=False) == {"lost-write", "int-poll-skip"}
    ops[-1] = polled("r", 8, 0, 1, 2)
    assert kinds(ops, drained=False) == set(), "unseen, which is no loss"
    assert check(ops, drained=True) == [
        Finding("unseen", "2 acked records of ('orders', 0) were never read")
    ]
    assert unseen_counts(ops, {K: {0, 1, 2}}) == {K: 2}


def test_a_refused_record_that_was_read_is_found() -> None:
    ops = good()
    ops.append(Op("t", "poll", "ok", 10, 10, polled=((K, 6, b"refused"),)))
    assert kinds(ops) == {"aborted-read"}


def test_a_skip_between_polls_is_found_for_an_assignment() -> None:
    ops = good()
    ops[8] = polled("r", 8, 4, 5)
    assert kinds(ops) == {"poll-skip"}
    ops[8] = polled("r", 8, 2, 3, 4, 5)
    assert kinds(ops) == {"nonmonotonic-poll"}


def test_a_new_assignment_is_a_new_beginning() -> None:
    ops = good()
    ops += [Op("r", "assign", "ok", 9, 9), polled("r", 10, 0, 1), polled("r", 11, 3)]
    assert kinds(ops) == {"poll-skip"}
    assert kinds(ops[:-1]) == set()


def test_disorder_within_a_poll_is_found_for_everybody() -> None:
    ops = good()
    ops[-1] = polled("s", 9, 1, 3)
    assert kinds(ops) == {"int-poll-skip"}
    ops[-1] = polled("s", 9, 3, 1)
    assert kinds(ops) == {"int-nonmonotonic-poll"}


def test_offsets_without_records_are_no_skips() -> None:
    ops = [sent("a", 0, 0), sent("a", 1, 9), polled("r", 2, 0), polled("r", 3, 9)]
    assert kinds(ops) == set()


def test_disorder_of_one_producer_is_found() -> None:
    ops = good()
    ops[0], ops[2] = replace(ops[0], sent=ops[2].sent), replace(ops[2], sent=ops[0].sent)
    assert kinds(ops) == {"nonmonotonic-send", "realtime-order"}
    ops = good()
    ops[0] = replace(ops[0], sent=ops[0].sent[::-1])
    assert kinds(ops) == {"int-nonmonotonic-send"}


def test_sends_that_overlap_have_no_order() -> None:
    ops = [sent("a", 0, 1, at=0.0), sent("a", 1, 0, at=0.2), polled("r", 2, 0, 1)]
    assert kinds(ops) == set()


def test_disorder_in_real_time_is_found_also_of_what_had_no_answer() -> None:
    ops = good()
    ops[4] = replace(ops[4], began_at=9.0)
    assert kinds(ops) == {"realtime-order"}
