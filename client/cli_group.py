"""``tailrace group``: consumer groups, how far they are, and where they go on."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from tailrace.client.cli_offsets import parse_position
from tailrace.client.cli_run import (
    confirm,
    duration_s,
    plural,
    say,
    show,
    show_document,
    with_client,
)
from tailrace.client.cli_topic import ago
from tailrace.protocol.console import EXIT_UNHEALTHY, Console, align
from tailrace.protocol.positions import Position
from tailrace.protocol.units import format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tailrace.client.client import Client
    from tailrace.client.grouping import To
    from tailrace.protocol.shapes import (
        GroupDetail,
        GroupInfo,
        GroupLag,
        MemberInfo,
        OffsetChange,
        PartitionLag,
        TopicPartition,
    )

CLEAR = "\x1b[H\x1b[2J"  # a terminal that is watched


@click.group()
def group() -> None:
    """Consumer groups: members, lag, committed offsets."""


@group.command("list")
@click.pass_obj
def list_groups(console: Console) -> None:
    """List all consumer groups."""

    async def work(client: "Client") -> "list[GroupInfo]":
        return await client.admin.list_groups()

    groups = with_client(console, work)
    rows = [("GROUP", "STATE", "MEMBERS", "LAG", "BEHIND", "VERDICT", "TOPICS")]
    rows += [
        (
            info.name,
            info.state,
            format_count(info.members),
            format_count(info.lag_records),
            span(info.lag_seconds),
            info.verdict,
            ",".join(info.topics) or "-",
        )
        for info in groups
    ]
    show(console, {"groups": groups}, align(rows))


@group.command()
@click.argument("name")
@click.pass_obj
def describe(console: Console, name: str) -> None:
    """Show a group, its members and its partitions."""
    detail, behind = ask(console, name)
    parts = [head_line(detail, behind)]
    if detail.member_list:
        parts.append(members_table(detail.member_list))
    show(console, detail, "\n".join((*parts, *partitions_table(detail))))


@group.command()
@click.argument("name")
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C, or --fail-above.")
@click.option("--every", metavar="DUR", help="How often, with --watch.  [default: 1s]")
@click.option(
    "--fail-above", type=click.IntRange(min=0), metavar="N", help="Exit 6 above that lag."
)
@click.pass_obj
def lag(console: Console, name: str, watch: bool, every: str | None, fail_above: int | None) -> int:
    """Show how far behind a group is, in records and in time."""
    every_s = duration_s("--every", every)
    if every_s is not None and not watch:
        raise click.UsageError("--every goes with --watch")
    if every_s is not None and not 0.1 <= every_s <= 86_400:
        raise click.UsageError(f"--every '{every}' is not between 100ms and 1d")
    if watch and console.output == "json":
        raise click.UsageError("-O json is one document: take -O ndjson with --watch")
    if watch:
        return watch_lag(console, name, every_s or 1.0, fail_above)
    detail, behind = ask(console, name)
    show(console, behind, lag_table(detail, behind))
    return lag_code(behind, fail_above)


def watch_lag(console: Console, name: str, every_s: float, fail_above: int | None) -> int:
    """Show it again and again; the exit code."""
    import sys

    import anyio

    async def work(client: "Client") -> int:
        while True:
            detail, behind = await look(client, name)
            table = lag_table(detail, behind)
            if console.output == "table":
                table = f"{CLEAR}{table}" if sys.stdout.isatty() else f"{table}\n"
            show(console, behind, table)
            sys.stdout.flush()
            if code := lag_code(behind, fail_above):
                return code
            await anyio.sleep(every_s)

    return with_client(console, work)


def lag_code(behind: "GroupLag", fail_above: int | None) -> int:
    return EXIT_UNHEALTHY if fail_above is not None and behind.lag_records > fail_above else 0


@group.command()
@click.argument("name")
@click.option("--to", required=True, metavar="OFFSET", help="start, end, N, -N, @2h, @TIME")
@click.option("--topic", "topics", multiple=True, metavar="TOPIC", help="Only this topic.")
@click.option("--partition", "places", multiple=True, metavar="T:P", help="Only this partition.")
@click.option("--dry-run", is_flag=True, help="Show what would change.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def reset(
    console: Console,
    name: str,
    to: str,
    topics: tuple[str, ...],
    places: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Move the committed offsets of a group without members: all, or none."""
    if to == "committed":
        raise click.UsageError("a reset to 'committed' changes nothing")
    if topics and places:
        raise click.UsageError("give --topic or --partition, not both")
    position = parse_position(to, datetime.now(UTC))
    partitions = [place(text) for text in places]
    if not dry_run:
        where = ", ".join((*topics, *places)) or "all its partitions"
        confirm(f"Reset group {name} to {to} in {where}?", yes)

    async def work(client: "Client") -> "list[OffsetChange]":
        return await reset_to(client, name, position, topics, partitions, dry_run=dry_run)

    changes = with_client(console, work)
    document = {"changes": changes, "applied": not dry_run}
    if dry_run:
        show(console, document, changes_table(changes))
    else:
        show_document(console, document)
    say(console, reset_line(name, changes, dry_run=dry_run))


