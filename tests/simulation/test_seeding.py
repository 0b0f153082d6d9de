"""Equal seeds give equal courses; other threads and later runs are left alone."""

import os
import random
import subprocess
import sys
import threading
import time

import pytest
import trio
from trio._core import _run as trio_run

from tailrace.simulation.seeding import Trace, run_seeded


async def busy(trace: Trace) -> list[int]:
    """Many tasks, equal deadlines, cancelled nurseries, a lock."""
    order: list[int] = []
    lock = trio.Lock()

    async def work(number: int) -> None:
        with trio.move_on_after(number % 3):
            for _ in range(5):
                async with lock:
                    order.append(number)
                await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(work, number)
    return order


def test_equal_seeds_give_equal_courses() -> None:
    first, again, other = run_seeded(busy, 1), run_seeded(busy, 1), run_seeded(busy, 2)
    assert first == again
    assert first.trace != other.trace
    assert first.value != other.value


def test_another_process_takes_the_same_course() -> None:
    code = "import tests.simulation.test_seeding as t; print(t.run_seeded(t.busy, 1).trace)"
    for hash_seed in "01":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        assert output.strip() == run_seeded(busy, 1).trace


def test_a_live_trio_thread_changes_nothing() -> None:
    stop = threading.Event()

    async def live() -> None:
        while not stop.is_set():
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(trio.lowlevel.checkpoint)

    expected = run_seeded(busy, 3)
    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    try:
        assert run_seeded(busy, 3) == expected
    finally:
        stop.set()
        thread.join()


def test_a_loop_that_waits_for_a_moment_just_ahead_gets_there() -> None:
    async def main(trace: Trace) -> int:
        turns, until = 0, trio.current_time() + 1e-3
        while trio.current_time() < until:
            turns += 1
            await trio.sleep((until - trio.current_time()) / 1e12)  # too little to move a clock
        return turns

    assert 1 < run_seeded(main, 0).value < 2000


def test_a_loop_without_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(trace: Trace) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr("tailrace.simulation.seeding.STEPS_MAX", 1000)
    with pytest.raises(AssertionError, match="seed 5: 1000 steps, and no end"):
        run_seeded(main, 5)


def test_everything_is_put_back() -> None:
    before = (trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING, time.time, os.urandom)
    run_seeded(busy, 1)
    after = (trio_run._r, trio_run._ALLOW_DETERMINISTIC_SCHEDULING, time.time, os.urandom)
    assert after == before


@pytest.mark.parametrize("what", ["time.time()", "random.random()", "os.urandom(1)"])
def test_real_time_and_chance_are_out_of_bounds(what: str) -> None:
    scope = {"__name__": "tailrace.broker.careless", "time": time, "random": random, "os": os}

    async def main(trace: Trace) -> None:
        with pytest.raises(AssertionError, match="must ask its World"):
            eval(what, scope)

    run_seeded(main, 0)
    eval(what, scope)
