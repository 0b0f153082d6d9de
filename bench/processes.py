"""A broker as a process of its own, for the demo, the benches and the proofs."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tailrace.bench.cpus import BROKER, pin

READY_SECONDS_MAX = 30.0


class BrokerProcess:
    """``tailrace dev`` in a child process, on a data directory that outlives it.

    A context manager: leaving it stops the broker gracefully, or kills it after 10 s.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        settings: Mapping[str, str] | None = None,  # {"group.verdict_window": "5s"}
        pinned: bool = False,  # to a broker's processors, where there are enough of them
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.url = ""
        self.http_url = ""
        self.ready_seconds = 0.0
        self.stderr_path = Path(f"{data_dir}.stderr")  # beside the data, appended by each start
        self._arguments = arguments
        self._variables = variables(settings or {})
        self._pinned = pinned
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start, and return when the broker said that it is ready; RuntimeError if it did not."""
        began = time.monotonic()
        command = [sys.executable, "-m", "tailrace.cli", "-O", "json", "dev"]
        command += ["--port", str(self.port), "--http-port", "0", "--data", str(self.data_dir)]
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.stderr_path.open("ab") as errors:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **self._variables, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a Ctrl-C here is not one there
            )
        if self._pinned:
            pin(self._process.pid, BROKER)
        line = read_ready(self._process, READY_SECONDS_MAX)
        if not line:
            self.kill()
            raise RuntimeError(f"the broker did not start; see {self.stderr_path}")
        ready = json.loads(line)
        self.ready_seconds = time.monotonic() - began
        self.url, self.http_url = ready["url"], ready["http"] or ""
        self.port = int(self.url.rsplit(":", 1)[1])  # the same port again after a restart

    def kill(self) -> None:
        """SIGKILL: nothing of the broker's own gets to run."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL after 10 s; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> "BrokerProcess":
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as a process is given them: {"group.verdict_window": "5s"}."""
    return {f"TAILRACE_{key.upper().replace('.', '__')}": value for key, value in settings.items()}


def free_ports(count: int) -> list[int]:
    """So many that nobody uses now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def free_port() -> int:
    """One that nobody uses now."""
    return free_ports(1)[0]


def read_ready(process: subprocess.Popen[str], seconds_max: float) -> str:
    """The line with which a broker says that it serves; empty if it did not say so in time."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], seconds_max)
    return process.stdout.readline() if readable else ""
