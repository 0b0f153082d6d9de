"""Runs many seeds of the scenario: ``python -m tests.simulation.sweep --seeds 0-299``.

A failure prints seed, commit, trio's version and the command that replays it, first. ``--planted``
puts a known bug in; then failures are what is hoped for.
"""

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from tailrace.simulation.seeding import Outcome
from tests.simulation.planted import BUGS, plant
from tests.simulation.scenario import Report, run_seed

PROCESSES = os.cpu_count() or 1


@dataclass(frozen=True)
class Result:
    """One seed: its outcome, or how it failed."""

    seed: int
    outcome: Outcome[Report] | None
    failure: str  # empty: passed


def try_seed(seed: int, planted: str | None = None) -> Result:
    """Run one seed; never raises for what the scenario does."""
    logging.disable(logging.CRITICAL)
    try:
        with plant(planted):
            outcome = run_seed(seed)
    except Exception:
        return Result(seed, None, traceback.format_exc())
    finally:
        logging.disable(logging.NOTSET)
    return Result(seed, outcome, "\n".join(map(str, outcome.value.violations)))


def headline(seed: int, planted: str | None = None) -> str:
    """What a failure prints first."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    again = f"python -m tests.simulation.sweep --seeds {seed}"
    again += f" --planted {planted}" if planted else ""
    return f"seed {seed}, commit {commit or 'unknown'}, trio {trio.__version__}; replay: {again}"


def first_caught(planted: str, seeds: range) -> Result | None:
    """The first seed that fails with that bug in."""
    for seed in seeds:
        result = try_seed(seed, planted)
        if result.failure:
            return result
    return None


def sweep(seeds: list[int], planted: str | None, processes: int) -> Iterator[Result]:
    """All seeds, in whatever order they end."""
    if processes <= 1 or len(seeds) == 1:
        for seed in seeds:
            yield try_seed(seed, planted)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_try, [(seed, planted) for seed in seeds])


def _try(arguments: tuple[int, str | None]) -> Result:
    return try_seed(*arguments)


def parse_seeds(text: str) -> list[int]:
    """``3`` or ``0-299``."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.sweep")
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-299"), metavar="A-B")
    parser.add_argument("--planted", choices=sorted(BUGS))
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--verbose", action="store_true", help="a line for each seed")
    options = parser.parse_args()
    began, total, failed, faults = time.perf_counter(), Counter[str](), 0, Counter[str]()
    for result in sweep(options.seeds, options.planted, options.processes):
        if result.outcome is not None:
            report = result.outcome.value
            total.update(sent=report.sent, acked=report.acked, read=report.read)
            total.update(crashes=report.crashes, steps=result.outcome.steps)
            total.update(virtual_s=round(result.outcome.seconds))
            faults.update(report.faults)
        if result.failure:
            failed += 1
            print(f"FAILED {headline(result.seed, options.planted)}\n{result.failure}", flush=True)
        elif options.verbose and result.outcome is not None:
            print(f"seed {result.seed} {result.outcome.trace} {result.outcome.value}", flush=True)
    seconds = time.perf_counter() - began
    rate = len(options.seeds) / seconds * 60
    print(f"{len(options.seeds)} seeds, {failed} failed, {seconds:.0f} s, {rate:.0f} seeds/min")
    print(", ".join(f"{count:,} {name}" for name, count in total.items()))
    print("faults: " + ", ".join(f"{count:,} {name}" for name, count in sorted(faults.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
