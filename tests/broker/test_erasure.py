"""Erasures as values: what is stored of one, what is counted, which receipts stay."""

from tailrace.broker.erasure import (
    RECEIPTS_MAX,
    RECEIPTS_MS,
    Erasure,
    Share,
    fingerprint_of,
    outdated,
    shares_of,
)
from tailrace.protocol.messages import ReplicaErasure
from tailrace.storage.erasure import Target, digest_of

KEY = b"alice@example.org"
NOW_MS = 1_763_690_000_000


def erasure(number: int = 1, completed_at: int | None = None, **shares: Share) -> Erasure:
    return Erasure(
        erasure_id=number.to_bytes(16),
        topic_id=bytes(range(16)),
        topic="orders",
        requested_at=NOW_MS,
        keys=() if completed_at is not None else (digest_of(KEY),),
        shares={int(name[1:]): share for name, share in shares.items()},
        completed_at=completed_at,
    )


def test_what_is_stored_comes_back_and_holds_no_key() -> None:
    asked = erasure(p0=Share(90, (3, 7), records=5, counted_to=40), p2=Share(8, done=True))
    stored = asked.to_json()
    assert KEY not in stored
    assert Erasure.from_json(asked.key, stored, 0) == asked


def test_nothing_of_what_was_looked_for_is_kept_once_it_is_complete() -> None:
    asked = erasure(p0=Share(90, (3, 7), records=5, counted_to=40, done=True))
    complete = asked.completed(NOW_MS + 5)
    assert (complete.completed_at, complete.records) == (NOW_MS + 5, 5)
    assert (complete.keys, complete.shares[0].offsets) == ((), ())
    assert digest_of(KEY).sha256.hex().encode() not in complete.to_json()


def test_keys_concern_every_partition_and_records_their_own() -> None:
    ends = {0: 10, 1: 0, 2: 30}
    assert shares_of(ends, [], keys=True) == {0: Share(10), 1: Share(0, done=True), 2: Share(30)}
    records = [(2, 7), (2, 3), (2, 7)]
    assert shares_of(ends, records, keys=False) == {2: Share(30, (3, 7))}
    assert shares_of(ends, records, keys=True)[2] == Share(30, (3, 7))


def test_a_share_that_is_done_wants_nothing_more() -> None:
    asked = erasure(p0=Share(90, (3,), counted_to=40), p1=Share(90, done=True))
    assert asked.target(0) == Target((digest_of(KEY),), (3,), 90, 40)
    assert asked.target(1) is None
    assert asked.target(2) is None


def test_counting_goes_on_behind_what_was_counted() -> None:
    share = Share(90).counted(3, 20).counted(2, 50)
    assert (share.records, share.counted_to) == (5, 50)


def test_a_receipt_names_the_broker_and_whether_it_is_done() -> None:
    pending = erasure(p0=Share(90, records=2)).receipt("n1")
    assert (pending.records, pending.completed_at) == (2, None)
    assert pending.replicas == (ReplicaErasure("n1", False),)
    done = erasure(completed_at=NOW_MS, p0=Share(90, done=True)).receipt("n1")
    assert done.replicas == (ReplicaErasure("n1", True),)


def test_old_receipts_go_and_pending_ones_never() -> None:
    old, young, pending = erasure(1, NOW_MS), erasure(2, NOW_MS + 1), erasure(3)
    now_ms = NOW_MS + RECEIPTS_MS + 1
    assert outdated([old, young, pending], lambda stamp_ms: now_ms - stamp_ms) == [old]


def test_the_newest_receipts_stay() -> None:
    many = [erasure(number, NOW_MS + number) for number in range(RECEIPTS_MAX + 2)]
    gone = outdated([*many, erasure(9_999)], lambda stamp_ms: NOW_MS - stamp_ms)
    assert {one.completed_at for one in gone} == {NOW_MS, NOW_MS + 1}


def test_a_fingerprint_tells_requests_apart_whatever_their_order() -> None:
    a, b = digest_of(b"a"), digest_of(b"b")
    same = fingerprint_of([a, b], [(0, 1), (1, 2)])
    assert fingerprint_of([b, a, a], [(1, 2), (0, 1)]) == same
    others = [([a], [(0, 1), (1, 2)]), ([a, b], [(0, 1)]), ([a, b], [(0, 11), (1, 2)]), ([a], [])]
    assert same not in [fingerprint_of(keys, records) for keys, records in others]


def test_what_stays_of_a_request_is_too_little_to_confirm_a_guess() -> None:
    assert fingerprint_of([digest_of(KEY)], []) < 1 << 16
