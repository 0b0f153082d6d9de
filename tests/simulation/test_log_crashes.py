"""S32, S28, S10, S15: a crash at any disk operation leaves a log that opens again (``explore``)."""

import pytest

from tests.simulation.crash_model import Script
from tests.simulation.crash_scripts import SCRIPTS
from tests.simulation.explore import crash_points, explore

STATES = 2_400  # of all scripts together; `make proofs-storage` visits 200,000


@pytest.fixture(scope="module")
def points() -> dict[str, int]:
    """How many crash points each script has."""
    return {script.__name__: sum(1 for _ in crash_points(script)) for script in SCRIPTS}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_crash_leaves_a_prefix_with_all_that_was_synced(
    script: Script, points: dict[str, int]
) -> None:
    share = max(
        2 * points[script.__name__], STATES * points[script.__name__] // sum(points.values())
    )
    found = explore(script, share)
    print(f"{found.name}: {found.states} states of {found.points} crash points")
    assert found.points == points[script.__name__]
    assert not found.failures, found.first_failure
