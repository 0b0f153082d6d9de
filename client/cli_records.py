"""``tailrace topic delete-records`` and ``erase``: records that go before their time."""

from typing import TYPE_CHECKING, Literal

import click

from tailrace.client.cli_lines import encoded
from tailrace.client.cli_run import confirm, plural, say, show_document, with_client
from tailrace.protocol.console import EXIT_TIMED_OUT, Console
from tailrace.protocol.units import format_count

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import ErasureReceipt

ERASE_WAIT_S = 60.0


@click.command("delete-records")
@click.argument("name")
@click.option("-p", "--partition", type=click.IntRange(min=0), required=True)
@click.option("--before", required=True, metavar="OFFSET|end", help="The first record that stays.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete_records(console: Console, name: str, partition: int, before: str, yes: bool) -> None:
    """Delete the oldest records of a partition, up to an offset."""
    offset = _offset(before)
    which = "all records" if offset == "end" else f"all records below {format_count(offset)}"
    confirm(f"Delete {which} of {name}[{partition}]?", yes)

    async def work(client: "Client") -> dict[int, int]:
        return await client.admin.delete_records(name, {partition: offset})

    starts = with_client(console, work)
    say(console, f"{name}[{partition}] starts at {format_count(starts[partition])}")
    rows = [{"partition": number, "log_start": start} for number, start in starts.items()]
    show_document(console, {"partitions": rows})


@click.command()
@click.argument("name")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Every record with this key.")
@click.option("--record", "records", multiple=True, metavar="P:OFF", help="This one record.")
@click.option("--no-wait", is_flag=True, help="Return when the broker has taken it on.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def erase(
    console: Console,
    name: str,
    keys: tuple[str, ...],
    records: tuple[str, ...],
    no_wait: bool,
    yes: bool,
) -> None:
    """Erase records for good: they leave the disk, their offsets stay gaps.

    Waits for 60 s, or for --timeout if that is longer; the broker goes on in any case.
    """
    positions = [_position(text) for text in records]
    if not keys and not positions:
        raise click.UsageError("nothing to erase: give --key KEY or --record P:OFF")
    what = [plural(len(given), noun) for given, noun in ((keys, "key"), (records, "record"))]
    confirm(f"Erase {' and '.join(what)} of {name} for good?", yes)

    async def work(client: "Client") -> "ErasureReceipt":
        return await client.admin.erase(
            name,
            keys=[encoded(key) or b"" for key in keys],
            records=positions,
            wait=not no_wait,
            timeout=max(ERASE_WAIT_S, console.timeout_seconds),
        )

    receipt = with_client(console, work)
    found = plural(receipt.records, "record")
    if receipt.completed_at is not None:
        say(console, f"erased {found} of {name}")
    else:
        say(console, f"the broker goes on: {found} of {name} found so far (erasure {receipt.id})")
    show_document(console, receipt)
    if receipt.completed_at is None and not no_wait:
        raise click.exceptions.Exit(EXIT_TIMED_OUT)


def _offset(text: str) -> int | Literal["end"]:
    if text == "end":
        return "end"
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise click.UsageError(f"--before takes an offset or 'end', not '{text}'")


def _position(text: str) -> tuple[int, int]:
    partition, colon, offset = text.partition(":")
    for part in (partition, offset):
        if not colon or not (part.isascii() and part.isdigit() and len(part) <= 18):
            raise click.UsageError(f"--record takes PARTITION:OFFSET, not '{text}'")
    return int(partition), int(offset)
