"""Partitions of a network: who cannot reach whom. Each makes a ``net.Wall``.

Brokers are named; every other host is a client. Clients reach every broker, or stand beside one of
them (``beside``) and are cut off with it.
"""

from collections.abc import Callable, Sequence, Set
from random import Random

from tailrace.simulation.net import Wall

Beside = Callable[[str], str | None]  # a client's host -> the broker it stands beside; None: by all


def by_all(host: str) -> str | None:
    """Clients reach everybody."""
    return None


def by_chance(rng: Random, brokers: Sequence[str]) -> Beside:
    """Each client stands beside some broker, for as long as the wall stands."""
    places: dict[str, str] = {}

    def beside(host: str) -> str | None:
        if host not in places:
            places[host] = rng.choice(brokers)
        return places[host]

    return beside


def between(brokers: Sequence[str], passes: Callable[[str, str], bool], beside: Beside) -> Wall:
    """A wall that lets pass, from one broker's place to another's, what ``passes`` says."""

    def wall(source: str, target: str) -> bool:
        here = source if source in brokers else beside(source)
        there = target if target in brokers else beside(target)
        return here is not None and there is not None and here != there and not passes(here, there)

    return wall


def isolate(brokers: Sequence[str], some: Set[str], beside: Beside = by_all) -> Wall:
    """These on one side, all others on the other."""
    return between(brokers, lambda here, there: (here in some) == (there in some), beside)


def bridge(brokers: Sequence[str], some: Set[str], over: str, beside: Beside = by_all) -> Wall:
    """As ``isolate``, but one broker reaches both sides."""
    return between(
        brokers,
        lambda here, there: over in (here, there) or (here in some) == (there in some),
        beside,
    )


def ring(brokers: Sequence[str], beside: Beside = by_all) -> Wall:
    """Each reaches its neighbours; where all are neighbours, only the next one."""
    count = len(brokers)
    steps = (1, count - 1) if count > 3 else (1,)

    def passes(here: str, there: str) -> bool:
        return (brokers.index(there) - brokers.index(here)) % count in steps

    return between(brokers, passes, beside)


def one_way(brokers: Sequence[str], mute: str, beside: Beside = by_all) -> Wall:
    """Nothing that this one says arrives; it hears everybody."""
    return between(brokers, lambda here, there: here != mute, beside)


def deaf(brokers: Sequence[str], one: str, beside: Beside = by_all) -> Wall:
    """This one hears nothing; everybody hears it."""
    return between(brokers, lambda here, there: there != one, beside)
