"""The storage proofs at the length of a night, or a share of it.

    python -m tests.proofs.nightly --share 0.1

Each runs in a process of its own, one after another; the exit code is 1 if any found anything.
Power cuts need root (they mount a file system) and are passed over, with a word, without it.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

STATES = 200_000
EXAMPLES = 20_000
PROPERTIES = ("tests/protocol", "tests/storage", "tests/broker/test_clock.py")
SEEDS = 4_000
KILLS = 1_500  # at system calls, of a sample; all of them where it is a whole night
ERRORS = 1_500  # likewise, EIO and ENOSPC together
DAMAGES = 200
RANDOM_KILLS = 200
POWER_CUTS = 20


@dataclass(frozen=True)
class Proof:
    """One command; ``root``: it mounts a file system."""

    module: str
    arguments: tuple[str, ...]
    root: bool = False


def proofs(share: float) -> Iterator[Proof]:
    """What a share of a night consists of."""

    def part(whole: int) -> str:
        return str(max(1, round(whole * share)))

    def points(whole: int) -> str:
        return "all" if share >= 1 else part(whole)

    half = max(1, round(SEEDS * share / 2))
    yield Proof("tests.simulation.explore", ("--states", part(STATES)))
    yield Proof("tests.simulation.log_machine", ("--examples", part(EXAMPLES)))
    yield Proof("pytest", ("-q", "-m", "hypothesis", "-o", "faulthandler_timeout=0", *PROPERTIES))
    for scenario in ("streams", "keeping"):
        seeds = f"1000-{999 + half}"
        yield Proof("tests.simulation.sweep", ("--scenario", scenario, "--seeds", seeds))
    yield Proof("tests.simulation.measure", ("--seeds", str(max(15, round(50 * share)))))
    kills, errors = points(KILLS), points(ERRORS // 2)
    yield Proof("tests.proofs.syscalls", ("--kills", kills, "--errors", errors, "--erasing"))
    yield Proof("tests.proofs.damage", ("--cases", part(DAMAGES)))
    yield Proof("tests.proofs.kill", ("--kills", part(RANDOM_KILLS)))
    yield Proof("tests.proofs.kill", ("--power-cuts", part(POWER_CUTS)), root=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.nightly")
    parser.add_argument("--share", type=float, default=1.0, help="of a night, 1: all of it")
    options = parser.parse_args()
    examples = str(max(1, round(EXAMPLES * options.share)))
    environ = {**os.environ, "HYPOTHESIS_EXAMPLES": examples}  # for PROPERTIES: tests/conftest.py
    failed: list[str] = []
    for proof in proofs(options.share):
        name = " ".join((proof.module, *proof.arguments))
        if proof.root and os.geteuid() != 0:
            print(f"== {name}: passed over, it needs root", flush=True)
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", *name.split()]
        code = subprocess.run(command, env=environ, check=False).returncode
        print(f"== {time.monotonic() - began:.0f} s, exit code {code}\n", flush=True)
        if code:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
