"""What a request leaves behind goes with it, and does not wait for the garbage collector.

That looks seldom, and a traceback or a handler may hold megabytes.
"""

import gc
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tailrace.testing import Broker

REQUESTS = 20

pytestmark = pytest.mark.slow


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(http=True) as made:
        made.seed("orders", [b"0", b"1"])
        yield made


def left_behind(act: Callable[[], object]) -> int:
    """Objects that only the garbage collector finds."""
    act()  # imports and caches
    gc.collect()
    gc.disable()
    try:
        for _ in range(REQUESTS):
            act()
        return gc.collect()
    finally:
        gc.enable()


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_pages_leave_nothing_behind(broker: Broker) -> None:
    url = f"{broker.http_url}/api/v1/topics/orders/records?partition=0"
    assert status_of(url) == 200
    assert left_behind(lambda: status_of(url)) < REQUESTS


def test_refused_pages_leave_nothing_behind(broker: Broker) -> None:
    url = f"{broker.http_url}/api/v1/topics/orders/records?partition=7"
    assert status_of(url) == 404
    assert left_behind(lambda: status_of(url)) < REQUESTS
