"""What a broker process tells systemd: READY, STATUS, STOPPING, WATCHDOG, on a real socket."""

import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.brokers import SECONDS_MAX, Broker, Start

pytestmark = pytest.mark.slow

WATCHDOG_USEC = "200000"


class Manager:
    """The socket that systemd would listen on."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path.replace("@", "\0", 1) if path.startswith("@") else path)
        self._socket.settimeout(SECONDS_MAX)
        self.environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": WATCHDOG_USEC}

    def next(self) -> str:
        return self._socket.recv(4096).decode()

    def until(self, beginning: str) -> list[str]:
        """What comes up to the first that begins so, that one included."""
        found = [self.next()]
        while not found[-1].startswith(beginning):
            found.append(self.next())
        return found

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes in that time, apart from what had been sent before."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(4096):
                pass
        except BlockingIOError:
            self._socket.settimeout(seconds)
        try:
            self._socket.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(SECONDS_MAX)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@tailrace-test-{os.getpid()}" if request.param == "abstract" else f"{tmp_path}/notify"
    made = Manager(name)
    yield made
    made.close()


def readiness(broker: Broker) -> int:
    """Of /readyz; the port is that which it says it has bound."""
    url = broker.folder / "http"
    try:
        with urllib.request.urlopen(f"{url.read_text()}/readyz", timeout=SECONDS_MAX) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def test_a_life_told_to_systemd(start: Start, manager: Manager) -> None:
    address = f"127.0.0.1:{free_port()}"
    broker = start(http=address, environ=manager.environ, faults=("start=1.5",))
    (broker.folder / "http").write_text(f"http://{address}")
    assert manager.next() == "STATUS=starting"
    recovering = manager.until("STATUS=recovering")[-1]
    assert recovering == "STATUS=recovering: 0%, 0 of 0 partitions open"
    assert readiness(broker) == 503
    before = manager.until("READY=1")
    assert readiness(broker) == 200
    assert before[-1].startswith("READY=1\nSTATUS=serving tailrace://[::1]:")
    # The dog is fed while it recovers, too.
    assert "WATCHDOG=1" in before
    assert {line.partition("=")[0] for line in before[:-1]} == {"STATUS", "WATCHDOG"}
    assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3
    broker.process.send_signal(signal.SIGTERM)
    assert manager.until("STOPPING=1")[-1] == "STOPPING=1\nSTATUS=stopping"
    assert broker.wait() == 0


def test_a_blocked_loop_feeds_no_dog(start: Start, manager: Manager) -> None:
    broker = start(environ=manager.environ, faults=())
    broker.ready()
    manager.until("WATCHDOG=1")
    broker.process.send_signal(signal.SIGUSR2)
    assert manager.silent(1) or manager.silent(1)  # one may have been under way
    # systemd ends such a broker with SIGABRT: it must not be ignored.
    broker.process.send_signal(signal.SIGABRT)
    assert broker.wait() == -signal.SIGABRT


def test_another_process_than_the_watched_one_feeds_no_dog(start: Start, manager: Manager) -> None:
    broker = start(environ=manager.environ | {"WATCHDOG_PID": "1"})
    broker.ready()
    assert not any(line == "WATCHDOG=1" for line in manager.until("READY=1"))
    assert broker.stop() == 0
    assert manager.until("STOPPING=1") == ["STOPPING=1\nSTATUS=stopping"]


def test_a_manager_that_is_gone_does_not_matter(start: Start, tmp_path: Path) -> None:
    broker = start(environ={"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "20000"})
    broker.ready()
    assert broker.stop() == 0
