"""The proofs of the cluster fail on figures that break their limits: made-up ones."""

from dataclasses import replace

import pytest

from tests.proofs import cluster_outage, cluster_speed, etcd_probe
from tests.proofs.cluster_faults import Fault, report, table
from tests.proofs.cluster_load import Seen, Sent
from tests.proofs.cluster_outage import GRACEFUL_S_MAX, KILLED_S_MAX, Played
from tests.proofs.cluster_speed import Standing
from tests.proofs.etcd_probe import OK, Outage, Probe
from tests.proofs.figures import Figure

OUTAGE = Outage(began=100.0, ended=160.0, session_s=6.0, resume_s_max=8.0)


def acked(*times: float, partition: int = 0) -> list[Sent]:
    """Records that were acknowledged at these times."""
    return [Sent(0, number, partition, at, at, number) for number, at in enumerate(times)]


def broken(figures: list[Figure]) -> list[str]:
    return [figure.what for figure in figures if not figure.ok]


# ── brokers that die or are stopped ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [KILLED_S_MAX, GRACEFUL_S_MAX])
def test_a_silence_of_one_partition_that_is_too_long_fails(limit: float) -> None:
    played = Played(silence_s_max=limit)
    steady = acked(100.0, 100.1, 100.2, partition=1)
    within = Seen([*steady, *acked(100.0, 100.0 + limit)])
    assert not broken(cluster_outage.judged(played, within))
    beyond = Seen([*steady, *acked(100.0, 100.01 + limit)])
    assert broken(cluster_outage.judged(played, beyond)) == ["longest silence of a partition"]


def test_one_send_that_failed_fails(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen([*acked(100.0, 100.1), Sent(0, 2, 0, 100.2, 220.2, error="T020: not acknowledged")])
    assert broken(cluster_outage.judged(Played(), seen)) == ["sends that failed"]
    assert report([], seen) == ["sends that failed: 1, at most 0: NOT OK"]
    assert "T020" in capsys.readouterr().out
    assert report([], Seen(acked(100.0))) == []


# ── etcd that stands still ───────────────────────────────────────────────────────────────────


def probes(kind: str) -> list[Probe]:
    """As they should be: good until 105, refused until etcd is back at 160, good from 162 on."""
    codes = [OK if at < 105 or at > 161 else "T100" for at in range(95, 170)]
    return [Probe(kind, at, at + 0.1, code) for at, code in enumerate(codes, 95)]


GOOD = [*acked(99.0, 105.0, 161.2), *acked(99.1, 104.9, 161.5, partition=1)]
TOLD = [*probes("write"), *probes("read")]


def test_an_outage_as_it_was_promised_is_good() -> None:
    assert not broken(etcd_probe.judged(OUTAGE, Seen(GOOD), TOLD))


@pytest.mark.parametrize(
    ("times", "what"),
    [
        ((99.0, 102.9, 161.0), "acks of producers go on without etcd everywhere"),
        ((99.0, 106.1, 161.0), "acks of producers go on without etcd anywhere"),
        ((99.0, 105.0, 168.1), "acks of producers are back everywhere after etcd is"),
        ((99.0, 105.0), "acks of producers are back everywhere after etcd is"),
    ],
)
def test_acks_that_end_early_or_late_or_do_not_come_back_fail(
    times: tuple[float, ...], what: str
) -> None:
    seen = Seen([*GOOD, *acked(*times, partition=2)])
    assert broken(etcd_probe.judged(OUTAGE, seen, TOLD)) == [what]


@pytest.mark.parametrize("kind", ["write", "read"])
def test_another_error_than_that_of_the_catalogue_fails(kind: str) -> None:
    told = [
        replace(one, code="T034") if one.kind == kind and one.asked_at == 130 else one
        for one in TOLD
    ]
    assert broken(etcd_probe.judged(OUTAGE, Seen(GOOD), told)) == [f"{kind}s told otherwise (T034)"]


@pytest.mark.parametrize("kind", ["write", "read"])
def test_an_answer_after_the_lease_fails(kind: str) -> None:
    told = [
        replace(one, code=OK) if one.kind == kind and one.asked_at == 130 else one for one in TOLD
    ]
    assert broken(etcd_probe.judged(OUTAGE, Seen(GOOD), told)) == [
        f"{kind}s over HTTP go on without etcd anywhere",
        f"{kind}s told otherwise (ok)",
    ]


def test_probes_that_were_never_answered_prove_nothing() -> None:
    wrong = broken(etcd_probe.judged(OUTAGE, Seen(GOOD), probes("write")))
    assert wrong == [
        "reads over HTTP go on without etcd everywhere",
        "reads over HTTP are back everywhere after etcd is",
        "reads refused with T100 while leases are over",
    ]


# ── faults of a network ──────────────────────────────────────────────────────────────────────


def test_what_is_told_of_a_fault_is_the_longest_that_began_with_it() -> None:
    faults = [Fault("killed", 100.0, 110.0), Fault("killed", 200.0, 210.0), Fault("cut", 300, 310)]
    silences = [(0, 100.2, 6.0), (1, 100.1, 7.0), (0, 205.0, 1.0), (0, 250.0, 90.0)]
    leaderless = [(0, 99.5, 5.0), (1, 314.0, 0.5)]
    assert table(faults, silences, leaderless)[2:] == [
        "| cut | 1 | 0.00 s | 0.00 s | 0.00 s | 0.50 s | 0.50 s | 0.50 s |",
        "| killed | 2 | 1.00 s | 7.00 s | 7.00 s | 0.00 s | 5.00 s | 5.00 s |",
        "| all | 3 | 1.00 s | 7.00 s | 7.00 s | 0.50 s | 5.00 s | 5.00 s |",
    ]


# ── many partitions, and a broker that fills its disk again ──────────────────────────────────


def test_leaders_that_move_slowly_and_brokers_that_are_busy_fail() -> None:
    assert not broken(cluster_speed.of_scale(667, 15.0, {"n1": 1.3, "n2": 10.0}))
    assert broken(cluster_speed.of_scale(667, 15.1, {"n1": 1.3, "n2": 10.1})) == [
        "processor of n2 while idle",
        "all of them moved after kill -9",
    ]
    assert broken(cluster_speed.of_scale(0, 1.0, {})) == ["leaders of the broker that was killed"]


def test_sends_beside_a_refill_are_judged_over_all_rounds() -> None:
    calm = [10.0] * 100
    assert not broken(cluster_speed.of_refill([calm, calm], [[19.0] * 100, [5.0] * 100]))
    slow = cluster_speed.of_refill([calm, calm], [[20.1] * 100, [5.0] * 100])
    assert broken(slow) == ["the one over the other"]


def test_a_broker_with_an_empty_disk_must_not_count_before_it_is_filled() -> None:
    whole = {0: 1_000, 1: 1_000}
    held = {0: 1_000, 1: 100}
    one, both = frozenset({0}), frozenset({0, 1})
    assert not cluster_speed.early(Standing(one, one, 2), held, whole)
    assert cluster_speed.early(Standing(both, frozenset(), 2), held, whole) == [
        "in sync for partition 1 with 100 of 1,000 bytes"
    ]
    assert cluster_speed.early(Standing(one, both, 2), held, whole) == [
        "leads partition 1, and is not in sync for it"
    ]
    assert cluster_speed.early(Standing(one, frozenset(), 2), {}, whole)
