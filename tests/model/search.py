"""Breadth first through all states: the shortest way to a broken invariant, or none at all.

``walk`` takes one way by chance instead, which gets deeper than all ways can be followed.
"""

import random
import time
from collections import deque
from dataclasses import dataclass

from tests.model.actions import steps
from tests.model.invariants import Violation
from tests.model.state import Rules, State

# What the product asserts is broken as well.
BROKEN = (Violation, AssertionError)


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search."""

    states: int  # different ones
    steps: int  # between them
    depth: int  # of the deepest state
    seconds: float
    complete: bool  # there is no state within the bounds that was not seen
    broken: str = ""  # the invariant
    way: tuple[str, ...] = ()  # to it

    def __str__(self) -> str:
        rate = self.steps / self.seconds if self.seconds else 0.0
        text = (
            f"{self.states:,} states, {self.steps:,} steps, depth {self.depth},"
            f" {self.seconds:.1f} s ({rate:,.0f}/s), {'all' if self.complete else 'not all'}"
        )
        return "\n  ".join((text, *self.way, self.broken)) if self.broken else text


def search(rules: Rules, states_max: int = 10_000_000) -> Found:
    """Look at every state within the bounds of ``rules``, or at the first ``states_max``.

    States are remembered by 64 bits of hash: that two of a million share them, and one is passed
    over, has a probability of 3 in 10^8.
    """
    began = time.perf_counter()
    first = State(rules)
    came_from: dict[int, int] = {hash(first.key()): 0}
    waiting: deque[tuple[State, int, int]] = deque([(first, hash(first.key()), 0)])
    taken = depth = key = 0
    broken = ""
    complete = True
    while waiting and not broken and complete:
        state, key, depth = waiting.popleft()
        try:
            for _, after in steps(state, rules):
                taken += 1
                after_key = hash(after.key())
                if after_key not in came_from:
                    came_from[after_key] = key
                    waiting.append((after, after_key, depth + 1))
        except BROKEN as error:
            broken = f"{type(error).__name__}: {error}"
        complete = len(came_from) < states_max
    seconds = time.perf_counter() - began
    way = way_to(rules, came_from, key) if broken else ()
    return Found(len(came_from), taken, depth, seconds, complete, broken, way)


def way_to(rules: Rules, came_from: dict[int, int], key: int) -> tuple[str, ...]:
    """The actions that lead to a state, found by doing them again."""
    keys = [key]
    while key := came_from[key]:
        keys.append(key)
    state, way = State(rules), list[str]()
    for wanted in reversed(keys[:-1]):
        label, state = next(step for step in steps(state, rules) if hash(step[1].key()) == wanted)
        way.append(label)
    return tuple(way)


def walk(rules: Rules, seed: int, steps_max: int) -> Found:
    """One way through the states, by chance."""
    began = time.perf_counter()
    chance = random.Random(seed)
    state, way, broken = State(rules), list[str](), ""
    while len(way) < steps_max and not broken:
        try:
            choices = list(steps(state, rules))
        except BROKEN as error:
            broken = f"{type(error).__name__}: {error}"
            break
        if not choices:
            break
        label, state = chance.choice(choices)
        way.append(label)
    seconds = time.perf_counter() - began
    return Found(len(way), len(way), len(way), seconds, False, broken, tuple(way))
