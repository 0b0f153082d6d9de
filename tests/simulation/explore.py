"""Crash exploration: ``python -m tests.simulation.explore --states 200000``.

Each script runs once for every operation on the disk, dying at it. For each of these crash points
the outcomes of a power cut are visited: all of them where at most three operations are pending
and they fit in the point's share of the states, else a sample by seed, the outcomes that keep
nothing and everything among it. Outcomes that leave the same bytes under the same names count
once. In each state the log is recovered and held against what the dead process did
(``crash_model``).
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from tailrace.simulation.chance import every_world, random_pick, seeded
from tailrace.simulation.disk import Platter
from tailrace.simulation.life import NodeDead
from tests.simulation.crash_checks import check_recovered
from tests.simulation.crash_model import Model, Process, Script, drop_all, keep_all, small_scale
from tests.simulation.crash_scripts import SCRIPTS
from tests.simulation.planted import BUGS, plant

PENDING_MAX = 3
REPEATS_MAX = 30  # in a sample: so often a state that was seen before, then there are no others
RICH_MAX = 2_000  # outcomes of one point that count for its script's share
STATES = 200_000


@dataclass(frozen=True)
class Point:
    """A dead process at one of its operations, and the disk it leaves."""

    step: int
    platter: Platter
    model: Model


@dataclass
class Explored:
    """One script."""

    name: str
    points: int = 0
    whole: int = 0  # points of which every outcome was visited
    states: int = 0
    failures: int = 0
    first_failure: str = ""
    states_to_failure: int = 0


def crash_points(script: Script) -> Iterator[Point]:
    """Every operation the script can die at, and its end."""
    for step in count():
        process = Process(Platter(), dies_at_step=step)
        try:
            with small_scale():
                script(process)
        except NodeDead:
            yield Point(step, process.platter, process.model)
        else:
            process.life.dead = True
            yield Point(step, process.platter, process.model)
            return


def outcomes(point: Point, states_max: int, rng: Random) -> tuple[list[Platter], bool]:
    """Different disks that a power cut can leave there, and whether these are all."""
    found: dict[bytes, Platter] = {}
    if point.platter.root.pending_count() <= PENDING_MAX:
        for platter in every_world(point.platter.crashed):
            found.setdefault(platter.digest(), platter)
            if len(found) > states_max:
                break
        else:
            return list(found.values()), True
        found.clear()
    for pick in (drop_all, keep_all):
        platter = point.platter.crashed(pick)
        found.setdefault(platter.digest(), platter)
    repeats = 0
    while len(found) < states_max and repeats < REPEATS_MAX:
        platter = point.platter.crashed(random_pick(rng))
        before = len(found)
        found.setdefault(platter.digest(), platter)
        repeats = repeats + 1 if len(found) == before else 0
    return list(found.values())[:states_max], False


def explore(script: Script, states: int, *, stop: bool = False) -> Explored:
    """Visit about so many states of one script; ``stop``: at the first that is wrong."""
    result = Explored(script.__name__)
    points = list(crash_points(script))
    rng = seeded(0, script.__name__)
    left = states
    # The points with few outcomes first: what they leave of their share goes to the others.
    for rank, point in enumerate(sorted(points, key=lambda p: p.platter.root.pending_count())):
        result.points += 1
        platters, whole = outcomes(point, max(2, left // (len(points) - rank)), rng)
        result.whole += whole
        left -= len(platters)
        for number, platter in enumerate(platters):
            result.states += 1
            wrong = failure(platter, point.model)
            if wrong:
                result.failures += 1
                if not result.first_failure:
                    where = f"{script.__name__}, step {point.step}, outcome {number}"
                    result.first_failure = f"{where}: {wrong}"
                    result.states_to_failure = result.states
                if stop:
                    return result
    return result


def failure(platter: Platter, model: Model) -> str:
    """What is wrong with what a power cut left; empty if nothing is."""
    try:
        with small_scale():
            check_recovered(platter, model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shares(states: int, scripts: Sequence[Script]) -> list[int]:
    """How many states each script gets: by how many there may be, at least two a point."""
    points = [list(crash_points(script)) for script in scripts]
    rich = [
        sum(min(4 ** point.platter.root.pending_count(), RICH_MAX) for point in each)
        for each in points
    ]
    return [
        max(2 * len(each), states * weight // sum(rich))
        for each, weight in zip(points, rich, strict=True)
    ]


def explore_all(states: int, planted: str | None, processes: int) -> Iterator[Explored]:
    """All scripts, in order."""
    work = [
        (at, share, planted) for at, share in enumerate(shares(states, SCRIPTS))
    ]  # by number: functions of another process
    if processes <= 1:
        yield from map(_explore, work)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_explore, work)


def _explore(work: tuple[int, int, str | None]) -> Explored:
    at, states, planted = work
    with plant(planted):
        return explore(SCRIPTS[at], states, stop=planted is not None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.explore")
    parser.add_argument("--states", type=int, default=STATES)
    parser.add_argument("--planted", choices=sorted(BUGS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    began, failed, total = time.perf_counter(), 0, Explored("all")
    for one in explore_all(options.states, options.planted, options.processes):
        print(
            f"{one.name:24} {one.points:4} crash points, {one.whole:4} of them whole;"
            f" {one.states:7,} states, {one.failures} wrong",
            flush=True,
        )
        if one.first_failure:
            print(f"  FAILED {one.first_failure}", flush=True)
        failed += bool(one.failures)
        total.points += one.points
        total.whole += one.whole
        total.states += one.states
    seconds = time.perf_counter() - began
    print(
        f"{total.states:,} states of {total.points} crash points ({total.whole} whole),"
        f" {failed} scripts failed, {seconds:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
