"""Whose turn it is to send."""

from collections.abc import Awaitable, Callable
from functools import partial

import trio
from trio.testing import MockClock

from tailrace.broker.http_turns import Turns


def played(
    play: Callable[[Turns, list[str]], Awaitable[None]], give_way_s: float, *, hurry: bool = True
) -> list[str]:
    """What happened, in order."""
    happened: list[str] = []

    async def give_way() -> None:
        happened.append("way")
        await trio.sleep(give_way_s)

    async def main() -> None:
        turns = Turns(lambda: 1.0, lambda: hurry, give_way)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(turns.run)
            await play(turns, happened)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return happened


def note(happened: list[str], name: str) -> None:
    happened.append(f"{name}{trio.current_time():.1f}")


async def three(turns: Turns, happened: list[str]) -> None:
    for name in "abc":
        turns.ask(partial(note, happened, name))
    await trio.sleep(10)


def test_between_two_turns_who_is_in_a_hurry_goes_first() -> None:
    assert played(three, 0.1) == ["way", "a0.1", "way", "b0.2", "way", "c0.3"]


def test_where_nobody_is_in_a_hurry_all_go_at_once() -> None:
    assert played(three, 0.1, hurry=False) == ["a0.0", "b0.0", "c0.0"]


def test_a_go_that_is_late_gives_way_no_more() -> None:
    assert played(three, 1.5) == ["way", "a1.5", "b1.5", "c1.5"]


def test_the_next_go_waits_for_its_pause() -> None:
    async def twice(turns: Turns, happened: list[str]) -> None:
        for _ in range(2):
            turns.ask(partial(note, happened, "a"))
            await trio.sleep(0.5)
        await trio.sleep(10)

    assert played(twice, 0.0) == ["way", "a0.0", "way", "a1.0"]
