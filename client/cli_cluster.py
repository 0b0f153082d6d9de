"""``tailrace cluster health --local``: what a container's health check asks.

The other commands of ``cluster`` come with replication; until then their names are reserved.
"""

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import click

from tailrace.client.cli_run import show
from tailrace.protocol import texts_cli, texts_client
from tailrace.protocol.console import EXIT_UNHEALTHY, Console

HTTP_BIND = "127.0.0.1:7480"
BODY_BYTES_MAX = 1 << 20
LATER = ("describe", "brokers", "reassign", "drain", "elect")
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Readiness:
    """What ``/readyz`` of one broker said."""

    ready: bool
    checks: dict[str, bool]
    problems: list[str]  # of the checks that failed; a broker may be ready all the same


class ClusterGroup(click.Group):
    """Refuses the names that later releases bring with T086, not as a typo."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER:
            raise texts_cli.later_command(command=f"cluster {cmd_name}")
        return super().get_command(ctx, cmd_name)


@click.group(cls=ClusterGroup)
def cluster() -> None:
    """Health of the cluster."""


@cluster.command()
@click.option("--local", is_flag=True, help="Ask the broker of this machine by HTTP.")
@click.pass_obj
def health(console: Console, local: bool) -> int:
    """Exit 0 if healthy, 6 if not, 3 if nobody answers."""
    if not local:
        raise texts_cli.later_command(command="cluster health without --local")
    host, port = local_http()
    found = ask_ready(host, port, console.timeout_seconds)
    if not console.quiet:
        show(console, health_document(found), health_line(found))
    return 0 if found.ready else EXIT_UNHEALTHY


def health_document(found: Readiness) -> dict[str, object]:
    """One broker knows of itself only: what takes a look at all of them is null."""
    return {
        "healthy": found.ready,
        "problems": found.problems,
        "brokers_up": int(found.ready),
        "brokers_total": 1,
        "under_replicated": None,
        "below_min_isr": None,
        "offline": None,
        "metadata_ok": found.checks.get("metadata", False),
    }


def health_line(found: Readiness) -> str:
    head = "HEALTHY" if found.ready else "UNHEALTHY"
    metadata = "ok" if found.checks.get("metadata") else "not ok"
    return "  ".join(
        (head, f"brokers {int(found.ready)}/1", f"metadata {metadata}", *found.problems)
    )


def local_http(bind: str | None = None) -> tuple[str, int]:
    """Where the broker of this machine answers HTTP: ``bind``, else the environment, else 7480."""
    text = bind or os.environ.get("TAILRACE_HTTP__BIND") or HTTP_BIND
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not port.isascii() or not port.isdigit():
        raise texts_cli.bad_value("TAILRACE_HTTP__BIND", key=text, reason="is not HOST:PORT")
    return _ANYWHERE.get(host, host), int(port)


def ask_ready(host: str, port: int, timeout_seconds: float) -> Readiness:
    """GET /readyz; ConnectError T001 if nobody answers, T004 if it is no broker."""
    address = f"{host}:{port}"
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body: Any = json.loads(response.read(BODY_BYTES_MAX))
        checks: dict[str, bool] = {check["name"]: check["ok"] for check in body["checks"]}
        problems = [f"{c['name']}: {c['detail']}" for c in body["checks"] if not c["ok"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        reason = "what answers there is no broker's HTTP"
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
        took_s = time.monotonic() - began
        raise texts_client.no_broker([(address, reason)], elapsed_s=took_s) from error
    finally:
        connection.close()
    return Readiness(response.status == 200, checks, problems)