async def reset_to(
    client: "Client",
    name: str,
    position: Position,
    topics: Sequence[str],
    partitions: "Sequence[TopicPartition]",
    *,
    dry_run: bool,
) -> "list[OffsetChange]":
    """So many before the end is what the SDK has no word for: it gets the offsets themselves."""
    if position.kind != "back":
        return await client.admin.reset_group(
            name,
            to=target(position),
            topics=topics or None,
            partitions=partitions or None,
            dry_run=dry_run,
        )
    from tailrace.client import grouping
    from tailrace.client.cli_reading import resolve

    found = await grouping.find_partitions(
        client, await client.admin.group(name), "latest", topics or None, partitions or None
    )
    offsets: Mapping[TopicPartition, int] = await resolve(client, found, position)
    return await client.admin.reset_group(name, to=offsets, dry_run=dry_run)


def target(position: Position) -> "To":
    """A position in the words of the SDK."""
    if position.kind == "start":
        return "earliest"
    if position.kind == "end":
        return "latest"
    if position.kind == "offset":
        return position.number
    assert position.time is not None
    return position.time


def reset_line(name: str, changes: "Sequence[OffsetChange]", *, dry_run: bool) -> str:
    """``reset group billing: 3 partitions, 1,204 records are read again``"""
    again = sum(change.records for change in changes if change.records > 0)
    skipped = -sum(change.records for change in changes if change.records < 0)
    verb = "would be" if dry_run else "are"
    said = [plural(len(changes), "partition")]
    if again:
        said.append(f"{plural(again, 'record')} {verb} read again")
    if skipped:
        said.append(f"{plural(skipped, 'record')} {verb} skipped")
    return f"{'would reset' if dry_run else 'reset'} group {name}: {', '.join(said)}"


@group.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(console: Console, names: tuple[str, ...], yes: bool) -> None:
    """Delete groups without members, and what they have committed."""
    confirm(f"Delete group {', '.join(names)} and all committed offsets?", yes)
    deleted: list[str] = []

    async def work(client: "Client") -> None:
        for name in names:
            await client.admin.delete_group(name)
            deleted.append(name)

    try:
        with_client(console, work)
    finally:
        if deleted:
            say(console, f"deleted {plural(len(deleted), 'group')}: {', '.join(deleted)}")
    show_document(console, {"deleted": deleted})


# ── tables ───────────────────────────────────────────────────────────────────────────────────


def ask(console: Console, name: str) -> "tuple[GroupDetail, GroupLag]":
    """``look``, with a client of its own."""
    return with_client(console, lambda client: look(client, name))


async def look(client: "Client", name: str) -> "tuple[GroupDetail, GroupLag]":
    """A group, and how far behind it is, of one moment."""
    from tailrace.protocol import shaping

    found = await client.admin.group(name)
    return shaping.group_detail(found), shaping.group_lag(found)


def lag_table(detail: "GroupDetail", behind: "GroupLag") -> str:
    return "\n".join((head_line(detail, behind), *partitions_table(detail)))


