"""systemd's protocol, against a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.broker.sdnotify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def test_messages_are_those_of_systemd(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.status("opening partitions: 3 of 9")
    notifier.ready("serving")
    notifier.watchdog()
    notifier.stopping()
    notifier.close()
    assert [manager.recv(100) for _ in range(4)] == [
        b"STATUS=opening partitions: 3 of 9",
        b"READY=1\nSTATUS=serving",
        b"WATCHDOG=1",
        b"STOPPING=1\nSTATUS=stopping",
    ]


def test_abstract_sockets_work() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0tailrace-test-{os.getpid()}")
        made.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": f"@tailrace-test-{os.getpid()}"})
        notifier.watchdog()
        assert made.recv(100) == b"WATCHDOG=1"
        notifier.close()


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/to/be/found"])
def test_without_a_manager_nothing_happens(path: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.ready("serving")
    notifier.close()
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_watchdog_is_told_at_half_its_time(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier(environ).watchdog_s == interval
