"""Erasures as values: what is stored of one, what is counted, which receipts stay."""

from tailrace.broker.erasure import (
    RECEIPTS_MAX,
    RECEIPTS_MS,
    Erasure,
    Progress,
    Replicas,
    Share,
    fingerprint_of,
    outdated,
    shares_of,
)
from tailrace.protocol.messages import ReplicaErasure
from tailrace.storage.erasure import KeyDigest, Target, digest_of

KEY = b"alice@example.org"
NOW_MS = 1_763_690_000_000
DONE = Progress(done=True)


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
    asked = erasure(
        p0=Share(90, (3, 7), {"n1": Progress(5, 40), "n2": Progress()}),
        p2=Share(8, by={"n1": DONE}),
    )
    stored = asked.to_json()
    assert KEY not in stored
    assert Erasure.from_json(asked.key, stored, 0) == asked


def test_nothing_of_what_was_looked_for_is_kept_once_it_is_complete() -> None:
    asked = erasure(p0=Share(90, (3, 7), {"n1": Progress(5, 40, True)}))
    complete = asked.completed(NOW_MS + 5, ["n1"])
    assert (complete.completed_at, complete.records) == (NOW_MS + 5, 5)
    assert (complete.keys, complete.shares[0].offsets) == ((), ())
    assert digest_of(KEY).sha256.hex().encode() not in complete.to_json()


def test_keys_concern_every_partition_and_records_their_own() -> None:
    ends = {0: 10, 1: 0, 2: 30}
    assert shares_of(ends, [], keys=True) == {0: Share(10), 1: Share(0), 2: Share(30)}
    records = [(2, 7), (2, 3), (2, 7)]
    assert shares_of(ends, records, keys=False) == {2: Share(30, (3, 7))}
    assert shares_of(ends, records, keys=True)[2] == Share(30, (3, 7))


def test_a_share_that_is_done_wants_nothing_more() -> None:
    asked = erasure(
        p0=Share(90, (3,), {"n1": Progress(0, 40)}), p1=Share(90, by={"n1": DONE}), p3=Share(0)
    )
    assert asked.target(0, "n1") == Target((digest_of(KEY),), (3,), 90, 40)
    assert asked.target(0, "n2") == Target((digest_of(KEY),), (3,), 90, 0)
    assert asked.target(1, "n1") is None
    assert asked.target(1, "n2") is not None
    assert asked.target(2, "n1") is None
    assert asked.target(3, "n1") is None  # there was nothing in it


def test_counting_goes_on_behind_what_was_counted() -> None:
    made = Progress().counted(3, 20).counted(2, 50)
    assert (made.records, made.counted_to) == (5, 50)


def test_replicas_count_the_same_records() -> None:
    asked = erasure(
        p0=Share(90, by={"n1": Progress(5, 90), "n2": Progress(3, 40)}),
        p1=Share(90, by={"n2": Progress(4, 90)}),
    )
    assert asked.records == 9


def on(*brokers: str) -> Replicas:
    return lambda topic_id, number: brokers


def test_a_receipt_names_the_brokers_and_who_is_done() -> None:
    asked = erasure(
        p0=Share(90, by={"n1": Progress(2, 90, True), "n2": DONE}),
        p1=Share(90, by={"n1": DONE}),
    )
    pending = asked.receipt(on("n2", "n1", "n3"))
    assert (pending.records, pending.completed_at) == (2, None)
    assert pending.replicas == (
        *(ReplicaErasure("n1", True), ReplicaErasure("n2", False), ReplicaErasure("n3", False)),
    )
    done = asked.completed(NOW_MS, ["n2", "n1"]).receipt(on("n3"))
    assert done.replicas == (ReplicaErasure("n1", True), ReplicaErasure("n2", True))


def test_only_those_who_hold_a_copy_now_have_to_be_done() -> None:
    asked = erasure(p0=Share(90, by={"n1": DONE, "n9": Progress()}))
    assert asked.pending(on("n1")) == {"n1": False}
    assert asked.pending(on("n1", "n4")) == {"n1": False, "n4": True}


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
    others: list[tuple[list[KeyDigest], list[tuple[int, int]]]] = [
        *(([a], [(0, 1), (1, 2)]), ([a, b], [(0, 1)]), ([a, b], [(0, 11), (1, 2)]), ([a], [])),
    ]
    assert same not in [fingerprint_of(keys, records) for keys, records in others]


def test_what_stays_of_a_request_is_too_little_to_confirm_a_guess() -> None:
    assert fingerprint_of([digest_of(KEY)], []) < 1 << 16
