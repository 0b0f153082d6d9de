"""A process that stands still runs no code, whichever of its tasks is woken."""

import trio

from tailrace.simulation.freeze import FREEZER, Freezer
from tailrace.simulation.seeding import Trace, run_seeded


def test_every_task_of_a_frozen_process_stands_still_and_goes_on() -> None:
    freezer, woken = Freezer(), list[tuple[str, float]]()

    async def inner() -> None:
        await trio.sleep(1)
        woken.append(("inner", trio.current_time()))

    async def process() -> None:
        FREEZER.set(freezer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nested)

    async def nested() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)
            with trio.move_on_after(2):
                await trio.sleep_forever()
            woken.append(("nested", trio.current_time()))

    async def other() -> None:
        await trio.sleep(1)
        woken.append(("other", trio.current_time()))

    async def main(trace: Trace) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process)
            nursery.start_soon(other)
            await trio.sleep(0.5)
            freezer.freeze(5)

    run_seeded(main, 1)
    assert next(name for name, _ in woken) == "other"
    assert {name for name, at in woken if at >= 5.5} == {"inner", "nested"}


def test_a_frozen_process_can_be_ended() -> None:
    freezer = Freezer()

    async def process(scope: trio.CancelScope) -> None:
        FREEZER.set(freezer)
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)

    async def main(trace: Trace) -> float:
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process, scope)
            await trio.sleep(1)
            freezer.freeze(1000)
            freezer.thaw()
            scope.cancel()
        return trio.current_time()

    assert run_seeded(main, 1).value < 2