def head_line(detail: "GroupDetail", behind: "GroupLag") -> str:
    """``billing  stable  2 members  generation 14  lag 1,204  behind 0.6 s  drains in 4 s  ok``"""
    drains = "never drains"
    if behind.drain_seconds is not None:
        drains = f"drains in {span(behind.drain_seconds)}"
    return "  ".join(
        (
            detail.name,
            detail.state,
            plural(detail.members, "member"),
            f"generation {detail.generation}",
            f"lag {format_count(detail.lag_records)}",
            f"behind {span(detail.lag_seconds)}",
            drains,
            detail.verdict,
        )
    )


def partitions_table(detail: "GroupDetail") -> list[str]:
    """A row a partition; and who loses records first, if anybody does."""
    if not detail.partition_list:
        return []
    clients = {member.member_id: member.client_id for member in detail.member_list}
    rows: list[tuple[str, ...]] = [
        ("TOPIC", "PART", "COMMITTED", "END", "LAG", "BEHIND", "RATE/S", "MEMBER", "VERDICT")
    ]
    rows += [partition_row(one, clients) for one in detail.partition_list]
    threatened = [
        (one.margin_seconds, one) for one in detail.partition_list if one.margin_seconds is not None
    ]
    if not threatened:
        return [align(rows)]
    margin_s, first = min(threatened, key=lambda pair: pair[0])
    if margin_s > 0:
        text = f"unread records expire in {span(margin_s)}"
    else:
        text = "unread records have expired, or are about to"
    return [align(rows), f"{first.topic}[{first.partition}]: {text}"]


def partition_row(one: "PartitionLag", clients: "Mapping[str, str]") -> tuple[str, ...]:
    offline = one.log_end < 0
    return (
        one.topic,
        str(one.partition),
        "-" if one.committed is None else format_count(one.committed),
        "-" if offline else format_count(one.log_end),
        "-" if offline else format_count(one.lag_records),
        span(one.lag_seconds),
        format_count(round(one.rate_per_s)),
        "-" if one.member_id is None else clients.get(one.member_id, one.member_id),
        one.verdict,
    )


def members_table(members: "Sequence[MemberInfo]") -> str:
    rows = [("MEMBER", "CLIENT", "INSTANCE", "HOST", "VERSION", "HEARD", "PARTITIONS")]
    rows += [
        (
            member.member_id,
            member.client_id,
            member.instance_id or "-",
            member.host,
            member.version,
            ago(member.last_heartbeat),
            "idle" if member.idle else places(member.assigned),
        )
        for member in members
    ]
    return align(rows)


def changes_table(changes: "Sequence[OffsetChange]") -> str:
    rows = [("TOPIC", "PART", "BEFORE", "AFTER", "RECORDS")]
    rows += [
        (
            change.topic,
            str(change.partition),
            "-" if change.before is None else format_count(change.before),
            format_count(change.after),
            f"{change.records:+,}" if change.records else "0",
        )
        for change in changes
    ]
    return align(rows)


def places(partitions: "Sequence[TopicPartition]") -> str:
    """``orders:0,1 refunds:2``"""
    by_topic: dict[str, list[str]] = {}
    for topic, number in sorted(partitions):
        by_topic.setdefault(topic, []).append(str(number))
    return " ".join(f"{topic}:{','.join(numbers)}" for topic, numbers in by_topic.items())


def place(text: str) -> "TopicPartition":
    """``orders:2``"""
    from tailrace.protocol.shapes import TopicPartition

    topic, colon, number = text.rpartition(":")
    if not colon or not topic or not (number.isascii() and number.isdigit() and len(number) <= 9):
        raise click.UsageError(f"--partition takes TOPIC:PARTITION, not '{text}'")
    return TopicPartition(topic, int(number))


def span(seconds: float | None) -> str:
    """``0.6 s``, ``5,400 s``, ``3.5 h``, ``6.9 d``: what takes so long is not read in seconds."""
    if seconds is None:
        return "-"
    for unit, unit_s in (("d", 86_400), ("h", 3_600)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:,.1f}".removesuffix(".0") + f" {unit}"
    return format_duration(round(seconds, 1))
