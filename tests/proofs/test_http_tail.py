"""A small share of the proof of tails; ``python -m tests.proofs.http_tail`` is the whole of it."""

from pathlib import Path

import pytest

from tests.proofs import http_tail


@pytest.mark.slow
def test_tails_are_resumed_exactly_and_cost_a_broker_no_more_than_they_may(tmp_path: Path) -> None:
    plan = http_tail.Plan(
        cuts=10,
        batches=100,
        slow_readers=2,
        slow_seconds=2.0,
        large_batches=2,
        bombs=2,
        silent_readers=10,
        silent_seconds=0.5,
    )
    found = http_tail.prove(tmp_path, plan)
    assert found.records == 1_000
    assert found.dropped > 0
