"""The judge of the second scenario knows what may be gone from what may not."""

from tailrace.simulation.history import FinalLog, History
from tests.simulation.judge_keeping import (
    BRIEF,
    FLEETING,
    LATEST,
    PEOPLE,
    RETENTION_S,
    Deletion,
    Erasure,
    Life,
    Removals,
    Start,
    judge,
)


def acked(
    history: History, topic: str, offset: int, at: float = 0.0, key: bytes | None = None
) -> None:
    value = f"{topic}{offset}".encode()
    history.send("p", key, value, at).acked(at + 0.1, topic, 0, offset)


def found(
    history: History,
    there: dict[str, list[int]],
    removals: Removals | None = None,
    starts: list[Start] | None = None,
    ended_at: float = 1.0,
) -> list[str]:
    """The invariants that are broken, if these offsets are read at the end."""
    final: FinalLog = {
        (topic, 0): {
            send.offset: (send.key, send.value)
            for send in history.acked
            if (send.topic, send.offset) in [(topic, offset) for offset in offsets]
        }
        for topic, offsets in there.items()
    }
    violations = judge(history, final, removals or Removals(), starts or [], ended_at)
    return sorted({each.invariant for each in violations})


def test_young_records_stay_and_old_ones_may_go() -> None:
    history = History()
    for offset in range(3):
        acked(history, FLEETING, offset, at=float(offset))
    assert found(history, {FLEETING: [0, 1, 2]}) == []
    assert found(history, {FLEETING: [0, 2]}) == ["S2"]
    assert found(history, {FLEETING: [1, 2]}, starts=[(1 + RETENTION_S, 0, 1)]) == []
    assert found(history, {FLEETING: [2]}, starts=[(1 + RETENTION_S, 0, 2)]) == []
    assert found(history, {FLEETING: []}, starts=[(1 + RETENTION_S, 0, 3)]) == ["S29"]
    asked = Removals(deletions=[Deletion(0, 3)])
    assert found(history, {FLEETING: []}, asked, starts=[(2.0, 0, 3)]) == []
    assert found(history, {FLEETING: []}, ended_at=2 + RETENTION_S) == []


def test_the_last_record_of_a_key_stays() -> None:
    history = History()
    for offset, key in enumerate((b"a", b"b", b"a", None)):
        acked(history, LATEST, offset, key=key)
    assert found(history, {LATEST: [1, 2, 3]}) == []
    assert found(history, {LATEST: [0, 1, 3]}) == ["S26"]
    assert found(history, {LATEST: [1, 2]}) == ["S26"]


def test_what_was_erased_is_gone_and_nothing_else() -> None:
    history = History()
    acked(history, PEOPLE, 0, at=0.0, key=b"a")
    acked(history, PEOPLE, 1, at=0.0, key=b"b")
    acked(history, PEOPLE, 2, at=9.0, key=b"a")
    done = Removals(erasures=[Erasure(b"a", 5.0, 6.0)])
    assert found(history, {PEOPLE: [1, 2]}, done) == []
    assert found(history, {PEOPLE: [0, 1, 2]}, done) == ["E1"]
    assert found(history, {PEOPLE: [1]}, done) == ["S2"]
    assert found(history, {PEOPLE: [2]}, done) == ["S2"]
    unsure = Removals(erasures=[Erasure(b"a", 5.0)])
    assert found(history, {PEOPLE: [0, 1, 2]}, unsure) == []
    assert found(history, {PEOPLE: [1]}, unsure) == []


def test_a_topic_made_anew_is_empty() -> None:
    history = History()
    acked(history, BRIEF, 0, at=1.0)
    assert found(history, {BRIEF: []}, Removals(lives=[Life(5.0)])) == []
    assert found(history, {BRIEF: [0]}, Removals(lives=[Life(0.5)])) == []
    assert found(history, {BRIEF: [0]}, Removals(lives=[Life(5.0)])) == ["S30"]


def test_no_other_value_stands_where_one_was_acked() -> None:
    history = History()
    acked(history, PEOPLE, 0)
    history.send("p", None, b"other", 0.0).acked(0.1, LATEST, 0, 0)
    final: FinalLog = {(PEOPLE, 0): {0: (None, b"other")}, (LATEST, 0): {0: (None, b"other")}}
    invariants = {each.invariant for each in judge(history, final, Removals(), [], 1.0)}
    assert {"S2", "S15"} <= invariants
