"""``tailrace doctor``: is this machine fit for a broker, and does one answer?

Each check says what it found and, if that is not good, the one thing to do about it.
"""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tailrace import cli_doctor_machine as machine
from tailrace.cli import EXTRAS, installed
from tailrace.cli_doctor_machine import Check
from tailrace.client.cli_ready import ask_ready, local_http
from tailrace.client.cli_run import show, with_client
from tailrace.protocol.console import EXIT_UNHEALTHY, Console, align
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_duration

if TYPE_CHECKING:
    from tailrace.broker.config import Config
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import ClusterInfo

SKEW_SECONDS_MAX = 1.0
HTTP_SECONDS_MAX = 2.0


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
    yield machine.python()
    yield machine.extras()
    yield machine.ports(config)
    yield machine.nofile(folder)
    yield machine.disk_free(config, folder)
    yield machine.fsync(folder)
    skew, answer, metadata = broker(aimed(console, config))
    yield skew
    yield answer
    yield http(console, config, answer)
    yield metadata


def load_config(path: str | None) -> "Config | None":
    """What ``serve`` would run with; None without the server, whose rooms know how to read it."""
    if not all(map(installed, EXTRAS)):
        return None
    from tailrace.broker.cli_config import load_sources

    return load_sources(path)


def aimed(console: Console, config: "Config | None") -> Console:
    """At the broker that is asked for, else at the one that the configuration is about."""
    if console.url is not None or config is None:
        return console
    client = next((one for one in config.listeners if one.name == "client"), None)
    if client is None:
        return console
    address = client.advertise or client.bind
    if not address.port:
        return console
    host, port = local_http(str(address))
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return replace(console, url=f"{'tailraces' if client.tls else 'tailrace'}://{where}")


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
    found = "; ".join(info.problems) or f"{info.version}, cluster {info.cluster_id}"
    fix = "" if info.healthy else "Look at the broker's log."
    state = "ok" if info.metadata_ok else "not reachable for the broker"
    store_fix = "" if info.metadata_ok else "Look at the broker's log."
    store = f"{info.metadata}, {state}"
    return (
        clock_skew(skew),
        Check("broker", info.healthy, info.version, found, fix),
        Check("metadata", info.metadata_ok, info.metadata, store, store_fix),
    )


def clock_skew(skew: float) -> Check:
    """``skew``: seconds by which the broker is ahead of this machine."""
    near = abs(skew) <= SKEW_SECONDS_MAX
    behind = "ahead of" if skew >= 0 else "behind"
    detail = f"the broker's clock is {format_duration(abs(skew))} {behind} this machine's"
    fix = "Let NTP set the clock that is wrong: sudo timedatectl set-ntp true."
    return Check("clock_skew", near, round(skew, 3), detail, "" if near else fix)


def http(console: Console, config: "Config | None", answer: Check) -> Check:
    """The broker's own word on whether it is ready."""
    if config is not None and config.http.bind is None:
        return Check("http", True, None, "off (http.bind is empty)")
    host, port = local_http(None if config is None else str(config.http.bind))
    url = f"http://{host}:{port}/readyz"
    try:
        found = ask_ready(host, port, min(HTTP_SECONDS_MAX, console.timeout_seconds))
    except TailraceError as error:
        fix = "Set TAILRACE_HTTP__BIND to the broker's http.bind, or name its file: -c FILE."
        if answer.value is None:
            fix = "See broker."
        return Check("http", False, None, error.message, fix)
    detail = "; ".join(found.problems) or f"{url} is ready"
    return Check("http", found.ready, url, detail, "" if found.ready else "See the broker's log.")
