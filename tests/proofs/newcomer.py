"""What a newcomer has: a fresh virtual environment, an empty directory, and terminals.

A ``Terminal`` is a real process on a pseudo terminal of its own. Nothing here has a thread: whoever
waits for one terminal reads all of them, so that the time at which a text appeared is known to
about a millisecond, also on a terminal that nobody waits for at the moment.
"""

import contextlib
import os
import pty
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SECONDS_MAX = 120.0  # of anything; limits are judged by what was measured
DEFAULT_PORTS = (7400, 7480)
COLUMNS = 100
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")  # what a program says to a terminal


class Stumble(Exception):
    """What was seen is not what the newcomer was promised."""


def from_readme(begins: str) -> str:
    """The one Python block of the README that begins so."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    (found,) = [block for block in blocks if block.startswith(begins)]
    text: str = found
    return text


def free_ports() -> tuple[int, int]:
    """The ports that the documentation names, or two others if one of these is taken."""
    try:
        for port in DEFAULT_PORTS:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
    except OSError:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            return one.getsockname()[1], other.getsockname()[1]
    return DEFAULT_PORTS


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree. Built from a copy: setuptools leaves a build folder behind."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for path in (ROOT, *(p.resolve() for p in (ROOT / "tailrace").iterdir() if p.is_symlink())):
        name = "tailrace" if path == ROOT else path.name
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=SECONDS_MAX)
    (wheel,) = folder.glob("tailrace-*.whl")
    return wheel


class Newcomer:
    """Types commands in an empty directory, with the virtual environment active (if made)."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "venv"
        self.home = folder / "hello"
        self.home.mkdir()
        self.ports = free_ports()
        self.terminals: list[Terminal] = []  # of which somebody has the other end
        left_out = ("PYTHON", "TAILRACE", "NO_COLOR", "COLUMNS", "LINES", "VIRTUAL_ENV")
        env = {name: text for name, text in os.environ.items() if not name.startswith(left_out)}
        env |= {"PATH": f"{self.environment / 'bin'}:{env['PATH']}", "TERM": "xterm"}
        if self.ports != DEFAULT_PORTS:
            client, http = (f"127.0.0.1:{port}" for port in self.ports)
            env["TAILRACE_URL"] = f"tailrace://{client}"
            env["TAILRACE_LISTENERS__CLIENT__BIND"] = client
            env["TAILRACE_HTTP__BIND"] = http
        self.env: Mapping[str, str] = env

    def make_environment(self) -> None:
        """Of the Python that runs this, with nothing but pip in it."""
        subprocess.run([sys.executable, "-m", "venv", str(self.environment)], check=True)

    def type(self, command: str) -> "Done":
        """Run it in a shell to its end, without a terminal."""
        began, used = time.monotonic(), _cpu_seconds()
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        seconds = time.monotonic() - began
        used = _cpu_seconds() - used
        return Done(command, done.returncode, done.stdout, done.stderr, seconds, used)

    def look(self, seconds: float) -> bool:
        """Read what there is on every terminal; whether there was something."""
        by_fd = {one.fd: one for one in self.terminals}
        ready, _, _ = select.select(list(by_fd), [], [], seconds)
        for fd in ready:
            by_fd[fd].take()
        return bool(ready)


def _cpu_seconds() -> float:
    """Of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    command: str
    code: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float

    def expect(self, out: str, err: str = "", codes: Sequence[int] = (0,)) -> "Done":
        """Both streams word for word, as regular expressions, and the exit code; else Stumble."""
        if self.code not in codes:
            raise Stumble(f"`{self.command}` ended with {self.code}:\n{self.out}{self.err}")
        for printed, pattern in ((self.out, out), (self.err, err)):
            if not re.fullmatch(pattern, printed, re.S):
                raise Stumble(f"`{self.command}` printed\n{printed}\nand not\n{pattern}")
        return self


class Terminal:
    """One process on a terminal; killed at the end of the ``with`` block if it is still there.

    ``stdout``: a file, if only the rest shall be on the terminal.
    """

    def __init__(self, newcomer: Newcomer, *command: str, stdout: Path | None = None) -> None:
        self.command = " ".join(command)
        self.text = ""  # without what is meant for the terminal itself
        self._chunks: list[tuple[float, int]] = []  # when, and how long the text was then
        self._seen = 0  # what was waited for already
        self._newcomer = newcomer
        self.fd, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, COLUMNS))
        # Ctrl-C reaches those whose terminal it is: the first that a new session opens.
        own = ["/bin/sh", "-c", 'exec "$@" <"$0"', os.ttyname(theirs)]
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, theirs)
            out = theirs if stdout is None else opened.enter_context(stdout.open("wb"))
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                [*own, *command],
                cwd=newcomer.home,
                env=newcomer.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=theirs,
                start_new_session=True,
            )
        self.pid = self._process.pid
        newcomer.terminals.append(self)

    def wait(self, pattern: str, *, seconds: float = 30.0) -> tuple["re.Match[str]", float]:
        """The next match behind the one before, and when it was there (monotonic seconds).

        Stumble if the process ends without it, or does not print it in time.
        """
        deadline = time.monotonic() + seconds
        searched = re.compile(pattern, re.M)
        while (match := searched.search(self.text, self._seen)) is None:
            ended = self._process.poll() is not None
            if not self._newcomer.look(0.0 if ended else 0.05) and (
                ended or time.monotonic() > deadline
            ):
                there = self.text[self._seen :] or "nothing"
                raise Stumble(f"`{self.command}` did not print\n{pattern}\nbut\n{there}")
        self._seen = match.end()
        return match, next(at for at, end in self._chunks if end >= match.end())

    def ctrl_c(self) -> int:
        """Typed; the exit code."""
        os.write(self.fd, b"\x03")
        return self.end()

    def end(self) -> int:
        """Wait for it; the exit code."""
        deadline = time.monotonic() + SECONDS_MAX
        while self._process.poll() is None:
            self._newcomer.look(0.02)
            if time.monotonic() > deadline:
                raise Stumble(f"`{self.command}` does not end:\n{self.text}")
        while self._newcomer.look(0.0):
            pass
        return self._process.wait()

    def take(self) -> None:
        """Read once what is there."""
        try:
            data = os.read(self.fd, 65_536)
        except OSError:  # nobody has the other end any more
            self._newcomer.terminals.remove(self)
            return
        self.text += _CONTROLS.sub("", data.decode(errors="replace"))
        self._chunks.append((time.monotonic(), len(self.text)))

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self in self._newcomer.terminals:
            self._newcomer.terminals.remove(self)
        os.close(self.fd)
