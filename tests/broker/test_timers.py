"""Deadlines and bells."""

import trio
import trio.testing

from tailrace.broker.bell import Bell
from tailrace.broker.timers import Timers


def test_callbacks_come_at_their_deadlines_in_order() -> None:
    async def main() -> None:
        timers, fired = Timers(), list[tuple[str, float]]()

        def note(name: str) -> None:
            fired.append((name, trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            began = trio.current_time()
            timers.at(began + 5, lambda: note("five"))
            timers.at(began + 5, lambda: note("five too"))
            await trio.sleep(1)
            timers.at(began + 2, lambda: note("two"))  # earlier than what it sleeps for
            cancelled = timers.at(began + 3, lambda: note("never"))
            cancelled.cancel()
            cancelled.cancel()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert fired == [("two", 2.0), ("five", 5.0), ("five too", 5.0)]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_far_deadlines_are_shared_and_those_set_together_come_apart() -> None:
    async def main() -> None:
        timers = Timers()
        await trio.sleep(0.4)
        now = trio.current_time()
        assert timers.shared(5.0) == now + 5.0, "a near one is exact"
        found = [timers.shared(60.0) - now for _ in range(700)]
        assert min(found) >= 60.0 * 7 / 8
        assert max(found) <= 60.0
        assert {found.count(one) for one in found} == {100}
        await trio.sleep(0.3)
        assert timers.shared(60.0) in [one + now for one in found]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_cancelled_timers_do_not_pile_up() -> None:
    async def main() -> None:
        timers = Timers()
        kept = timers.at(trio.current_time() + 1, lambda: None)
        for _ in range(10_000):
            timers.at(trio.current_time() + 60, lambda: None).cancel()
        assert len(timers._heap) < 1_000  # pyright: ignore[reportPrivateUsage]
        kept.cancel()

    trio.run(main)


def test_a_bell_wakes_its_task_and_remembers_a_ring() -> None:
    async def main() -> None:
        bell, woken = Bell(), list[int]()

        async def listen() -> None:
            for number in range(3):
                await bell.wait()
                woken.append(number)

        bell.ring()
        bell.ring()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == [0]
            for _ in range(2):
                bell.ring()
                bell.ring()
                await trio.testing.wait_all_tasks_blocked()
        assert woken == [0, 1, 2]

    trio.run(main)


def test_a_cancelled_wait_keeps_the_ring() -> None:
    async def main() -> None:
        bell = Bell()
        with trio.move_on_after(0):
            await bell.wait()
        bell.ring()
        with trio.CancelScope() as scope:
            scope.cancel()
            await bell.wait()
        with trio.fail_after(1):
            await bell.wait()

    trio.run(main)
