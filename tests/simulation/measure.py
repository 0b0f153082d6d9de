"""Measures the tests: how long each takes to find each planted bug.

    python -m tests.simulation.measure --seeds 50 --examples 500

A row per bug: the number of crash states, of examples of the state machine and of seeds of each
scenario until the first that fails; ``-`` where none does, or where nobody expects it. A bug that
not one of those finds that should (``planted``) makes the exit code 1.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.simulation.crash_model import Script
from tests.simulation.crash_scripts import SCRIPTS
from tests.simulation.explore import crash_points, explore
from tests.simulation.log_machine import examples_to_failure
from tests.simulation.planted import BUGS, Finder, plant
from tests.simulation.sweep import (
    CLUSTER,
    GROUPS,
    KEEPING,
    STREAMS,
    TOMBSTONES,
    first_caught,
)

STATES_PER_POINT = 3
ALONE: dict[Finder, str] = {"seeds": STREAMS, "keeping": KEEPING}
BESIDE: dict[Finder, str] = {  # of what only some bugs have to do with
    "groups": GROUPS,
    "cluster": CLUSTER,
    "tombstones": TOMBSTONES,
}
COLUMNS: dict[str, Finder] = {
    "states": "scripts",
    "examples": "machine",
    "streams": "seeds",
    "keeping": "keeping",
    "groups": "groups",
    "cluster": "cluster",
    "tombstones": "tombstones",
}


def states_to_failure(bug: str, scripts: Sequence[Script] = SCRIPTS) -> tuple[int, str] | None:
    """After how many states of all scripts in their order a planted bug shows, and how."""
    states = 0
    with plant(bug):
        for script in scripts:
            points = sum(1 for _ in crash_points(script))
            found = explore(script, STATES_PER_POINT * points, stop=True)
            states += found.states
            if found.failures:
                return states, found.first_failure
    return None


def seeds_to_failure(bug: str, seeds: range, scenario: str) -> int | None:
    found = first_caught(bug, seeds, scenario)
    return None if found is None else found.seed - seeds.start + 1


def measured(bug: str, seeds: range, examples: int) -> dict[Finder, int | None]:
    """After how many tries each of those finds it that may."""
    finders = BUGS[bug].finders
    found: dict[Finder, int | None] = {}
    if not {*finders} & BESIDE.keys() or {*finders} & {"scripts", "machine"}:
        states = states_to_failure(bug)
        found["scripts"] = states and states[0]
        with plant(bug):
            found["machine"] = examples_to_failure(examples)
        for one, scenario in ALONE.items():
            found[one] = seeds_to_failure(bug, seeds, scenario)
    for one, scenario in BESIDE.items():
        if one in finders:
            found[one] = seeds_to_failure(bug, seeds, scenario)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.measure")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("bugs", nargs="*", default=list(BUGS))
    options = parser.parse_args()
    missed = 0
    print(f"{'planted bug':34}" + "".join(f"{column:>11}" for column in ("number", *COLUMNS)))
    for bug in options.bugs:
        found = measured(bug, range(options.seeds), options.examples)
        shown = (BUGS[bug].number, *(str(found.get(one) or "-") for one in COLUMNS.values()))
        print(f"{bug:34}" + "".join(f"{each:>11}" for each in shown), flush=True)
        missed += any(found[finder] is None for finder in BUGS[bug].finders)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
