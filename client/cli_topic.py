"""``tailrace topic``: create, list, describe, alter, delete; what removes records is beside it."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tailrace.client.cli_records import delete_records, erase
from tailrace.client.cli_run import (
    confirm,
    plural,
    say,
    settings,
    show,
    show_document,
    with_client,
)
from tailrace.protocol import texts_cli
from tailrace.protocol.console import Console, align
from tailrace.protocol.units import UNLIMITED, format_count, format_size

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import PartitionInfo, TopicDetail, TopicInfo

LATER = ("purge", "export", "import")


class TopicGroup(click.Group):
    """Refuses the names that later releases bring with T086, not as a typo."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER:
            raise texts_cli.later_command(command=f"topic {cmd_name}")
        return super().get_command(ctx, cmd_name)


@click.group(cls=TopicGroup)
def topic() -> None:
    """Create, list, change and delete topics."""


topic.add_command(delete_records)
topic.add_command(erase)


@topic.command()
@click.argument("name")
@click.option("-p", "--partitions", type=click.IntRange(min=1), help="Default: the broker's, 1.")
@click.option("-r", "--replicas", type=click.IntRange(min=1), help="Copies of each; 1 today.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="retention=2d, say.")
@click.option("--if-not-exists", is_flag=True, help="It is fine if it is there already.")
@click.pass_obj
def create(
    console: Console,
    name: str,
    partitions: int | None,
    replicas: int | None,
    pairs: tuple[str, ...],
    if_not_exists: bool,
) -> None:
    """Create a topic."""

    async def work(client: "Client") -> "TopicDetail":
        return await client.admin.create_topic(
            name,
            partitions=partitions,
            replicas=replicas,
            config=settings(pairs),
            exist_ok=if_not_exists,
        )

    detail = with_client(console, work)
    say(console, f"created topic {detail.name} ({plural(detail.partitions, 'partition')})")
    show_document(console, detail)


@topic.command("list")
@click.option("--internal", is_flag=True, help="Internal topics too.")
@click.pass_obj
def list_topics(console: Console, internal: bool) -> None:
    """List all topics."""

    async def work(client: "Client") -> "list[TopicInfo]":
        return await client.admin.list_topics(internal=internal)

    topics = with_client(console, work)
    rows = [("TOPIC", "PARTITIONS", "REPLICAS", "RECORDS", "SIZE", "CLEANUP", "DURABILITY")]
    rows += [
        (
            info.name,
            str(info.partitions),
            str(info.replicas),
            format_count(info.records),
            format_size(info.size_bytes),
            info.cleanup,
            info.durability,
        )
        for info in topics
    ]
    show(console, {"topics": topics}, align(rows))


@topic.command()
@click.argument("name")
@click.pass_obj
def describe(console: Console, name: str) -> None:
    """Show a topic, its settings and its partitions."""

    async def work(client: "Client") -> "TopicDetail":
        return await client.admin.describe_topic(name)

    detail = with_client(console, work)
    show(console, detail, describe_table(detail))


@topic.command()
@click.argument("name")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="retention=2d, say.")
@click.option("--unset", "unset", multiple=True, metavar="KEY", help="Back to the default.")
@click.pass_obj
def alter(console: Console, name: str, pairs: tuple[str, ...], unset: tuple[str, ...]) -> None:
    """Change settings of a topic: all of them, or none."""
    given = settings(pairs)
    if both := sorted(given.keys() & set(unset)):
        raise click.UsageError(f"--set and --unset of {both[0]}")
    changes: dict[str, str | None] = {**given, **dict.fromkeys(unset)}
    if not changes:
        raise click.UsageError("nothing to change: give --set KEY=VALUE or --unset KEY")

    async def work(client: "Client") -> "TopicDetail":
        return await client.admin.alter_topic(name, config=changes)

    detail = with_client(console, work)
    changed = " ".join(f"{e.key}={e.value}" for e in detail.config if e.key in changes)
    say(console, f"altered topic {name}: {changed}")
    show_document(console, detail)


@topic.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(console: Console, names: tuple[str, ...], yes: bool) -> None:
    """Delete topics and all their records."""
    confirm(f"Delete {', '.join(names)} and all records?", yes)
    deleted: list[str] = []

    async def work(client: "Client") -> None:
        for name in names:
            await client.admin.delete_topic(name)
            deleted.append(name)

    try:
        with_client(console, work)
    finally:
        if deleted:
            say(console, f"deleted {plural(len(deleted), 'topic')}: {', '.join(deleted)}")
    show_document(console, {"deleted": deleted})


def describe_table(detail: "TopicDetail") -> str:
    """The topic in one line, then a row a partition."""
    head = "  ".join(
        (
            detail.name,
            f"partitions {detail.partitions}",
            f"replicas {detail.replicas}",
            f"min_isr {detail.min_isr}",
            *keeping(detail),
            f"cleanup {detail.cleanup}",
            f"durability {detail.durability}",
            format_size(detail.size_bytes),
            plural(detail.records, "record"),
        )
    )
    rows: list[tuple[str, ...]] = [
        ("PART", "LEADER", "ISR", "START", "END", "SIZE", "LAST APPEND", "STATUS")
    ]
    rows += [partition_row(partition) for partition in detail.partition_list]
    parts = [head, align(rows)]
    if any(partition.compaction for partition in detail.partition_list):
        parts.append(compaction_table(detail.partition_list))
    if detail.groups:
        parts.append(f"read by {', '.join(detail.groups)}")
    return "\n".join(parts)


def keeping(detail: "TopicDetail") -> list[str]:
    """What in force removes records: nothing of it for a topic that is only compacted."""
    if detail.cleanup == "compact":
        return []
    config = {entry.key: entry.value for entry in detail.config}
    shown = [f"retention {config.get('retention', '')}"]
    if config.get("retention_size", UNLIMITED) != UNLIMITED:
        shown.append(f"retention_size {config['retention_size']}")
    if config.get("on_full") == "drop_oldest":
        shown.append("on_full drop_oldest")
    return shown


def compaction_table(partitions: "Sequence[PartitionInfo]") -> str:
    """How far each partition of a compacted topic is cleaned, and why no further."""
    rows: list[tuple[str, ...]] = [
        ("PART", "COMPACTION", "CLEAN TO", "DIRTY", "RATIO", "LAST RUN", "WHY")
    ]
    for partition in partitions:
        found = partition.compaction
        if found is None:
            continue
        running = f" {found.progress:.0%}" if found.state == "running" else ""
        why = found.reason if found.last_error is None else f"{found.last_error}; {found.reason}"
        rows.append(
            (
                str(partition.partition),
                f"{found.state}{running}",
                format_count(found.clean_offset),
                format_size(found.dirty_bytes),
                f"{found.dirty_ratio:.0%}",
                ago(found.last_run_at),
                why,
            )
        )
    return align(rows)


def partition_row(partition: "PartitionInfo") -> tuple[str, ...]:
    return (
        str(partition.partition),
        partition.leader or "-",
        ",".join(partition.isr),
        format_count(partition.log_start),
        format_count(partition.log_end),
        format_size(partition.size_bytes),
        ago(partition.last_append_time),
        partition.status,
    )


def ago(time_ms: int | None) -> str:
    if time_ms is None:
        return "-"
    return f"{max(0.0, time.time() - time_ms / 1_000):,.1f} s ago"
