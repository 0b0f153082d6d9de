"""``tailrace cluster``: its brokers, and whether they are well; ``cli_moving`` moves things."""

from typing import TYPE_CHECKING

import click

from tailrace.client.cli_group import span
from tailrace.client.cli_health import follow, look, tell
from tailrace.client.cli_moving import drain, elect, reassign
from tailrace.client.cli_run import duration_s, show, with_client
from tailrace.protocol.console import Console, align
from tailrace.protocol.units import format_count, format_size

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import ClusterInfo


@click.group()
def cluster() -> None:
    """The cluster, its brokers, their health, and what moves between them."""


for moving in (elect, reassign, drain):
    cluster.add_command(moving)


@cluster.command()
@click.option("--wait", metavar="DUR", help="Wait so long for it to be healthy.")
@click.option("--watch", is_flag=True, help="Show it again and again: until Ctrl-C, or --wait.")
@click.option("--local", is_flag=True, help="Ask the broker of this machine by HTTP.")
@click.pass_obj
def health(console: Console, wait: str | None, watch: bool, local: bool) -> int:
    """Exit 0 if healthy, 6 if not, 3 if nobody answers."""
    wait_s = duration_s("--wait", wait)
    if watch and console.output == "json":
        raise click.UsageError("-O json is one document: take -O ndjson with --watch")
    if wait_s is not None or watch:
        return follow(console, local, wait_s=wait_s, watch=watch)
    found = look(console, local)
    tell(console, found)
    return found.code


@cluster.command()
@click.pass_obj
def describe(console: Console) -> None:
    """Show the cluster and its brokers."""
    found = ask(console)
    metadata = f"{found.metadata}, {'ok' if found.metadata_ok else 'not ok'}"
    head = "  ".join(
        (
            f"cluster {found.cluster_id}",
            found.version,
            f"metadata {metadata}",
            f"controller {found.controller or 'none'}",
            f"topics {format_count(found.topics)}",
            f"partitions {format_count(found.partitions)}",
            "healthy" if found.healthy else "not healthy",
        )
    )
    show(console, found, "\n".join((head, *found.problems, brokers_table(found))))


@cluster.command()
@click.pass_obj
def brokers(console: Console) -> None:
    """List the brokers."""
    found = ask(console)
    show(console, {"brokers": found.brokers}, brokers_table(found))


def ask(console: Console) -> "ClusterInfo":
    async def work(client: "Client") -> "ClusterInfo":
        return await client.admin.describe_cluster()

    return with_client(console, work)


def brokers_table(cluster: "ClusterInfo") -> str:
    rows = [("BROKER", "STATE", "ADDRESS", "HTTP", "LEADS", "REPLICAS", "FREE", "UP", "VERSION")]
    rows += [
        (
            *(one.id, one.state, one.address, one.http or "off"),
            *(format_count(one.leaders), format_count(one.replicas)),
            f"{format_size(one.disk_free_bytes)} of {format_size(one.disk_total_bytes)}",
            *(span(one.uptime_ms // 1000), one.version),
        )
        for one in cluster.brokers
    ]
    return align(rows)
