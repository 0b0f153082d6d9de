"""``tailrace consume``, ``tail`` and ``cat``: their options. The reading is in ``cli_reading.py``.

That is imported by the command that runs, so that help and usage errors are instant.
"""

import re
from datetime import UTC, datetime
from typing import get_args

import click

from tailrace.client.cli_offsets import parse_range
from tailrace.client.cli_run import duration_s
from tailrace.protocol.console import Console
from tailrace.protocol.positions import Position
from tailrace.protocol.record_json import Decode

DECODES = click.Choice(get_args(Decode))
ONLY = "Only this one; may be given several times."
SHOWN = "How keys and values are shown."


@click.command()
@click.argument("topics", nargs=-1, required=True)
@click.option("-g", "--group", help="Read as a member of this group, and commit what is written.")
@click.option(
    *("-o", "--offset"),
    help="start, end, N, -N, @2h, @TIME, or FROM:TO; with -g: where nothing is committed yet.",
)
@click.option("-p", "--partition", "numbers", type=click.IntRange(min=0), multiple=True, help=ONLY)
@click.option("-n", "--number", "limit", type=click.IntRange(min=0), help="Stop after N records.")
@click.option("-e", "--end", "stop_at_end", is_flag=True, help="Stop at the end seen at the start.")
@click.option(
    "-f", "--format", "template", help="%t %p %o %k %v %h %d %a, \\n \\t: '%o %v\\n', say."
)
@click.option("--decode", type=DECODES, default="auto", help=SHOWN)
@click.option("--idle", metavar="DUR", help="Stop when nothing came for so long.")
@click.pass_obj
def consume(
    console: Console,
    topics: tuple[str, ...],
    group: str | None,
    offset: str | None,
    numbers: tuple[int, ...],
    limit: int | None,
    stop_at_end: bool,
    template: str | None,
    decode: Decode,
    idle: str | None,
) -> int:
    """Print the records of TOPICS, and go on until Ctrl-C, -n, -e or --idle."""
    if group is None:
        start, to = parse_range(offset or "start", datetime.now(UTC))
    else:
        start, to = parse_group_start(group, offset or "committed", numbers), None
    if console.output == "json" and limit is None and not stop_at_end and idle is None and not to:
        raise click.UsageError("-O json needs an end: -n, -e or --idle (or use -O ndjson)")
    from tailrace.client import cli_format, cli_group_reading, cli_reading

    run = cli_reading.Run(console, *cli_format.printer(console, template, decode), limit=limit)
    idle_seconds = duration_s("--idle", idle)
    if group is not None:
        return cli_group_reading.consume(
            run, topics, group, start, stop_at_end=stop_at_end, idle_seconds=idle_seconds
        )
    return cli_reading.consume(
        run, topics, numbers, start, to, stop_at_end=stop_at_end, idle_seconds=idle_seconds
    )


def parse_group_start(group: str, offset: str, numbers: tuple[int, ...]) -> Position:
    """Where a member begins; a ``UsageError`` for what a group cannot do."""
    if numbers:
        raise click.UsageError("-p does not go with -g: the broker says which partitions to read")
    if offset == "committed":
        return Position("committed")
    start, to = parse_range(offset, datetime.now(UTC))
    if to is not None or start.kind not in ("start", "end", "time"):
        raise click.UsageError(
            "with -g, -o is committed, start, end or @TIME; "
            f"to move the group: tailrace group reset {group} --to OFFSET"
        )
    return start


@click.command()
@click.argument("topic")
@click.option("-n", "--number", "count", type=click.IntRange(min=0), default=10, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with new records.")
@click.option("-p", "--partition", "numbers", type=click.IntRange(min=0), multiple=True, help=ONLY)
@click.option("--format", "template", help="As for consume.")
@click.option("--decode", type=DECODES, default="auto", help=SHOWN)
@click.pass_obj
def tail(
    console: Console,
    topic: str,
    count: int,
    follow: bool,
    numbers: tuple[int, ...],
    template: str | None,
    decode: Decode,
) -> int:
    """Print the last N records of TOPIC by append time, then exit or follow."""
    if console.output == "json" and follow:
        raise click.UsageError("-O json needs an end: leave out -f (or use -O ndjson)")
    from tailrace.client import cli_format, cli_reading

    run = cli_reading.Run(console, *cli_format.printer(console, template, decode))
    return cli_reading.tail(run, topic, numbers, count, follow=follow)


@click.command()
@click.argument("place", metavar="TOPIC:P:OFF[-OFF]")
@click.option("--decode", type=DECODES, default="auto", help=SHOWN)
@click.pass_obj
def cat(console: Console, place: str, decode: Decode) -> int:
    """Print records by offset; both ends are included."""
    topic, number, first, last = parse_place(place)
    from tailrace.client import cli_format, cli_reading

    run = cli_reading.Run(console, *cli_format.printer(console, None, decode))
    return cli_reading.cat(run, topic, number, first, last)


def parse_place(place: str) -> tuple[str, int, int, int]:
    """Topic, partition, first and last offset."""
    topic, _, rest = place.rpartition(":")
    topic, _, number = topic.rpartition(":")
    first, _, last = rest.partition("-")
    texts = (number, first, last or first)
    numbers = [int(text) for text in texts if re.fullmatch("[0-9]{1,18}", text)]
    if not topic or len(numbers) < len(texts) or numbers[1] > numbers[2]:
        raise click.UsageError(f"'{place}' is not TOPIC:P:OFF or TOPIC:P:OFF-OFF")
    return topic, numbers[0], numbers[1], numbers[2]
