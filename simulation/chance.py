"""Where every decision of a simulation comes from: a seed, or an exhaustive walk.

Whatever may fall out one way or another asks a ``Pick``: a number below ``options``. A seeded
pick makes one random world; ``every_world`` runs a function once for every possible sequence of
answers, which is how all crash outcomes of a short script are visited.
"""

import hashlib
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

T = TypeVar("T")
Pick = Callable[[int], int]  # options -> a number in range(options)


def seeded(seed: int, *names: str) -> Random:
    """A generator of its own for each name, so that one more draw here changes nothing there."""
    text = "|".join((str(seed), *names))
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def random_pick(rng: Random) -> Pick:
    """Answers by chance."""
    return rng.randrange


def every_world(run: Callable[[Pick], T]) -> Iterator[T]:
    """``run`` for each possible sequence of answers, depth first; ``run`` must be deterministic."""
    script: list[list[int]] = []  # [answer, options] of each question so far
    while True:
        asked = 0

        def pick(options: int) -> int:
            nonlocal asked
            assert options > 0
            if asked == len(script):
                script.append([0, options])
            answer, known = script[asked]
            assert known == options, "the run asks differently when repeated"
            asked += 1
            return answer

        yield run(pick)
        del script[asked:]
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return
        script[-1][0] += 1
