"""``tailrace cluster health --local``: what a container's health check asks.

The other commands of ``cluster`` come with replication; until then their names are reserved.
"""

import http.client
import json
import os

import click

from tailrace.protocol import texts_cli
from tailrace.protocol.console import EXIT_UNHEALTHY, EXIT_UNREACHABLE, Console

HTTP_BIND = "127.0.0.1:7480"
LATER = ("describe", "brokers", "reassign", "drain", "elect")


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
@click.pass_context
def health(ctx: click.Context, local: bool) -> None:
    """Exit 0 if healthy, 6 if not, 3 if nobody answers."""
    if not local:
        raise texts_cli.later_command(command="cluster health without --local")
    console: Console = ctx.obj
    bind = os.environ.get("TAILRACE_HTTP__BIND") or HTTP_BIND
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    connection = http.client.HTTPConnection(host, int(port), timeout=console.timeout_seconds)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not console.quiet:
            click.echo(f"UNREACHABLE  http://{host}:{port}/readyz ({error})", err=True)
        ctx.exit(EXIT_UNREACHABLE)
    finally:
        connection.close()
    healthy = response.status == 200
    checks = "  ".join(f"{c['name']} {'ok' if c['ok'] else c['detail']}" for c in body["checks"])
    if not console.quiet:
        click.echo(
            console.render(
                {"healthy": healthy, **body}, f"{'HEALTHY' if healthy else 'UNHEALTHY'}  {checks}"
            )
        )
    ctx.exit(0 if healthy else EXIT_UNHEALTHY)
