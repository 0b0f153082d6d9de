"""Servers of peers as processes: on free ports of 127.0.0.1, in a folder, ended by their ids."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from tailrace.bench.cpus import BROKER, pin

READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.02
TAIL_CHARACTERS = 1_500
HOME = Path(__file__).resolve().parents[1] / ".venv-peers"  # what `make bench-peers` installs


def found(command: str, install: str) -> str:
    """Where a command is: with the clients, beside this Python, in PATH; else FileNotFoundError."""
    places = [str(HOME / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    path = shutil.which(command, path=os.pathsep.join([*places, "/usr/sbin", "/sbin"]))
    if path is None:
        raise FileNotFoundError(f"no {command}: {install}")
    return path


def said(*command: str) -> str:
    """What a command prints (``--version``), without the space around it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=READY_SECONDS_MAX)
    return (done.stdout or done.stderr).strip()


@contextlib.contextmanager
def serving(
    folder: Path,
    name: str,
    command: Sequence[str],
    port: int,
    env: Mapping[str, str] | None = None,
) -> Generator[None]:
    """A server that listens on a port, until the context is left: all of its group is gone then.

    What it says goes into ``folder/name.log``; RuntimeError with the end of that if it does not
    listen after a minute.
    """
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    try:
        pin(process.pid, BROKER)
        if not listens(process, port):
            tail = log.read_text(errors="replace")[-TAIL_CHARACTERS:]
            raise RuntimeError(f"{name} does not listen: {tail}")
        yield
    finally:
        end(process)


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """True as soon as somebody does; False if the process ended, or after a minute."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        time.sleep(LOOK_SECONDS)
    return False


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the group that it leads, as all it has is thrown away; return when it is gone."""
    deadline = time.monotonic() + STOP_SECONDS_MAX
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the group bears the id of whom we started
        process.wait(STOP_SECONDS_MAX)
        while time.monotonic() < deadline:  # its children may still have the folder open
            os.killpg(process.pid, 0)
            time.sleep(LOOK_SECONDS)
    process.wait(STOP_SECONDS_MAX)
