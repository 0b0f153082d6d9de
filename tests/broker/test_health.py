"""What the probes answer while a broker recovers."""

import pytest

from tailrace.broker.health import OPENING_BYTES, Health
from tailrace.storage.report import Progress


def test_progress_is_by_bytes_and_partitions() -> None:
    health = Health(partitions_total=4, partitions_done=1)
    assert health.progress == 0.25
    health.recovering += [
        Progress(planned_bytes=6 * OPENING_BYTES, read_bytes=3 * OPENING_BYTES),
        Progress(planned_bytes=2 * OPENING_BYTES, read_bytes=2 * OPENING_BYTES),
    ]
    assert health.recovery_bytes == (5 * OPENING_BYTES, 8 * OPENING_BYTES)
    assert health.progress == pytest.approx((5 + 1) / (8 + 4), abs=1e-4)
    health.recovered = True
    assert health.progress == 1.0


def test_an_estimate_that_was_wrong_never_leads_past_the_end() -> None:
    health = Health(partitions_total=2, partitions_done=2)
    health.recovering += [
        Progress(planned_bytes=10, read_bytes=99),  # more than was planned
        Progress(planned_bytes=10, read_bytes=1, done=True),  # less
    ]
    assert health.recovery_bytes == (20, 20)
    assert health.progress == 1.0


def test_partitions_are_told_as_they_are_opened_and_then_as_of_the_start() -> None:
    health = Health(partitions_total=1)
    assert health.checks()[0].detail == "0 of 1 partition opened"
    health.partitions_total = health.partitions_done = 2_000
    health.recovered = True
    assert health.checks()[0].detail == "2,000 partitions opened at the start"


def test_damage_is_degraded_and_ready_and_the_first_of_it_is_named() -> None:
    found: list[str] = []
    health = Health(recovered=True, listening=("127.0.0.1:7400",), damage=lambda: found)
    assert health.status == "ok"
    found += [f"orders[{number}] is damaged" for number in range(5)]
    code, document = health.readiness()
    assert (code, document["status"]) == (200, "degraded")
    disk = next(check for check in health.checks() if check.name == "disk")
    assert disk.detail.startswith("orders[0] is damaged; orders[1] is damaged; ")
    assert disk.detail.endswith("; and 2 more")


def test_a_cluster_without_its_store_is_degraded_while_the_lease_lasts() -> None:
    held = True
    health = Health(
        recovered=True,
        listening=("127.0.0.1:7400",),
        metadata="etcd",
        metadata_error="it does not answer",
        lease_held=lambda: held,
    )
    assert health.readiness()[1]["status"] == "degraded"
    held = False
    assert health.readiness()[1]["status"] == "fail"
    health.metadata_error = ""
    assert health.readiness()[1]["status"] == "fail"
    [metadata] = [check.detail for check in health.checks() if check.name == "metadata"]
    assert metadata == "the lease has ended: no writes are taken"


def test_a_broker_alone_without_its_store_is_not_ready() -> None:
    health = Health(
        recovered=True, listening=("127.0.0.1:7400",), metadata_error="its disk is full"
    )
    assert health.status == "fail"
