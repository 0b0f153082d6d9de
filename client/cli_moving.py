"""``tailrace cluster elect|reassign|drain``: leaders and copies, moved from broker to broker."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
import click

from tailrace.client.cli_run import (
    confirm,
    duration_s,
    plural,
    say,
    show,
    show_document,
    with_client,
)
from tailrace.protocol.console import EXIT_FAILED, EXIT_TIMED_OUT, Console, align
from tailrace.protocol.units import format_count

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import TopicPartition
    from tailrace.protocol.shapes_cluster import DrainStatus, LeaderChange, ReplicaMove

T = TypeVar("T")
NAMED_MAX = 3  # partitions in one line
LOOK_S = 0.5  # between two looks at what is awaited
UNTIL = "Wait so long for it to be done, and tell how far it is."


def targets(
    texts: Sequence[str],
) -> "tuple[list[TopicPartition], list[str]]":
    """``TOPIC:P`` and ``TOPIC`` arguments: partitions, and topics."""
    from tailrace.protocol.shapes import TopicPartition

    partitions: list[TopicPartition] = []
    topics: list[str] = []
    for text in texts:
        topic, colon, number = text.rpartition(":")
        if not colon:
            topics.append(text)
        elif topic and number.isascii() and number.isdigit():
            partitions.append(TopicPartition(topic, int(number)))
        else:
            raise click.UsageError(f"'{text}' is not TOPIC or TOPIC:P")
    return partitions, topics


# ── leaders ──────────────────────────────────────────────────────────────────────────────────


@click.command()
@click.argument("where", nargs=-1, metavar="[TOPIC | TOPIC:P]...")
@click.option("--preferred", is_flag=True, help="The first of the brokers wanted; the default.")
@click.option("--unclean", is_flag=True, help="Where nobody leads: whoever is up. LOSES RECORDS.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask, with --unclean.")
@click.pass_obj
def elect(
    console: Console,
    where: tuple[str, ...],
    preferred: bool,
    unclean: bool,
    dry_run: bool,
    yes: bool,
) -> int:
    """Give partitions other leaders: all of the cluster, or those named."""
    from tailrace.protocol.shapes import TopicPartition

    if preferred and unclean:
        raise click.UsageError("--preferred and --unclean exclude each other")
    if unclean and not where:
        raise click.UsageError("--unclean needs the partitions: TOPIC or TOPIC:P")
    partitions, topics = targets(where)

    def ask(
        partitions: "Sequence[TopicPartition]",
        topics: Sequence[str] = (),
        *,
        only_look: bool,
        confirmed: "Sequence[LeaderChange] | None" = None,
    ) -> "list[LeaderChange]":
        async def work(client: "Client") -> "list[LeaderChange]":
            return await client.admin.elect_leaders(
                partitions,
                topics=topics,
                unclean=unclean,
                dry_run=only_look,
                confirmed=confirmed,
            )

        return with_client(console, work)

    if dry_run:
        found = ask(partitions, topics, only_look=True)
        show(console, {"leaders": found, "applied": False}, leaders_table(found))
    else:
        if unclean and not yes:
            found = ask(partitions, topics, only_look=True)
            losing = confirm_loss(found)  # nothing but what was said yes to
            found = [one for one in found if one.error is not None]
            if losing:
                these = [TopicPartition(one.topic, one.partition) for one in losing]
                found += ask(these, only_look=False, confirmed=losing)
        else:
            found = ask(partitions, topics, only_look=False)
        show_document(console, {"leaders": found, "applied": True})
        if console.output == "table" and found and not console.quiet:
            click.echo(leaders_table(found), err=True)
    failed = [one for one in found if one.error is not None]
    done = len(found) - len(failed)
    verb = "would elect" if dry_run else "elected"
    say(console, f"{verb} {plural(done, 'leader')}" if found else "every leader is as it shall be")
    return EXIT_FAILED if failed else 0


def confirm_loss(found: "Sequence[LeaderChange]") -> "list[LeaderChange]":
    """Name what may be lost, and ask; nothing is asked where nothing would be done. Those."""
    losing = [one for one in found if one.error is None]
    for one in losing:
        click.echo(loss(one), err=True)
    if losing:
        confirm(f"Elect {plural(len(losing), 'leader')} and lose that?", False)
    return losing


def loss(one: "LeaderChange") -> str:
    """What an unclean election of one partition gives up."""
    who = ", ".join(one.missing) or "the brokers that are down"
    return (
        f"{one.topic}[{one.partition}]: {one.after} would lead, its log ends at"
        f" {format_count(one.log_end or 0)}; what {who} acknowledged beyond that is lost"
    )


def leaders_table(found: "Sequence[LeaderChange]") -> str:
    """Who leads what, before and after."""
    rows = [("TOPIC", "PART", "BEFORE", "AFTER", "WHY NOT, OR WHAT IS LOST")]
    for one in found:
        why = one.error or ""
        if one.error is None and one.log_end is not None:
            why = f"beyond {format_count(one.log_end)}: {', '.join(one.missing) or 'unknown'}"
        rows.append((one.topic, str(one.partition), one.before or "-", one.after or "-", why))
    return align(rows) if found else ""


# ── copies ───────────────────────────────────────────────────────────────────────────────────


@click.command()
@click.argument("where", nargs=-1, required=True, metavar="TOPIC | TOPIC:P ...")
@click.option("--to", "brokers", metavar="ID,ID...", help="The preferred leader first.")
@click.option("--replicas", type=click.IntRange(min=1), help="Copies of each, spread anew.")
@click.option("--cancel", is_flag=True, help="Stay with the copies that are complete.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--wait", metavar="DUR", help=UNTIL)
@click.pass_obj
def reassign(
    console: Console,
    where: tuple[str, ...],
    brokers: str | None,
    replicas: int | None,
    cancel: bool,
    dry_run: bool,
    wait: str | None,
) -> int:
    """Put copies of partitions on other brokers; without --to they are spread over all."""
    if sum((brokers is not None, replicas is not None, cancel)) > 1:
        raise click.UsageError("--to, --replicas and --cancel exclude each other")
    wait_s = duration_to_wait(wait, dry_run)
    partitions, topics = targets(where)
    chosen = None if brokers is None else [one for one in brokers.split(",") if one]
    if chosen == []:
        raise click.UsageError(f"--to '{brokers}' names no broker")

    async def work(client: "Client") -> "list[ReplicaMove]":
        return await client.admin.reassign(
            partitions,
            topics=topics,
            brokers=chosen,
            replicas=replicas,
            cancel=cancel,
            dry_run=dry_run,
        )

    found = with_client(console, work)
    document = {"moves": found, "applied": not dry_run}
    if dry_run:
        show(console, document, moves_table(found))
    else:
        show_document(console, document)
    verb = "would move" if dry_run else "moving"
    partitions_told = plural(len(found), "partition")
    say(console, f"{verb} {partitions_told}" if found else "every copy is where it shall be")
    if wait_s is None:
        return 0
    names = {one.topic for one in found} | set(topics) | {at.topic for at in partitions}
    return await_moves(console, names, wait_s)


def await_moves(console: Console, topics: set[str], wait_s: float) -> int:
    """Until no copy of these topics is on its way; 0, or 5 when the time is over."""

    async def look(client: "Client") -> "list[ReplicaMove]":
        return [one for one in await client.admin.list_moves() if one.topic in topics]

    left = follow(console, look, lambda found: not found, moves_told, wait_s)
    if left:
        why = f"{down}; " if (down := down_told(left)) else ""
        say(console, f"not done in {wait_s:g} s: {why}the brokers go on")
        return EXIT_TIMED_OUT
    say(console, "done")
    return 0


def moves_told(left: "Sequence[ReplicaMove]") -> str:
    """How far it is."""
    filling = sum(len(one.filling) for one in left)
    copies = "1 copy" if filling == 1 else f"{format_count(filling)} copies"
    told = f"{plural(len(left), 'partition')} to go, {copies} to fill"
    return f"{told}; {down}" if (down := down_told(left)) else told


def down_told(left: "Sequence[ReplicaMove]") -> str:
    """Who does not go on with it; nothing if all do."""
    names = sorted({broker for one in left for broker in one.down})
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {verb} not up" if names else ""


def moves_table(found: "Sequence[ReplicaMove]") -> str:
    """Which copies go where."""
    rows = [("TOPIC", "PART", "BEFORE", "AFTER", "TO FILL")]
    rows += [
        (
            *(one.topic, str(one.partition), ",".join(one.before), ",".join(one.after)),
            ",".join(one.filling) or "-",
        )
        for one in found
    ]
    return align(rows) if found else ""


# ── drains ───────────────────────────────────────────────────────────────────────────────────


@click.command()
@click.argument("broker", metavar="ID")
@click.option("--cancel", is_flag=True, help="No longer; what has moved stays where it is.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option("--wait", metavar="DUR", help=UNTIL)
@click.pass_obj
def drain(console: Console, broker: str, cancel: bool, dry_run: bool, wait: str | None) -> int:
    """Take everything off a broker for good: before it is removed."""
    wait_s = duration_to_wait(wait, dry_run)
    if cancel and (dry_run or wait_s is not None):
        raise click.UsageError("--cancel goes alone")

    async def ask(client: "Client") -> "DrainStatus":
        return await client.admin.drain_broker(broker, cancel=cancel, dry_run=dry_run)

    async def look(client: "Client") -> "DrainStatus":
        # Asked for once more it would undo a --cancel that came meanwhile.
        found = await client.admin.drain_broker(broker, cancel=False, dry_run=True)
        if not found.draining:  # or a broker does not know of it yet: the store is slow
            await anyio.sleep(LOOK_S)
            found = await client.admin.drain_broker(broker, cancel=False, dry_run=True)
        return found

    found = with_client(console, ask)
    if cancel:
        show_document(console, found)
        say(console, f"{broker} is drained no longer; it holds {plural(found.holds, 'partition')}")
        return 0
    if wait_s is not None and not over(found):
        found = follow(console, look, over, drain_told, wait_s)
    if dry_run:
        show(console, found, moves_table(found.moves))
    else:
        show_document(console, found)
    told = drain_told(found, begun=not dry_run)
    say(console, f"would drain: {told}" if dry_run else told)
    if not dry_run and not found.draining:
        return EXIT_FAILED
    if found.stuck:
        say(console, stuck_told(found))
        return EXIT_FAILED
    return EXIT_TIMED_OUT if wait_s is not None and not found.done else 0


def over(found: "DrainStatus") -> bool:
    """Whether nothing more will happen."""
    return (
        found.done or not found.draining or (bool(found.stuck) and len(found.stuck) == found.holds)
    )


def drain_told(found: "DrainStatus", *, begun: bool = True) -> str:
    """How far it is."""
    holds = plural(found.holds, "partition")
    if begun and not found.draining:
        return f"called off: {found.broker} is drained no longer, and holds {holds}"
    if found.done:
        return f"{found.broker} holds nothing any more: it can be stopped for good"
    return f"{found.broker} leads {found.leads:,} and holds {holds}"


def stuck_told(found: "DrainStatus") -> str:
    """What nobody can take, and what to do about it."""
    names = [f"{one.topic}[{one.partition}]" for one in found.stuck[:NAMED_MAX]]
    more = len(found.stuck) - len(names)
    rest = f" and {more:,} more" if more else ""
    return (
        f"no other broker is there to take {', '.join(names)}{rest}: start one, or ask for fewer"
        f" copies: tailrace cluster reassign {found.stuck[0].topic} --replicas N"
    )


# ── waiting ──────────────────────────────────────────────────────────────────────────────────


def duration_to_wait(wait: str | None, dry_run: bool) -> float | None:
    """The seconds of ``--wait``; None without it."""
    if dry_run and wait is not None:
        raise click.UsageError("--dry-run and --wait exclude each other")
    return duration_s("--wait", wait)


def follow(
    console: Console,
    look: "Callable[[Client], Awaitable[T]]",
    done: Callable[[T], bool],
    told: Callable[[T], str],
    wait_s: float,
) -> T:
    """Look until it is ``done``, or time is over; a line on stderr whenever it has changed."""

    async def work(client: "Client") -> T:
        ends = time.monotonic() + wait_s
        last = ""
        while True:
            found = await look(client)
            if done(found) or time.monotonic() >= ends:
                return found
            if (line := told(found)) != last:
                say(console, line)
                last = line
            await anyio.sleep(min(LOOK_S, max(0.0, ends - time.monotonic())))

    return with_client(console, work)
