"""Why a record can be read or not: from facts to verdict, sentences and a command."""

from dataclasses import replace

import pytest

from tailrace.broker.explain import Damage, MemberFacts, MoveCause, Reading, Standing, Uncommitted
from tailrace.broker.explain_record import ErasureFacts, RecordFacts, RecordFound, explain_record

FOUND = RecordFound(1_763_690_000_000, 331, 100, 199)
KNOWN = RecordFacts(
    *("orders", 2, 150, 100, 200, 210),
    found=FOUND,
    retention="7d",
)
STANDING = Standing(
    *("orders", 2, 120, 3.0, 100, 200, 80, 5.0, 6.0, "ok", None),
    owner=None,
    damaged=False,
    retention="7d",
)


def judged(known: RecordFacts) -> tuple[str, str | None]:
    found = explain_record(known)
    return found.verdict, found.next


def test_a_record_that_is_there() -> None:
    found = explain_record(KNOWN)
    assert (found.target, found.kind, found.verdict) == ("orders[2]@150", "record", "readable")
    assert found.next == "tailrace cat orders:2:150"
    assert {fact.name: fact.value for fact in found.facts} == {
        **{"offset": 150, "log_start": 100, "high_watermark": 200, "log_end": 210},
        **{"append_time": 1_763_690_000_000, "batch_first_offset": 100, "batch_last_offset": 199},
        **{"batch_size_bytes": 331, "cleanup": "delete", "retention": "7d"},
    }


def test_below_beyond_and_between() -> None:
    on = "tailrace consume orders -p 2 -o 100 -n 1 -e"
    assert judged(replace(KNOWN, offset=99, found=None)) == ("expired", on)
    last = "tailrace tail orders -p 2 -n 1"
    assert judged(replace(KNOWN, offset=210, found=None)) == ("beyond_end", last)
    doctor = "tailrace doctor"
    assert judged(replace(KNOWN, offset=209, found=None)) == ("not_committed", doctor)
    assert judged(replace(KNOWN, offset=200, found=None)) == ("not_committed", doctor)
    assert judged(replace(KNOWN, offset=199)) == ("readable", "tailrace cat orders:2:199")


def test_an_offline_partition_tells_no_offsets() -> None:
    found = explain_record(replace(KNOWN, offline="T033: orders[2] is offline: disk gone"))
    assert (found.verdict, found.next) == ("offline", "tailrace cluster health")
    assert "log_start" not in {fact.name for fact in found.facts}


@pytest.mark.parametrize(
    ("moved", "retention", "said"),
    [
        ("expired", "7d", "Retention (7d) removed it."),
        ("deleted", "7d", "delete-records moved the start past it."),
        ("expired_or_dropped", "7d", "or it was dropped for want of room"),
        ("expired_or_dropped", None, "It was dropped for want of room"),
        (None, "7d", "Retention (7d) or delete-records removed it; which of them is not kept"),
        (None, None, "As the topic is set now (no retention) only delete-records removes"),
        ("expired", None, "Retention removed it; the topic had one then."),
    ],
)
def test_what_moved_the_start_is_told_as_far_as_it_is_known(
    moved: MoveCause | None, retention: str | None, said: str
) -> None:
    known = replace(KNOWN, offset=7, found=None, retention=retention, moved=moved)
    assert said in explain_record(known).summary


@pytest.mark.parametrize(
    ("retention", "said"),
    [
        (None, "gone. It was dropped for want of room (on_full = drop_oldest), or delete-records"),
        ("7d", "Retention (7d) removed it, or it was dropped for want of room (on_full = drop_"),
    ],
)
def test_a_topic_that_drops_may_have_dropped_it_before_the_restart(
    retention: str | None, said: str
) -> None:
    known = replace(KNOWN, offset=7, found=None, retention=retention, may_drop=True)
    found = explain_record(known).summary
    assert said in found
    assert found.endswith("which of them is not kept over a restart of the broker.")


def test_a_tail_waits_for_its_sync() -> None:
    known = replace(KNOWN, offset=205, found=None, uncommitted=Uncommitted(2, 1.25))
    found = explain_record(known).summary
    assert "a sync has been under way for 1.2 s, and 2 batches of producers wait for it." in found
    known = replace(known, uncommitted=Uncommitted(0, None))
    assert explain_record(known).summary.endswith("no sync is under way.")


# ── gaps ─────────────────────────────────────────────────────────────────────────────────────

GAP = replace(KNOWN, found=None)
BY_KEY = ErasureFacts("e-key", 3, pending=False, names=False, fits=False)
BY_PLACE = ErasureFacts("e-place", 1, pending=True, names=True, fits=False)
ALONE = ErasureFacts("e-alone", 1, pending=False, names=False, fits=True)


def test_a_gap_in_a_topic_that_was_never_compacted_is_an_erasure() -> None:
    found = explain_record(GAP)
    assert found.verdict == "erased"
    assert "Its receipt is not kept any more" in found.summary
    found = explain_record(replace(GAP, erasures=(BY_KEY,)))
    assert "That was by erasure e-key; receipts keep neither keys" in found.summary
    found = explain_record(replace(GAP, erasures=(BY_KEY, ALONE)))
    assert "by erasure e-alone: its fingerprint (16 bits)" in found.summary
    found = explain_record(replace(GAP, erasures=(ALONE, BY_PLACE)))
    assert found.summary == "The record was erased: erasure e-place names it."


