"""Heavy work in a process of its own: results, failures, rates, and its end."""

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tailrace.broker.heavy import ALLOWED_BYTES_MAX, IDLE_S, OffloadHeavy, ProcessHeavy
from tailrace.broker.threads import ThreadOffload
from tailrace.broker.world import WorkerLost
from tailrace.storage.disk import OsDisk
from tailrace.storage.rewrite import SegmentSource
from tailrace.storage.survey import Survey, SurveyJob

# What stands in for the worker: it answers each order as the script says.
FAKE = "import sys, time\n"
DONE = """
def done():
    print('{"done":{"marks_path":"m","segments":[],"walks":0,"read_bytes":0}}', flush=True)
"""


def job(path: Path, *sources: SegmentSource) -> SurveyJob:
    return SurveyJob(str(path), sources, 1, 0, 0, 0, 1)


def run(main: Callable[[], Awaitable[None]], clock: MockClock | None = None) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(bounded, clock=clock)


def fake(script: str) -> ProcessHeavy:
    return ProcessHeavy([sys.executable, "-c", FAKE + DONE + script])


@pytest.mark.slow
def test_the_worker_does_one_job_after_another(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = ProcessHeavy()
        try:
            assert isinstance(await heavy.run(job(tmp_path)), Survey)
            pid = heavy.pid
            missing = SegmentSource(f"{tmp_path}/1.log", 0, 1, 5)
            with pytest.raises(FileNotFoundError):
                await heavy.run(job(tmp_path, missing))
            assert isinstance(await heavy.run(job(tmp_path)), Survey)
            assert heavy.pid == pid
        finally:
            await heavy.aclose()
        assert heavy.pid is None

    run(main)


def test_a_worker_that_ends_is_told_and_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = fake("sys.stdin.readline(); sys.exit(3)")
        for _ in range(2):
            with pytest.raises(WorkerLost, match="ended with code 3"):
                await heavy.run(job(tmp_path))
            assert heavy.pid is None

    run(main)


def test_a_worker_that_says_what_nobody_understands_is_ended(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = fake("sys.stdin.readline(); print('hello', flush=True); sys.stdin.readline()")
        with pytest.raises(WorkerLost, match="said: b'hello'"):
            await heavy.run(job(tmp_path))

    run(main)


def test_one_that_cannot_be_started_is_a_lost_one(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(WorkerLost, match="could not be started"):
            await ProcessHeavy([f"{tmp_path}/nothing"]).run(job(tmp_path))

    run(main)


def test_giving_up_kills_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = fake("sys.stdin.readline(); print('{\"used\":5}', flush=True); time.sleep(60)")
        started = trio.Event()
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await heavy.run(job(tmp_path), progress=lambda used: started.set())

            nursery.start_soon(work)
            await started.wait()
            pid = heavy.pid
            assert pid is not None
            nursery.cancel_scope.cancel()
        assert heavy.pid is None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(main)


def test_progress_may_refuse_to_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = fake("sys.stdin.readline(); print('{\"used\":5}', flush=True); time.sleep(60)")

        def refuse(used: int) -> None:
            raise ValueError(str(used))

        with pytest.raises(ValueError, match="5"):
            await heavy.run(job(tmp_path), progress=refuse)
        assert heavy.pid is None

    run(main)


@pytest.mark.parametrize("used", [0, 1 << 40], ids=["it is silent", "it waits for its rate"])
def test_progress_is_asked_while_nothing_goes_on(tmp_path: Path, used: int) -> None:
    async def main() -> None:
        say = f"print('{{\"used\":{used}}}', flush=True);" if used else ""
        heavy = fake(f"sys.stdin.readline(); {say} time.sleep(60)")

        def refuse(size_bytes: int) -> None:
            if not size_bytes:
                raise ValueError("enough")

        with trio.fail_after(10), pytest.raises(ValueError, match="enough"):
            await heavy.run(job(tmp_path), rate_bytes=1, progress=refuse)
        assert heavy.pid is None

    run(main)


def test_more_is_allowed_no_faster_than_the_rate(tmp_path: Path) -> None:
    clock = MockClock()  # moved by hand: a real process answers meanwhile

    async def main() -> None:
        heavy = fake(
            "sys.stdin.readline()\n"
            "for _ in range(3):\n"
            "    print('{\"used\":1000}', flush=True)\n"
            "    assert sys.stdin.readline() == '{\"allow\":100}\\n'\n"
            "done()\n"
            "sys.stdin.readline()\n"
        )
        used: list[float] = []
        ended = trio.Event()
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                await heavy.run(
                    job(tmp_path),
                    rate_bytes=1000,
                    progress=lambda size: used.append(trio.current_time()) if size else None,
                )
                ended.set()

            nursery.start_soon(work)
            for second in range(1, 4):
                while len(used) < second:
                    await trio.lowlevel.checkpoint()
                clock.jump(1.0)
            await ended.wait()
        assert [round(at) for at in used] == [0, 1, 2]
        await heavy.aclose()

    trio.run(main, clock=clock)


def test_without_a_rate_much_is_allowed_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = fake(
            "sys.stdin.readline(); print('{\"used\":1}', flush=True)\n"
            f"assert sys.stdin.readline() == '{{\"allow\":{ALLOWED_BYTES_MAX}}}\\n'\n"
            "done(); sys.stdin.readline()\n"
        )
        assert isinstance(await heavy.run(job(tmp_path)), Survey)
        await heavy.aclose()

    run(main)


def test_a_worker_that_was_idle_for_long_ends(tmp_path: Path) -> None:
    clock = MockClock()

    async def main() -> None:
        heavy = fake("sys.stdin.readline(); done(); sys.stdin.readline()")
        await heavy.run(job(tmp_path))
        await heavy.rest()
        assert heavy.pid is not None
        clock.jump(IDLE_S)
        await heavy.rest()
        assert heavy.pid is None

    trio.run(main, clock=clock)


def test_through_an_offload_it_is_done_here(tmp_path: Path) -> None:
    async def main() -> None:
        heavy = OffloadHeavy(ThreadOffload(), OsDisk())
        assert isinstance(await heavy.run(job(tmp_path)), Survey)
        await heavy.rest()
        await heavy.aclose()

    run(main)
