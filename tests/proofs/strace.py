"""A broker process under strace, which kills it or fails one of its system calls.

What is to know: ``os.pwritev`` shows up as ``pwritev2`` and ``os.pwrite`` as ``pwrite64``; only
traced calls are injected; SIGKILL lands before the call takes effect; strace counts calls **per
thread**, so the first thread to come to its Nth call is hit. Points are therefore taken from a run
that was only watched: the most that one thread of it made.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "pwritev2",
    "pwrite64",
    "fdatasync",
    "fsync",
    "syncfs",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "mkdir",
    "openat",
)
SECONDS_MAX = 30.0
LAST_WORDS = 600  # characters
SETTINGS = {
    "listeners.client.bind": "127.0.0.1:0",
    "http.bind": "",
    "storage.min_free": "1B",
    "topic.segment_size": "16KiB",
    "topic.max_record": "8KiB",
}


def missing() -> str:
    """Why nothing can be traced here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    command = ["strace", "-qq", "-e", "trace=none", "true"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"strace may not trace here: {found.stderr.strip()}"


@dataclass(frozen=True)
class Injection:
    """What happens to the Nth call of a kind: ``signal=SIGKILL``, ``error=EIO``."""

    call: str
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} {self.number}"


@dataclass(frozen=True)
class Hit:
    """The call that was injected."""

    time: float  # of the wall clock, s
    call: str
    path: str  # of the file, as far as the arguments show it


class TracedBroker:
    """``tailrace serve`` on a directory, from its start to its end."""

    def __init__(
        self, data: Path, injection: Injection | None = None, *, watched: bool = True
    ) -> None:
        """Without an injection it is only ``watched``, or left alone."""
        self.data = data
        self.injection = injection
        self.url = ""
        self._pid = 0
        self._trace = data.with_suffix(".trace")
        self._stderr = data.with_suffix(".stderr")
        command = [sys.executable, "-m", "tailrace.cli", "-O", "json", "serve"]
        command += ["--data", str(data)]
        for key, value in SETTINGS.items():
            command += ["--set", f"{key}={value}"]
        if watched or injection is not None:
            command = [*self._tracer(), "--", *command]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TAILRACE", "NOTIFY"))}
        with self._stderr.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=clean,
                start_new_session=True,
            )

    def _tracer(self) -> list[str]:
        injection = self.injection
        calls = CALLS if injection is None else (injection.call,)
        command = ["strace", "-f", "-qq", "-y", "-ttt", "-o", str(self._trace)]
        command += ["-e", f"trace={','.join(calls)}"]
        if injection is None or not injection.fault.startswith("signal"):
            command.append("--seccomp-bpf")  # quicker, but strace 6.1 then sends no signals
        if injection is not None:
            how = f"{injection.fault}:when={injection.number}"
            command += ["-e", f"inject={injection.call}:{how}"]
        return command

    def ready(self) -> bool:
        """Wait until it serves; False: it ended before."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # empty once it is dead
        if not line:
            return False
        document = json.loads(line)
        self.url, self._pid = document["url"], document["pid"]
        return True

    def stop(self) -> None:
        """SIGTERM."""
        try:
            os.kill(self._pid, signal.SIGTERM)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        """The exit code; -9 if it was killed. AssertionError if it does not end."""
        try:
            return self._process.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"it goes on for {SECONDS_MAX:.0f} s; {self.last_words()}"
            ) from None
        finally:
            self.end()

    def end(self) -> None:
        """Let nothing of it be left."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(SECONDS_MAX)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def last_words(self) -> str:
        """The end of its log, for texts."""
        return self.stderr()[-LAST_WORDS:]

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def hits(self) -> list[Hit]:
        """The calls that were made to fail: one in each thread that came so far."""
        found: list[Hit] = []
        begun: dict[str, str] = {}  # by thread: a call that another thread's line cut in two
        for line in self._trace.read_text(errors="replace").splitlines():
            thread, time, rest = line.split(maxsplit=2)
            if rest.endswith("<unfinished ...>"):
                begun[thread] = rest
            if not rest.endswith("(INJECTED)"):
                continue
            if rest.startswith("<..."):
                rest = begun[thread]
            call, _, arguments = rest.partition("(")
            path = re.search(r"""[<"](/[^>"]*)[>"]""", arguments)
            found.append(Hit(float(time), call, path[1] if path else ""))
        return found

    def logged(self, event: str) -> list[float]:
        """When the broker logged that, in s of the wall clock."""
        lines = (line for line in self.stderr().splitlines() if line.startswith("{"))
        documents = [json.loads(line) for line in lines]
        return [one["time"] / 1000 for one in documents if one.get("event") == event]

    def points(self) -> dict[str, int]:
        """For each call the most that one thread made, up to the last that touched the data."""
        made = Counter[tuple[str, str]]()
        found: dict[str, int] = {}
        for line in self._trace.read_text(errors="replace").splitlines():
            thread, _, rest = line.split(maxsplit=2)
            call, bracket, arguments = rest.partition("(")
            if not bracket or "resumed" in call:
                continue
            made[thread, call] += 1
            if str(self.data) in arguments:
                found[call] = max(found.get(call, 0), made[thread, call])
        return found

    def imports(self) -> int:
        """How many files a thread opened before it first touched the data directory."""
        made = Counter[str]()
        for line in self._trace.read_text(errors="replace").splitlines():
            thread, _, rest = line.split(maxsplit=2)
            if rest.startswith("openat("):
                if str(self.data) in rest:
                    return max(made.values(), default=0)
                made[thread] += 1
        return 0