def test_a_gap_in_a_compacted_topic_is_compaction_unless_an_erasure_names_it() -> None:
    compacted = replace(GAP, ever_compacted=True, compacted_below=180, cleanup="compact")
    found = explain_record(compacted)
    assert (found.verdict, found.next) == (
        "compacted",
        "tailrace consume orders -p 2 -o 151 -n 1 -e",
    )
    assert "erased" not in found.summary
    found = explain_record(replace(compacted, erasures=(BY_KEY,)))
    assert (found.verdict, "It may have been erased instead: e-key" in found.summary) == (
        "compacted",
        True,
    )
    assert judged(replace(compacted, erasures=(BY_PLACE,)))[0] == "erased"


def test_a_gap_that_compaction_has_not_come_to_is_rather_an_erasure() -> None:
    ahead = replace(GAP, ever_compacted=True, compacted_below=GAP.offset, cleanup="compact")
    found = explain_record(replace(ahead, erasures=(BY_KEY,)))
    assert found.verdict == "erased"
    assert "erased by erasure e-key, unless a compaction that has not come to" in found.summary
    assert judged(ahead)[0] == "compacted"  # by one that was cut short: nothing else is known


def test_behind_the_last_gap_there_is_nothing_to_read_on_at() -> None:
    assert judged(replace(GAP, offset=199)) == ("erased", "tailrace tail orders -p 2 -n 1")


def test_an_erasure_under_way_is_told_of_a_record_that_is_still_there() -> None:
    found = explain_record(replace(KNOWN, erasures=(BY_PLACE,)))
    assert found.verdict == "readable"
    assert "Erasure e-place names it and is under way" in found.summary


# ── damage ───────────────────────────────────────────────────────────────────────────────────


def test_damage_names_file_and_position_and_leads_behind_it() -> None:
    damage = Damage("/data/00.log", 353, 140, 160, "the payload checksum does not match")
    found = explain_record(replace(GAP, damage=damage))
    assert (found.verdict, found.next) == (
        "damaged",
        "tailrace consume orders -p 2 -o 160 -n 1 -e",
    )
    assert "offsets 140 to 159, which is not served (T035): /data/00.log at byte 353" in (
        found.summary
    )
    stuck = replace(STANDING, committed=140, damaged=True)
    known = replace(GAP, damage=damage, reading=Reading("billing", stuck))
    reset = "tailrace group reset billing --to 160 --partition orders:2"
    assert judged(known) == ("damaged", reset)


def test_a_batch_that_cannot_be_decoded() -> None:
    found = explain_record(replace(GAP, undecodable="payload format 0 is not columns"))
    assert found.verdict == "damaged"
    assert "cannot be decoded: payload format 0 is not columns" in found.summary
    found = explain_record(replace(GAP, unreadable="Input/output error"))
    assert (found.verdict, found.next) == ("damaged", "tailrace doctor")


# ── for a group ──────────────────────────────────────────────────────────────────────────────


def test_a_group_waits_before_a_record_or_is_past_it() -> None:
    found = explain_record(replace(KNOWN, reading=Reading("billing", STANDING)))
    assert (found.verdict, found.next) == ("waiting", "tailrace explain -g billing")
    assert "Group 'billing' is at 120: 30 offsets come first." in found.summary
    known = replace(KNOWN, offset=119, reading=Reading("billing", STANDING))
    assert judged(known)[0] == "committed"
    known = replace(KNOWN, offset=120, reading=Reading("billing", STANDING))
    assert "is at 120: it is the next one." in explain_record(known).summary
    nothing = replace(STANDING, committed=None, committed_s=None)
    known = replace(KNOWN, offset=100, reading=Reading("billing", nothing))
    assert "has committed nothing here: it is the next one." in explain_record(known).summary


def test_a_group_that_does_not_read_the_topic() -> None:
    found = explain_record(replace(KNOWN, reading=Reading("billing", None)))
    assert found.verdict == "readable"
    assert "Group 'billing' does not read orders" in found.summary


def test_a_group_whose_records_are_gone_is_reset_when_it_has_no_members() -> None:
    lost = replace(STANDING, committed=20)
    known = replace(KNOWN, offset=20, found=None, reading=Reading("it's", lost))
    verdict, command = judged(known)
    assert (verdict, command) == (
        "expired",
        "tailrace group reset 'it'\"'\"'s' --to start --partition orders:2",
    )
    owned = replace(lost, owner=MemberFacts("app-1", "10.0.0.7", 0.2, 1))
    known = replace(known, reading=Reading("billing", owned))
    assert judged(known)[1] == "tailrace group describe billing"
    assert "Stop its members first." in explain_record(known).summary


def test_a_name_that_begins_with_a_dash_stands_behind_two() -> None:
    known = replace(KNOWN, topic="-x")
    assert judged(known)[1] == "tailrace cat -- -x:2:150"
    known = replace(KNOWN, topic="-x", offset=300)
    assert judged(known)[1] == "tailrace tail -p 2 -n 1 -- -x"
