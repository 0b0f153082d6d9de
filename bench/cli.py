"""``tailrace bench``: how fast this broker is from here."""

import contextlib
import re
import sys
import uuid
from collections.abc import Generator
from typing import TYPE_CHECKING, Literal

import click

from tailrace.bench.workload import Advance, Measured, Mode, Workload, document, table
from tailrace.client.cli_run import show, with_client
from tailrace.protocol.console import EXIT_FAILED, Console
from tailrace.protocol.units import parse_size_bytes
from tailrace.protocol.version import VERSION

if TYPE_CHECKING:
    from tailrace.client.client import Client

_COUNT = re.compile(r"(\d+)([kKmM]?)")


def parse_count(ctx: click.Context, parameter: click.Parameter, text: str) -> int:
    """``100k``, ``2M`` or plain digits."""
    match = _COUNT.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"'{text}' is no count: 1000, 100k or 2M")
    return int(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]


def parse_size(ctx: click.Context, parameter: click.Parameter, text: str) -> int:
    try:
        size = parse_size_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if not size:
        raise click.BadParameter(f"'{text}' is no size of a record")
    return size


@click.command()
@click.argument("mode", type=click.Choice(["produce", "consume", "e2e"]))
@click.option("-n", "--number", "records", default="100k", show_default=True, callback=parse_count)
@click.option("-s", "--size", "size_bytes", default="100B", show_default=True, callback=parse_size)
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--producers", type=click.IntRange(1, 100), default=1, show_default=True)
@click.option("--partitions", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--acks", type=click.Choice(["all", "1", "0"]), default="all", show_default=True)
@click.option("--topic", help="Name of the topic (default: bench-…).")
@click.option("--keep", is_flag=True, help="Do not delete the topic afterwards.")
@click.pass_obj
def bench(
    console: Console,
    mode: Mode,
    records: int,
    size_bytes: int,
    batch: int,
    producers: int,
    partitions: int,
    acks: str,
    topic: str | None,
    keep: bool,
) -> int:
    """Send and read N records and print rate and latency.

    Values are random bytes, so compression does not flatter the figures. The topic is the bench's
    own; the same volume goes through a scratch topic first, untimed.
    """
    chosen: Literal["all", 1, 0] = "all" if acks == "all" else 1 if acks == "1" else 0
    workload = Workload(mode, records, size_bytes, batch, producers, partitions, chosen)
    name = topic or f"bench-{uuid.uuid4().hex[:12]}"
    from tailrace.bench.run import run

    with progress(console, mode, records) as advance:

        async def work(client: "Client") -> Measured:
            return await run(
                client, workload, name, keep, advance, patience_s=console.timeout_seconds
            )

        measured = with_client(console, work)
    show(console, document(workload, measured, VERSION), table(workload, measured))
    return EXIT_FAILED if measured.errors else 0


@contextlib.contextmanager
def progress(console: Console, mode: str, total: int) -> Generator[Advance]:
    """A progress bar on stderr if that is a terminal; rich is imported only then."""
    if console.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console as Terminal
    from rich.progress import Progress

    with Progress(console=Terminal(stderr=True, no_color=not console.color)) as bar:
        task = bar.add_task(mode, total=total)
        yield lambda count: bar.advance(task, count)
