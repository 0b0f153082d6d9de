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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tailrace.client.cli_run import with_client
from tailrace.client.client import Client
from tailrace.protocol.console import EXIT_UNHEALTHY, Console, align
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_size

if TYPE_CHECKING:
    from tailrace.broker.config import Config

NOFILE_MIN = 4_096
DISK_FREE_MIN = 0.05
FSYNC_MS_MAX = 20.0
FSYNCS = 20
SKEW_SECONDS_MAX = 1.0
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
@click.option("-c", "--config", "path", help="The broker's configuration file.")
@click.pass_context
def doctor(ctx: click.Context, path: str | None) -> None:
    """Check this machine and the broker; exit 6 if something is not right."""
    console: Console = ctx.obj
    checks = list(run_checks(console, path))
    ok = all(check.ok for check in checks)
    rows = [
        (check.name, "ok" if check.ok else "NOT OK", check.detail, check.fix) for check in checks
    ]
    click.echo(console.render({"ok": ok, "checks": [asdict(c) for c in checks]}, align(rows)))
    ctx.exit(0 if ok else EXIT_UNHEALTHY)


def run_checks(console: Console, path: str | None) -> Iterable[Check]:
    yield python()
    yield extras()
    folder = Path(tempfile.gettempdir())
    if importlib.util.find_spec("msgspec") is not None:
        from tailrace.broker.cli_config import load_sources

        config = load_sources(path)
        yield ports(config)
        folder = nearest(Path(config.storage.data_dir))
    yield nofile()
    yield disk_free(folder)
    yield fsync(folder)
    yield from broker(console)


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


def ports(config: "Config") -> Check:
    """A port is fine if it is free, or if a broker of ours already has it."""
    taken: list[str] = []
    for listener in config.listeners:
        host, port = listener.bind.host, listener.bind.port
        if not can_bind(host, port) and not speaks_tailrace(host, port):
            taken.append(f"{listener.bind} (listeners.{listener.name})")
    if not taken:
        return Check("ports", True, [], "free, or a broker has them")
    fix = "Stop what listens there, or set another listeners.NAME.bind."
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

    reach = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    machine = ClientConnection("doctor", "tailrace-doctor")
    try:
        with socket.create_connection((reach, port), timeout=1) as connection:
            connection.sendall(machine.open())
            return connection.recv(4) == b"\x89TLR"
    except OSError:
        return False


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
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(FSYNCS):
            os.write(file.fileno(), b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1_000)
    median = sorted(taken)[FSYNCS // 2]
    ok = median <= FSYNC_MS_MAX
    fix = "" if ok else "Use a faster disk: each durable send waits for a sync."
    return Check("fsync_ms", ok, round(median, 3), f"{median:.2f} ms median at {folder}", fix)


def broker(console: Console) -> Iterable[Check]:
    """Clock, answer and metadata of the broker that the client would use."""

    async def work(client: Client) -> tuple[float, str, bool]:
        before = time.time()
        info = await client.admin.describe_cluster()
        middle = (before + time.time()) / 2
        seen = max(one.last_seen for one in info.brokers) / 1_000
        problems = "; ".join(info.problems) or f"cluster {info.cluster_id}, {info.version}"
        return seen - middle, problems, info.metadata_ok

    try:
        skew, detail, metadata_ok = with_client(console, work)
    except TailraceError as error:
        yield Check("broker", False, None, error.message, error.hint)
        return
    ok = abs(skew) <= SKEW_SECONDS_MAX
    fix = "" if ok else "Check NTP on both machines."
    yield Check("clock_skew", ok, round(skew, 3), f"{skew:+.3f} s against the broker", fix)
    yield Check("broker", True, None, detail)
    fix = "" if metadata_ok else "Look at the broker's log."
    yield Check("metadata", metadata_ok, metadata_ok, "ok" if metadata_ok else "not ok", fix)
    yield http(console)


def http(console: Console) -> Check:
    """The broker's own word on whether it is ready."""
    import http.client

    bind = os.environ.get("TAILRACE_HTTP__BIND") or "127.0.0.1:7480"
    connection = http.client.HTTPConnection(bind, timeout=min(2.0, console.timeout_seconds))
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        fix = "Set TAILRACE_HTTP__BIND to the broker's http.bind."
        return Check("http", False, None, f"http://{bind}/readyz: {error}", fix)
    finally:
        connection.close()
    fix = "" if status == 200 else f"curl http://{bind}/readyz says which check fails."
    return Check("http", status == 200, status, f"http://{bind}/readyz answers {status}", fix)


def nearest(folder: Path) -> Path:
    """The folder, or the closest parent that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
