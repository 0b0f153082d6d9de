"""``tailrace doctor``: is this machine fit for a broker, and does one answer?

Each check says what it found and, if that is not good, the one thing to do about it.
"""

import importlib.util
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tailrace.client.cli_cluster import ask_ready, local_http
from tailrace.client.cli_run import show, with_client
from tailrace.protocol.console import EXIT_UNHEALTHY, Console, align
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_size

if TYPE_CHECKING:
    from tailrace.broker.config import Config
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import ClusterInfo

NOFILE_MIN = 4_096
DISK_FREE_MIN = 0.05
FSYNC_MS_MAX = 20.0
FSYNCS = 20
SKEW_SECONDS_MAX = 1.0
HTTP_SECONDS_MAX = 2.0
EXTRAS = ("trio", "msgspec", "prometheus_client", "starlette", "hypercorn")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    value: object
    detail: str
    fix: str = ""


@click.command()
@click.option("-c", "--config", "path", metavar="FILE", help="The broker's configuration file.")
@click.pass_obj
def doctor(console: Console, path: str | None) -> int:
    """Check this machine and the broker; exit 6 if something is not right."""
    checks = list(run_checks(console, path))
    ok = all(check.ok for check in checks)
    lines = [("ok" if c.ok else "NOT OK", c.name, c.detail) for c in checks]
    fixes = {c.name: c.fix for c in checks if c.fix}
    table = [align(lines), *(f"fix {name}: {fix}" for name, fix in fixes.items())]
    show(console, {"ok": ok, "checks": checks}, "\n".join(table))
    return 0 if ok else EXIT_UNHEALTHY


def run_checks(console: Console, path: str | None) -> Iterable[Check]:
    """Every check, always in this order."""
    config = load_config(path)
    folder = Path(tempfile.gettempdir() if config is None else config.storage.data_dir)
    folder = nearest(folder)
    yield python()
    yield extras()
    yield ports(config)
    yield nofile()
    yield disk_free(folder)
    yield fsync(folder)
    skew, answer, metadata = broker(console)
    yield skew
    yield answer
    yield http(console, config)
    yield metadata


def load_config(path: str | None) -> "Config | None":
    """What ``serve`` would run with; None without the server, whose rooms know how to read it."""
    if importlib.util.find_spec("msgspec") is None:
        return None
    from tailrace.broker.cli_config import load_sources

    return load_sources(path)


def python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, version, version, "" if ok else "Install Python 3.11 or newer.")


def extras() -> Check:
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if not missing:
        return Check("extras", True, "server", "server is installed")
    detail = f"missing: {', '.join(missing)}"
    return Check("extras", False, missing, detail, "pip install 'tailrace[server]'")


def ports(config: "Config | None") -> Check:
    """A port is fine if it is free, or if a broker of ours already has it."""
    wanted = {"listeners.client.bind": ("127.0.0.1", 7400), "http.bind": ("127.0.0.1", 7480)}
    if config is not None:
        wanted = {
            f"listeners.{one.name}.bind": (one.bind.host, one.bind.port) for one in config.listeners
        }
        if config.http.bind is not None:
            wanted["http.bind"] = (config.http.bind.host, config.http.bind.port)
    taken: list[str] = []
    for key, (host, port) in wanted.items():
        ours = is_ready if key == "http.bind" else speaks_tailrace
        if not can_bind(host, port) and not ours(host, port):
            taken.append(f"{host}:{port} ({key})")
    if not taken:
        return Check("ports", True, [], "free, or a broker has them")
    fix = "Stop what listens there, or set another bind."
    return Check("ports", False, taken, f"taken: {', '.join(taken)}", fix)


def can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def speaks_tailrace(host: str, port: int) -> bool:
    from tailrace.protocol.connection import ClientConnection

    reach, _ = local_http(f"{host}:{port}")
    machine = ClientConnection("doctor", "tailrace-doctor")
    try:
        with socket.create_connection((reach, port), timeout=1) as connection:
            connection.sendall(machine.open())
            return connection.recv(4) == b"\x89TLR"
    except OSError:
        return False


def is_ready(host: str, port: int) -> bool:
    """Whether a broker's HTTP answers there."""
    try:
        ask_ready(*local_http(f"{host}:{port}"), timeout_seconds=1)
    except TailraceError:
        return False
    return True


def nofile() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= NOFILE_MIN
    fix = "" if ok else f"ulimit -n 65536 (the unit file sets LimitNOFILE); need {NOFILE_MIN:,}"
    return Check("nofile", ok, soft, f"{soft:,} open files", fix)


def disk_free(folder: Path) -> Check:
    stat = os.statvfs(folder)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    ok = free >= total * DISK_FREE_MIN
    detail = f"{format_size(free)} of {format_size(total)} free at {folder}"
    fix = "" if ok else "Free space: below storage.min_free writes are refused."
    return Check("disk_free", ok, free, detail, fix)


def fsync(folder: Path) -> Check:
    """The median of a few syncs: what every durable send waits for at least."""
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            os.write(file.fileno(), b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1_000)
    median = sorted(taken)[FSYNCS // 2]
    ok = median <= FSYNC_MS_MAX
    fix = "" if ok else "Use a faster disk: each durable send waits for a sync."
    return Check("fsync_ms", ok, round(median, 3), f"{median:.2f} ms median at {folder}", fix)


def broker(console: Console) -> tuple[Check, Check, Check]:
    """Clock, answer and metadata of the broker that the client would use."""

    async def work(client: "Client") -> "tuple[float, ClusterInfo]":
        before = time.time()
        info = await client.admin.describe_cluster()
        middle = (before + time.time()) / 2
        return max(one.last_seen for one in info.brokers) / 1_000 - middle, info

    try:
        skew, info = with_client(console, work)
    except TailraceError as error:
        unknown = "not known: no broker answers"
        return (
            Check("clock_skew", False, None, unknown, "See broker."),
            Check("broker", False, None, error.message, error.hint),
            Check("metadata", False, None, unknown, "See broker."),
        )
    near = abs(skew) <= SKEW_SECONDS_MAX
    detail = f"{skew:+.3f} s against the broker"
    clock_fix = "" if near else "Check NTP on both machines."
    found = "; ".join(info.problems) or f"{info.version}, cluster {info.cluster_id}"
    fix = "" if info.healthy else "Look at the broker's log."
    state = "ok" if info.metadata_ok else "not reachable for the broker"
    store_fix = "" if info.metadata_ok else "Look at the broker's log."
    store = f"{info.metadata}, {state}"
    return (
        Check("clock_skew", near, round(skew, 3), detail, clock_fix),
        Check("broker", info.healthy, info.version, found, fix),
        Check("metadata", info.metadata_ok, info.metadata, store, store_fix),
    )


def http(console: Console, config: "Config | None") -> Check:
    """The broker's own word on whether it is ready."""
    if config is not None and config.http.bind is None:
        return Check("http", True, None, "off (http.bind is empty)")
    host, port = local_http(None if config is None else str(config.http.bind))
    url = f"http://{host}:{port}/readyz"
    try:
        found = ask_ready(host, port, min(HTTP_SECONDS_MAX, console.timeout_seconds))
    except TailraceError as error:
        fix = "Set TAILRACE_HTTP__BIND to the broker's http.bind."
        return Check("http", False, None, error.message, fix)
    detail = "; ".join(found.problems) or f"{url} is ready"
    return Check("http", found.ready, url, detail, "" if found.ready else "See the broker's log.")


def nearest(folder: Path) -> Path:
    """The folder, or the closest parent that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
