"""One run of trio whose every choice follows from a seed.

Trio has two private names for this, made for Hypothesis; they are asserted here and nowhere else.
Its generator is global to the process, so the one put in here answers each thread for itself:
seeded in a thread that simulates, as before everywhere else (a live broker beside a simulation
changes nothing). While a thread simulates, real time and unseeded chance are out of bounds for
tailrace code in it.
"""

import gc
import hashlib
import importlib
import inspect
import itertools
import os
import random
import struct
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
import trio.abc

from tailrace.simulation.freeze import adopt

if TYPE_CHECKING:
    from trio.testing import MockClock

T = TypeVar("T")

FORBIDDEN: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")),
    (random, ("random", "randrange", "randint", "choice", "shuffle", "uniform", "getrandbits")),
    (os, ("urandom",)),
    (uuid, ("uuid1", "uuid4")),
)

DETERMINISTIC = "_ALLOW_DETERMINISTIC_SCHEDULING"  # sorts each round's tasks before the shuffle
GENERATOR = "_r"  # shuffles them
CHANGED = "trio has changed: its choices do not follow from a seed"

_simulating: dict[int, random.Random] = {}  # thread -> its generator
_install = threading.Lock()
_originals: dict[tuple[ModuleType, str], Any] = {}


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a seeded run returned, and what identifies its course."""

    value: T
    trace: str  # equal for equal courses: every step of every task and every note, in order
    steps: int
    seconds: float  # of virtual time


STEP_S = 1e-6  # what a step takes: a loop that waits for a moment just ahead must get there
STEPS_MAX = 2_000_000  # a run of minutes takes some ten thousand


class Trace(trio.abc.Instrument):
    """A running hash over every step of every task, and the hand that moves the clock."""

    def __init__(self, clock: "MockClock") -> None:
        self.steps = 0
        self.runaway = trio.CancelScope()  # cancelled when somebody turns in circles
        self._clock = clock
        self._hash = hashlib.blake2b(digest_size=16)
        self._tasks = itertools.count()
        self._numbers: dict[trio.lowlevel.Task, int] = {}

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._numbers[task] = next(self._tasks)
        adopt(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._numbers.pop(task, None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        number = self._numbers.get(task, -1)  # -1: trio's own, there before the instrument
        self._hash.update(struct.pack("<qd", number, self._clock.current_time()))
        self._clock.jump(STEP_S)
        if self.steps == STEPS_MAX:
            self.runaway.cancel()

    def note(self, *facts: object) -> None:
        """Let something else be part of the course: bytes sent, a fault chosen."""
        self._hash.update(repr(facts).encode())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def run_seeded(main: Callable[[Trace], Awaitable[T]], seed: int) -> Outcome[T]:
    """Run ``main`` on virtual time. Equal seeds and code give equal traces, in any process.

    AssertionError if it never comes to an end.
    """
    from trio.testing import MockClock  # imports pytest, 160 ms that a test broker need not pay

    clock = MockClock(autojump_threshold=0)  # made here, it keeps the real time.perf_counter
    trace, ended_at = Trace(clock), 0.0

    async def run() -> T:
        nonlocal ended_at
        with trace.runaway:
            result = await main(trace)
            ended_at = trio.current_time()
            return result
        raise AssertionError(f"seed {seed}: {STEPS_MAX} steps, and no end")

    with _seeded_thread(seed), _collected_later():
        value = trio.run(run, clock=clock, instruments=[trace])
    return Outcome(value, trace.hexdigest(), trace.steps, ended_at)


class _ByThread(random.Random):
    """Trio's generator while at least one thread simulates."""

    def __init__(self, elsewhere: random.Random) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def random(self) -> float:
        return _simulating.get(threading.get_ident(), self.elsewhere).random()

    def getrandbits(self, k: int, /) -> int:
        return _simulating.get(threading.get_ident(), self.elsewhere).getrandbits(k)


@contextmanager
def _seeded_thread(seed: int) -> Generator[None]:
    thread = threading.get_ident()
    assert thread not in _simulating, "this thread simulates already"
    with _install:
        if not _simulating:
            _take_over()
        _simulating[thread] = random.Random(seed)
    try:
        yield
    finally:
        with _install:
            del _simulating[thread]
            if not _simulating:
                _give_back()


def _take_over() -> None:
    core = importlib.import_module("trio._core._run")
    assert hasattr(core, DETERMINISTIC), CHANGED
    generator = getattr(core, GENERATOR, None)
    assert isinstance(generator, random.Random), CHANGED
    _replace(core, DETERMINISTIC, True)
    _replace(core, GENERATOR, _ByThread(generator))
    for module, functions in FORBIDDEN:
        for name in functions:
            _replace(module, name, _trap(f"{module.__name__}.{name}", getattr(module, name)))


def _replace(module: ModuleType, name: str, value: object) -> None:
    _originals[module, name] = getattr(module, name)
    setattr(module, name, value)


def _give_back() -> None:
    for (module, name), original in _originals.items():
        setattr(module, name, original)
    _originals.clear()


def _trap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def trapped(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() in _simulating:
            frame = inspect.currentframe()
            assert frame is not None
            assert frame.f_back is not None
            caller = frame.f_back.f_globals.get("__name__", "")
            if caller.startswith("tailrace."):
                raise AssertionError(f"{caller} uses {name}(): it must ask its World")
        return original(*args, **kwargs)

    return trapped


@contextmanager
def _collected_later() -> Generator[None]:
    """No finaliser runs at a moment that depends on what else the process has done."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
