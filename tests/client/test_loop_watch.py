"""A blocked event loop is noticed while it is blocked, once, with the line that does it (T050)."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest

from tailrace.client import loop_watch, metrics
from tailrace.client.loop_calls import LoopCalls
from tailrace.client.loop_watch import KNOCK_S, LoopWatch, culprit
from tests.client.world import Run

COUNTER = "tailrace_client_blocked_loop_seconds_total"


class FakeLoop:
    """A loop that answers when it is told to; its thread is the test's."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.running = True
        self.called: list[Callable[[], None]] = []

    def soon(self, fn: Callable[[], None]) -> bool:
        self.called.append(fn)
        return True

    def runs(self) -> bool:
        return self.running

    def answer(self) -> None:
        for fn in self.called:
            fn()
        self.called.clear()


class Stage:
    """A watch on clocks of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu_s = 0.0
        self.loop = FakeLoop()
        self.watch = LoopWatch(self.loop, lambda: self.now, lambda: self.cpu_s, lambda log: log())

    def pass_time(self, seconds: float, *, answering: bool) -> None:
        """Tick whenever it is due."""
        ends_at = self.now + seconds
        while self.now < ends_at:
            if self.now >= self.watch.next_at:
                self.watch.tick()
            if answering:
                self.loop.answer()
            self.now += KNOCK_S

    def sleep(self, seconds: float, *, cpu_s: float) -> None:
        """Nobody in this process runs; ``cpu_s`` of the processor are used meanwhile."""
        self.now += seconds
        self.cpu_s += cpu_s


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.watch.end()


def codes(caplog: pytest.LogCaptureFixture) -> list[str | None]:
    return [getattr(record, "code", None) for record in caplog.records]


def test_loop_that_answers_is_not_blocked(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage.pass_time(30, answering=True)
    assert caplog.records == []


def test_blocked_loop_is_told_once_while_it_is_blocked(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stage.pass_time(5, answering=True)
    stage.pass_time(1.5, answering=False)
    assert codes(caplog) == ["T050"]
    assert caplog.records[0].levelno == logging.WARNING
    assert "test_loop_watch.py:" in caplog.text
    stage.pass_time(60, answering=False)
    assert codes(caplog) == ["T050"]


def test_end_of_a_blockage_tells_its_length(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage.pass_time(5, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert codes(caplog) == ["T050", None]
    assert caplog.records[1].getMessage().endswith("blocked for 5.0 s")
    stage.pass_time(2, answering=False)
    assert codes(caplog) == ["T050", None, "T050"], "another blockage"


def test_process_that_was_stopped_was_not_blocked(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.pass_time(5, answering=True)
    stage.watch.tick()
    stage.sleep(60, cpu_s=0.01)
    stage.watch.tick()
    stage.loop.answer()
    stage.pass_time(5, answering=True)
    assert caplog.records == []


@pytest.mark.parametrize("answered", [False, True])
def test_loop_that_computes_without_letting_go_is_blocked(
    stage: Stage, caplog: pytest.LogCaptureFixture, answered: bool
) -> None:
    stage.pass_time(5, answering=True)
    stage.watch.tick()
    if answered:
        stage.loop.answer()
    stage.sleep(3, cpu_s=2.9)  # this thread did not get to run: the other one held the GIL
    stage.watch.tick()
    assert codes(caplog) == ["T050"]


def test_loop_that_had_to_wait_for_the_interpreter_is_not_to_blame(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "users_place", lambda frame: None)  # it waits in select
    stage.pass_time(5, answering=True)
    stage.watch.tick()
    stage.sleep(3, cpu_s=2.9)  # a third thread held the GIL
    stage.watch.tick()
    stage.loop.answer()
    stage.pass_time(5, answering=True)
    assert caplog.records == []


def test_loop_that_nobody_runs_is_not_blocked(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.loop.running = False
    stage.pass_time(5, answering=False)
    assert caplog.records == []


def test_one_loop_is_watched_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    other = Stage()
    stage.watch.tick()
    other.pass_time(5, answering=False)
    assert caplog.records == []
    stage.watch.end()
    other.pass_time(10, answering=False)
    assert codes(caplog) == ["T050"]
    other.watch.end()


def test_seconds_are_counted_where_the_process_counts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []
    library = SimpleNamespace(
        Counter=lambda name, text, labels: SimpleNamespace(inc=counted.append)
    )
    instruments = metrics.Instruments({"prometheus_client": library})
    monkeypatch.setattr(metrics, "instruments", instruments)
    stage.pass_time(4, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert counted == [pytest.approx(4.0)]


@pytest.fixture
def prometheus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, with nothing of ours in its default registry: clients of other tests may have
    counted there."""
    library: Any = pytest.importorskip("prometheus_client")
    counted = library.REGISTRY._names_to_collectors.get(COUNTER)
    if counted is not None:
        library.REGISTRY.unregister(counted)
    monkeypatch.setattr(metrics, "instruments", metrics.Instruments())
    yield library
    ours = library.REGISTRY._names_to_collectors.get(COUNTER)
    if ours is not None:
        library.REGISTRY.unregister(ours)
    if counted is not None:
        library.REGISTRY.register(counted)


