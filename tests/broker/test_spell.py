"""How long a task goes on before others have their turn."""

from collections.abc import Awaitable, Callable

import trio
from trio.testing import MockClock

from tailrace.broker.exposition import Exposition
from tailrace.broker.metrics import Metrics
from tailrace.broker.spell import LOOKS_MAX, SPELL_S, Spell


def played(play: Callable[[Spell, MockClock], Awaitable[None]]) -> int:
    """How often others had their turn."""
    rests = 0

    async def rest() -> None:
        nonlocal rests
        rests += 1

    async def main() -> None:
        await play(Spell(rest), clock)

    clock = MockClock()
    trio.run(main, clock=clock)
    return rests


def test_others_have_their_turn_when_the_time_is_up_and_not_before() -> None:
    async def play(spell: Spell, clock: MockClock) -> None:
        for seconds in (0.6, 0.6, 0.6, 0.3, 0.3):
            clock.jump(seconds * SPELL_S)
            await spell.pause()

    assert played(play) == 2


def test_a_clock_that_stands_still_lets_nobody_starve() -> None:
    async def play(spell: Spell, clock: MockClock) -> None:
        for _ in range(4 * LOOKS_MAX):
            await spell.pause()

    assert played(play) == 4


def test_a_rest_begins_a_new_spell() -> None:
    async def play(spell: Spell, clock: MockClock) -> None:
        for _ in range(3):
            clock.jump(0.6 * SPELL_S)
            assert not spell.over
            await spell.rest()

    assert played(play) == 3


def test_a_large_scrape_rests_in_between() -> None:
    rests = 0

    async def rest() -> None:
        nonlocal rests
        rests += 1

    async def main() -> None:
        metrics = Metrics(version="0", topics_max=1_000, clock=trio.current_time)
        for number in range(1_000):
            metrics.topic(f"t{number}")
        text = await Exposition(metrics, rest=rest).scrape(detailed=False)
        assert text.count(b"\n") > 5_000

    trio.run(main, clock=MockClock())
    assert rests > 2


def test_a_scrape_rests_no_longer_than_its_reader_would_wait_for() -> None:
    seconds, rests = 0.0, 0

    async def rest() -> None:
        nonlocal seconds, rests
        seconds += 0.1
        rests += 1
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        metrics = Metrics(version="0", topics_max=1_000, clock=trio.current_time)
        for number in range(1_000):
            metrics.topic(f"t{number}")
        await Exposition(metrics, lambda: seconds, rest=rest).scrape(detailed=False)

    trio.run(main, clock=MockClock())
    assert rests == 3
