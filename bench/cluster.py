"""Three brokers and an etcd on this machine, as processes on loopback, for the benches."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tailrace.bench.processes import READY_SECONDS_MAX, free_ports, read_ready, variables

BROKERS = 3
STOP_SECONDS = 10


def etcd_binary() -> str | None:
    """The one on PATH; None: there is none, and no cluster."""
    return shutil.which("etcd")


@contextmanager
def cluster(folder: Path, settings: Mapping[str, str] | None = None) -> Generator[str]:
    """The URL of a cluster that serves. ``settings``: {"topic.min_isr": "2"}, of every broker."""
    binary = etcd_binary()
    assert binary is not None, "no etcd on PATH"
    etcd_port, peer_port, *ports = free_ports(2 + 2 * BROKERS)
    url, peer = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    options = [
        *(f"--data-dir={folder / 'etcd'}", "--name=e1", "--logger=zap"),
        *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        *(f"--initial-cluster=e1={peer}", "--initial-cluster-state=new"),
    ]
    with ExitStack() as stack:
        stack.enter_context(process([binary, *options], folder / "etcd.log", {}))
        started: list[subprocess.Popen[str]] = []
        for number in range(BROKERS):
            own = {
                "broker.id": f"n{number + 1}",
                "listeners.client.bind": f"127.0.0.1:{ports[2 * number]}",
                "http.bind": f"127.0.0.1:{ports[2 * number + 1]}",
                "storage.data_dir": str(folder / f"n{number + 1}"),
                "cluster.metadata": "etcd",
                "cluster.etcd": url,
                "security.allow_insecure": "true",
                **(settings or {}),
            }
            command = [sys.executable, "-m", "tailrace.cli", "-O", "json", "serve"]
            log = folder / f"n{number + 1}.log"
            started.append(stack.enter_context(process(command, log, own)))
        for one in started:
            if not read_ready(one, READY_SECONDS_MAX):
                raise RuntimeError(f"a broker did not start; see {folder}")
        yield "tailrace://" + ",".join(f"127.0.0.1:{port}" for port in ports[::2])


@contextmanager
def process(
    command: list[str], log: Path, settings: Mapping[str, str]
) -> Generator[subprocess.Popen[str]]:
    """One that is ended with the block."""
    environ = {"ETCD_UNSUPPORTED_ARCH": os.uname().machine, "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as errors:
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if settings else errors,
            stderr=errors,
            text=True,
            env={**os.environ, **environ, **variables(settings)},
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        if started.stdout is not None:
            started.stdout.close()