def test_counter_has_its_name_in_the_default_registry(stage: Stage, prometheus: Any) -> None:
    stage.pass_time(4, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert prometheus.REGISTRY.get_sample_value(COUNTER) == pytest.approx(4.0)


def test_name_that_is_taken_in_the_registry_is_told_and_ends_nothing(
    stage: Stage, prometheus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tailrace.client")
    prometheus.Counter(COUNTER.removesuffix("_total"), "Of somebody else.")
    stage.pass_time(2, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert "it was blocked for 2.0 s (not counted: Duplicate" in caplog.text
    assert not metrics.instruments._made


def test_library_that_is_half_imported_counts_from_the_next_time_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", ModuleType("prometheus_client"))
    monkeypatch.setattr(metrics, "instruments", metrics.Instruments())
    caplog.set_level(logging.INFO, "tailrace.client")
    stage.pass_time(2, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert "(not counted: AttributeError" in caplog.text
    counted: list[float] = []
    counter = SimpleNamespace(inc=counted.append)
    complete = SimpleNamespace(Counter=lambda name, text, labels: counter)
    monkeypatch.setitem(sys.modules, "prometheus_client", complete)
    stage.pass_time(2, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert counted == [pytest.approx(2.0, abs=KNOCK_S)]


def test_log_that_is_stuck_does_not_hold_up_the_watch() -> None:
    stuck, done = threading.Event(), threading.Event()

    def log() -> None:
        stuck.wait(5)
        done.set()

    loop_watch.run_aside(log)
    assert not done.is_set()
    stuck.set()
    assert done.wait(5)


def test_log_is_left_out_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    called: list[None] = []
    loop_watch.run_aside(lambda: called.append(None))
    assert called == []


def test_nothing_is_counted_where_nobody_imported_the_library(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "prometheus_client", raising=False)
    monkeypatch.setattr(metrics, "instruments", metrics.Instruments())
    stage.pass_time(2, answering=False)
    stage.loop.answer()
    stage.pass_time(1, answering=True)
    assert not metrics.instruments._made


def test_line_is_the_innermost_one_of_the_users_code(run: Run) -> None:
    places: list[loop_watch.Place] = []

    def look(text: str) -> str:
        frame = sys._getframe()
        places.append(culprit(frame))
        return text

    async def handler() -> None:
        # The standard library stands between: what calls it is to blame.
        import re

        re.sub("a", lambda match: look(match[0]), "a")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handler)

    run(main)
    assert places[0].file == __file__
    assert places[0].function == "look"


def test_line_of_the_library_that_waits_is_not_to_blame(run: Run) -> None:
    frames: list[FrameType] = []
    waiting, seen = threading.Event(), threading.Event()

    async def resize() -> None:
        waiting.set()
        assert seen.wait(5)  # ``threading.py`` is innermost

    def watch(thread: int) -> None:
        assert waiting.wait(5)
        frames.append(sys._current_frames()[thread])
        places.append(culprit(frames[0]))
        seen.set()

    places: list[loop_watch.Place] = []

    async def main() -> None:
        watcher = threading.Thread(target=watch, args=(threading.get_ident(),))
        watcher.start()
        await resize()
        watcher.join()

    run(main)
    assert (places[0].file, places[0].function) == (__file__, "resize")


def test_calls_reach_the_loop_and_end_with_it(run: Run) -> None:
    made: list[LoopCalls] = []

    async def main() -> None:
        calls = LoopCalls()
        made.append(calls)
        assert calls.runs()
        rung = anyio.Event()
        threading.Thread(target=lambda: calls.soon(rung.set)).start()
        await rung.wait()

    run(main)
    assert not made[0].soon(lambda: None)
