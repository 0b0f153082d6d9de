"""A sample of the kills and errors of ``syscalls``; `make proofs-storage` goes through all."""

import os
from pathlib import Path

import pytest

from tests.proofs.strace import missing
from tests.proofs.syscalls import EIO, ENOSPC, KILL, Baseline, baselines, prove

POINTS = {KILL: 40, EIO: 20, ENOSPC: 20}
HIT_SHARE = 0.7  # of the points: what one start does varies a little

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Baseline, Baseline]:
    """What there is to hit. CI installs strace; elsewhere its absence skips these."""
    reason = missing()
    if reason:
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)
    return baselines(tmp_path_factory.mktemp("watched"), erasing=False)


@pytest.mark.parametrize("fault", POINTS)
def test_a_broker_killed_or_failing_at_any_system_call_loses_nothing_it_acknowledged(
    tmp_path: Path, watched: tuple[Baseline, Baseline], fault: str
) -> None:
    result = prove({fault: POINTS[fault]}, tmp_path, watched)[fault]
    print(f"{result.tried} points, {result.hits.total()} hit, {result.exits}")
    assert result.tried == POINTS[fault]
    assert not result.failures, "\n".join(result.failures)
    assert result.hits.total() >= HIT_SHARE * result.tried
