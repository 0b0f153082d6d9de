"""A test that cannot fail proves nothing: each planted bug is found by those who should (7.6).

Those of a cluster are searched for by ``python -m tests.simulation.measure`` (`make sim`), as a
seed of it takes seconds; the rules they break have mutants of their own in ``tests/model``.
"""

import pytest

from tests.simulation.crash_scripts import SCRIPTS, epochs, stopped
from tests.simulation.log_machine import examples_to_failure
from tests.simulation.measure import states_to_failure
from tests.simulation.planted import BUGS, Finder, plant
from tests.simulation.sweep import GROUPS, KEEPING, STREAMS, first_caught

EXAMPLES = 60
SEEDS = 50
# Where to begin with a bug that not every seed meets (``measure`` counts from 0), and with one that
# few scripts do: a minute saved.
FIRST_SEED = {
    (STREAMS, "retry-after-eio"): 2,
    (STREAMS, "cut-at-first-bad-checksum"): 2,
    (STREAMS, "producers-not-restored"): 2,
    (STREAMS, "no-sequence-check"): 2,
    (GROUPS, "commit-before-append"): 2,
    (GROUPS, "offsets-while-loading"): 23,
}
FIRST_SCRIPT = {"rename-before-fsync": epochs, "clean-stop-believes-the-mark": stopped}

pytestmark = pytest.mark.slow


def found_by(finder: Finder) -> list[str]:
    return [name for name, bug in BUGS.items() if finder in bug.finders]


def test_every_bug_has_a_finder() -> None:
    assert all(bug.finders for bug in BUGS.values())


@pytest.mark.parametrize("bug", found_by("scripts"))
def test_crash_exploration_finds(bug: str) -> None:
    first = SCRIPTS.index(FIRST_SCRIPT.get(bug, SCRIPTS[0]))
    found = states_to_failure(bug, (*SCRIPTS[first:], *SCRIPTS[:first]))
    assert found is not None, f"{bug}: every state is as it should be"
    print(f"{bug}: {found[0]} states, {found[1]}")


@pytest.mark.parametrize("bug", found_by("machine"))
def test_the_state_machine_finds(bug: str) -> None:
    with plant(bug):
        tried = examples_to_failure(EXAMPLES)
    assert tried is not None, f"{bug}: {EXAMPLES} examples passed"
    print(f"{bug}: {tried} examples")


@pytest.mark.parametrize(
    ("scenario", "bug"),
    [
        *((STREAMS, bug) for bug in found_by("seeds")),
        *((KEEPING, bug) for bug in found_by("keeping")),
        *((GROUPS, bug) for bug in found_by("groups")),
    ],
)
def test_the_simulation_finds(scenario: str, bug: str) -> None:
    first = FIRST_SEED.get((scenario, bug), 0)
    found = first_caught(bug, range(first, first + SEEDS), scenario)
    assert found is not None, f"{bug}: not caught by {SEEDS} seeds from {first}"
    print(f"{bug}: caught by seed {found.seed}: {found.failure.splitlines()[-1]}")
