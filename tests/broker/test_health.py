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
