"""Measures the tests: how long each takes to find each planted bug (safety 7.6).

    python -m tests.simulation.measure --seeds 50 --examples 500

A row per bug: the number of crash states, of examples of the state machine and of seeds of each
scenario until the first that fails; ``-`` where none does, or where nobody expects it. A bug that
not one of those finds that should (``planted``) makes the exit code 1.
"""

import argparse
import sys
from collections.abc import Iterator

from tests.simulation.crash_scripts import SCRIPTS
from tests.simulation.explore import crash_points, explore
from tests.simulation.log_machine import examples_to_failure
from tests.simulation.planted import BUGS, plant
from tests.simulation.sweep import GROUPS, KEEPING, STREAMS, first_caught

STATES_PER_POINT = 3


def states_to_failure(bug: str) -> tuple[int, str] | None:
    """After how many states of all scripts in their order a planted bug shows, and how."""
    states = 0
    with plant(bug):
        for script in SCRIPTS:
            points = sum(1 for _ in crash_points(script))
            found = explore(script, STATES_PER_POINT * points, stop=True)
            states += found.states
            if found.failures:
                return states, found.first_failure
    return None


def seeds_to_failure(bug: str, seeds: range, scenario: str) -> int | None:
    found = first_caught(bug, seeds, scenario)
    return None if found is None else found.seed - seeds.start + 1


def rows(seeds: range, examples: int, bugs: list[str]) -> Iterator[tuple[str, list[int | None]]]:
    for bug in bugs:
        if BUGS[bug].finders == ("groups",):  # nothing else has groups
            yield bug, [None, None, None, None, seeds_to_failure(bug, seeds, GROUPS)]
            continue
        states = states_to_failure(bug)
        with plant(bug):
            tried = examples_to_failure(examples)
        simulated = [seeds_to_failure(bug, seeds, one) for one in (STREAMS, KEEPING)]
        yield bug, [states and states[0], tried, *simulated, None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.measure")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("bugs", nargs="*", default=list(BUGS))
    options = parser.parse_args()
    missed = 0
    columns = ("number", "states", "examples", "streams", "keeping", "groups")
    print(f"{'planted bug':34}" + "".join(f"{column:>12}" for column in columns))
    for bug, found in rows(range(options.seeds), options.examples, options.bugs):
        shown = (BUGS[bug].number, *("-" if each is None else str(each) for each in found))
        print(f"{bug:34}" + "".join(f"{each:>12}" for each in shown), flush=True)
        names = ("scripts", "machine", "seeds", "keeping", "groups")
        finders = dict(zip(names, found, strict=True))
        missed += any(finders[finder] is None for finder in BUGS[bug].finders)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
