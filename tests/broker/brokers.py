"""Brokers as real processes, for the tests that need one."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SECONDS_MAX = 20.0


class Broker:
    """``tailrace`` in a child process, its logs as JSON; ``faults`` are those of planted.py."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environ: dict[str, str] | None = None,
        faults: tuple[str, ...] | None = None,
    ):
        self.folder = folder
        self._log = (folder / f"stderr-{time.monotonic_ns()}").open("w+")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TAILRACE", "NOTIFY"))}
        module = ["tailrace.cli"]
        if faults is not None:
            module = ["tests.broker.planted", *faults, "--"]
            clean["PYTHONPATH"] = str(ROOT)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module, *arguments],
            cwd=folder,
            env=clean | (environ or {}),
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SECONDS_MAX)
        line = self.process.stdout.readline() if readable else ""
        assert line, self.stderr()
        document: dict[str, Any] = json.loads(line)
        return document

    def send(self, *signals: signal.Signals) -> None:
        """All at once: the process is stopped meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        for one in signals:
            self.process.send_signal(one)
        self.process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        return self.process.wait(SECONDS_MAX)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def stderr(self) -> str:
        return Path(self._log.name).read_text()

    def logged(self) -> list[dict[str, Any]]:
        lines = self.stderr().splitlines(keepends=True)  # the last may be half written
        return [json.loads(line) for line in lines if line[0] == "{" and line[-1] == "\n"]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Those of one event, so far."""
        return [line for line in self.logged() if line["event"] == event]

    def wait_logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """The newest line of an event, when there are so many."""
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            found = self.lines(event)
            if len(found) >= count:
                return found[-1]
            select.select([], [], [], 0.005)
        raise AssertionError(f"no {count} {event} in {self.stderr()}")

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not true():
            assert time.monotonic() < deadline, self.stderr()
            select.select([], [], [], 0.005)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS_MAX)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


Start = Callable[..., Broker]
