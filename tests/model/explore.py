"""A long look: larger bounds, and many ways by chance. ``python -m tests.model.explore``

Exit code 1 if anything is broken; then the way to it is printed.
"""

import argparse
import sys
import time

from tests.model.planted import DEEP, JoinsEarly, find
from tests.model.search import search, walk
from tests.model.state import Rules

BOUNDS = {
    "two records, a crash, every way to flush": Rules(crashes=1, records=2, slow_flush=True),
    "two crashes, three epochs": Rules(crashes=2, epochs=3),
    "two crashes, changes of the ISR": Rules(crashes=2, changes=1, isr="ab"),
    "three leaders, two records": Rules(moves=2, records=2, epochs=3),
    "change of the ISR, change of leader, a late fetch": Rules(
        moves=1, changes=1, late=1, isr="ab"
    ),
    "the same, and followers come in early": Rules(
        moves=1, changes=1, late=1, isr="ab", copy=JoinsEarly
    ),
    "lease, change of the ISR, doubt": Rules(expiries=1, changes=1, doubts=1, isr="ab"),
    "two changes of the ISR, doubt, change of leader": Rules(
        changes=2, doubts=1, moves=1, isr="ab"
    ),
    "lost disk, change of the ISR, late fetch": Rules(wipes=1, changes=1, late=1, isr="ab"),
    "lowered min_isr, lease, change of the ISR": Rules(changes=1, expiries=1, lowered=1, isr="ab"),
    "replicas that move twice, change of the ISR": Rules(targets=2, changes=1, isr="ab"),
    "a copy given up, change of the ISR, late fetch": Rules(
        losses=1, changes=1, late=1, epochs=3, isr="ab"
    ),
    "replicated, a crash, change of the ISR": Rules(
        durability="replicated", crashes=1, changes=1, records=2
    ),
}
MUCH = (
    Rules(4, 7, 3, 1, 3, 3, 3, 8, 3),
    Rules(4, 8, 2, 0, 3, 3, 3, 8, 3, losses=1),
    Rules(4, 9, 2, 0, 3, 3, 3, 8, 3, targets=4),
    Rules(4, 7, 3, 1, 3, 3, 3, 8, 3, lowered=1),
    Rules(4, 7, 3, 0, 3, 3, 3, 8, 3, slow_flush=True),
    Rules(4, 7, 1, 0, 3, 3, 3, 8, 3, durability="replicated", slow_flush=True),
)
WALK_STEPS = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=400_000, help="at most, of each bounds")
    parser.add_argument("--walks", type=int, default=2_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first walk")
    options = parser.parse_args()
    broken = 0
    for name, bounds in BOUNDS.items():
        found = search(bounds, options.states)
        broken += bool(found.broken)
        print(f"{name}: {found}", flush=True)
    for name in DEEP:
        found = find(name)
        broken += not found.broken
        print(f"planted, {name}: {found}", flush=True)
    for much in MUCH:
        began, steps = time.perf_counter(), 0
        for seed in range(options.seed, options.seed + options.walks):
            found = walk(much, seed, WALK_STEPS)
            steps += found.steps
            if found.broken:
                print(f"seed {seed}: {found}", flush=True)
                broken += 1
                break
        seconds = time.perf_counter() - began
        print(f"walks, {much}: {steps:,} steps, {seconds:.0f} s", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
