"""A sample of the kills and errors of ``syscalls``; `make proofs-storage` goes through all."""

import os
from pathlib import Path

import pytest

from tests.proofs.strace import missing
from tests.proofs.syscalls import prove

KILLS = 40
ERRORS = 20  # each: EIO and ENOSPC
HIT_SHARE = 0.7  # of the points: what one start does varies a little

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def strace() -> None:
    """CI installs it; elsewhere its absence skips these."""
    reason = missing()
    if reason:
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)


def test_a_broker_killed_or_failing_at_any_system_call_loses_nothing_it_acknowledged(
    tmp_path: Path,
) -> None:
    found = prove(KILLS, ERRORS, tmp_path)
    for fault, result in found.items():
        print(f"{fault}: {result.tried} points, {result.hits.total()} hit, {result.exits}")
    failures = [failure for result in found.values() for failure in result.failures]
    assert not failures, "\n".join(failures)
    assert all(one.hits.total() >= HIT_SHARE * one.tried for one in found.values())
