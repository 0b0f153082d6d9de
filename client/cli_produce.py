"""``tailrace produce``: its options. The sending is in ``cli_sending.py``.

That is imported by the command that runs, so that help and usage errors are instant.
"""

from typing import Literal

import click

from tailrace.client.cli_lines import encoded, line_parser, parse_headers, parse_rate
from tailrace.protocol.console import Console
from tailrace.protocol.record_json import InputRecord


@click.command()
@click.argument("topic")
@click.option(
    *("-f", "--file", "path"),
    type=click.Path(exists=True, dir_okay=False),
    help="Read this instead of stdin.",
)
@click.option("-K", "delimiter", metavar="DELIM", help="Split each line into key and value.")
@click.option("--ndjson", is_flag=True, help="Each line is a record as JSON.")
@click.option("--value", metavar="TEXT", help="One record with this value.")
@click.option("--tombstone", is_flag=True, help="One record without a value; needs -k.")
@click.option("-k", "--key", help="Key of every record.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="NAME=VALUE", help="Of every record."
)
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Default: by the key.")
@click.option("--acks", type=click.Choice(["all", "1", "0"]), default="all", show_default=True)
@click.option(
    "--compression",
    type=click.Choice(["lz4", "zstd", "none"]),
    default="lz4",
    show_default=True,
)
@click.option("--rate", metavar="N/s", help="Send no more than so many records a second.")
@click.pass_obj
def produce(
    console: Console,
    topic: str,
    path: str | None,
    delimiter: str | None,
    ndjson: bool,
    value: str | None,
    tombstone: bool,
    key: str | None,
    headers: tuple[str, ...],
    partition: int | None,
    acks: str,
    compression: Literal["lz4", "zstd", "none"],
    rate: str | None,
) -> int:
    """Send records to TOPIC: each line of stdin (or FILE) is one.

    The newline is removed, an empty line is an empty value, a last line without newline counts.
    """
    check_sources(path, delimiter, ndjson, value, tombstone, key)
    own_headers = parse_headers(headers)
    rate_per_s = parse_rate(rate)
    from tailrace.client.cli_sending import ACKS, Job, Progress

    job = Job(
        console=console,
        topic=topic,
        partition=partition,
        acks=ACKS[acks],
        compression=compression,
        rate_per_s=rate_per_s,
        progress=Progress(keep=console.output != "table"),
    )
    if value is not None or tombstone:
        only = InputRecord(encoded(key), encoded(value), None, own_headers)
        return job.run_one(only)
    return job.run_lines(path, line_parser(delimiter, ndjson, key, own_headers))


def check_sources(
    path: str | None,
    delimiter: str | None,
    ndjson: bool,
    value: str | None,
    tombstone: bool,
    key: str | None,
) -> None:
    """A ``UsageError`` where options contradict each other: nothing given is ignored."""
    given = {"-K": delimiter is not None, "--ndjson": ndjson}
    given |= {"--value": value is not None, "--tombstone": tombstone}
    if sum(given.values()) > 1:
        raise click.UsageError("give only one of -K, --ndjson, --value, --tombstone")
    if path is not None and (value is not None or tombstone):
        raise click.UsageError("-f does not go with --value or --tombstone")
    if tombstone and key is None:
        raise click.UsageError("--tombstone needs -k KEY: it deletes that key")
    if delimiter is not None and key is not None:
        raise click.UsageError("-K takes the key from each line: leave out -k")
    if delimiter == "":
        raise click.UsageError("-K needs a delimiter of at least one character")
