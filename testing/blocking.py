"""Blocking calls that an async test may make all the same.

The synchronous SDK refuses to run inside an event loop, because a blocked loop serves nobody. A
test's broker lives in another thread, so a test may well wait for it: such calls are made in a
thread of their own.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from tailrace.client.portal import running_loop

P = ParamSpec("P")
T = TypeVar("T")


def outside_loops(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, run in another thread if an event loop runs in this one."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if running_loop() is None:
            return function(*args, **kwargs)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function, *args, **kwargs).result()

    return call
