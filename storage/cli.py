"""``tailrace segment``: look at log files without a broker.

Read-only: nothing is locked and nothing is written, a broker may be running on the directory. What
it is appending meanwhile can look like a torn tail, which is ok; damage below the flushed mark is
not (exit 6).
"""

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import click

from tailrace.protocol.batch import Columns
from tailrace.protocol.console import EXIT_UNHEALTHY, Console, align, compact
from tailrace.protocol.record_json import printable, record_document
from tailrace.protocol.units import format_count, format_size
from tailrace.storage import offline
from tailrace.storage.log_file import place_of
from tailrace.storage.offline import BatchInfo, FileReport

_FILE = click.Path(exists=True, dir_okay=False)
_DIRECTORY = click.Path(exists=True, file_okay=False)
_PATH = click.Path(exists=True)
_DUMP_COLUMNS = {
    **{"POSITION": 14, "SIZE": 12, "OFFSETS": 24, "RECORDS": 10, "EPOCH": 7, "APPEND TIME": 26},
    **{"COMPRESSION": 13, "CHECK": 0},
}


@click.group()
def segment() -> None:
    """Inspect log files offline; a broker may be running."""


@segment.command("list")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.pass_obj
def list_segments(console: Console, directory: str) -> None:
    """List the log files of a partition, or of all partitions below DIR."""
    found = offline.list_segments(directory)
    rows: list[tuple[str, ...]] = [
        ("FILE", "OFFSETS", "BATCHES", "RECORDS", "SIZE", "LAST APPEND", "STATE")
    ]
    rows += [
        (
            info.file,
            offsets(info.base_offset, info.next_offset - 1),
            format_count(info.batches),
            format_count(info.records),
            format_size(info.size_bytes),
            "-" if info.last_append_time is None else utc(info.last_append_time),
            info.state,
        )
        for info in found
    ]
    segments = [{**asdict(i), "topic_id": str(uuid.UUID(i.topic_id))} for i in found]
    show(console, {"segments": segments}, align(rows))


@segment.command()
@click.argument("file", type=_FILE)
@click.option("--records", is_flag=True, help="The records of each batch too.")
@click.pass_context
def dump(ctx: click.Context, file: str, records: bool) -> None:
    """Show every batch of a log file; with --records what is in them. Exit 6 for damage."""
    console: Console = ctx.obj
    bad = 0

    def found() -> Iterator[tuple[BatchInfo, Columns | None]]:
        nonlocal bad
        for info, columns in offline.dump(file):
            bad += info.problem is not None and not info.torn
            yield info, columns

    dump_batches(console, file, found(), records=records)
    ctx.exit(EXIT_UNHEALTHY if bad else 0)


def dump_batches(
    console: Console,
    file: str,
    batches: Iterable[tuple[BatchInfo, Columns | None]],
    *,
    records: bool,
) -> None:
    if console.output == "json":
        documents = [batch_document(file, *batch, records=records) for batch in batches]
        show(console, {"batches": documents}, "")
        return
    if console.output == "table":
        click.echo(fixed(_DUMP_COLUMNS))
    for info, columns in batches:  # a segment is large: one batch at a time
        if console.output == "ndjson":
            click.echo(compact(batch_document(file, info, columns, records=records)))
            continue
        click.echo(dump_row(info))
        if records and columns is not None:
            click.echo("".join(f"  {line}\n" for line in record_lines(info, columns)), nl=False)


@segment.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATH)
@click.pass_context
def verify(ctx: click.Context, paths: tuple[str, ...]) -> None:
    """Verify every checksum of log files, or of all below directories; exit 6 for corruption.

    A torn tail, which a crash leaves behind an unfinished write, is no corruption.
    """
    console: Console = ctx.obj
    reports = offline.verify(paths)
    if not reports:
        raise click.UsageError(f"no log files in {', '.join(paths)}")
    ok = all(report.ok for report in reports)
    document: dict[str, object] = {"ok": ok, "files": [asdict(report) for report in reports]}
    show(console, document, "\n".join(verify_lines(reports)))
    ctx.exit(0 if ok else EXIT_UNHEALTHY)


@segment.command()
@click.argument("file", type=_FILE)
@click.pass_obj
def index(console: Console, file: str) -> None:
    """Show the index of a segment (FILE: its .index or .log)."""
    entries = offline.index_entries(file)
    rows = [("OFFSET", "POSITION", "APPEND TIME")]
    rows += [
        (format_count(entry.offset), format_count(entry.position), utc(entry.append_time))
        for entry in entries
    ]
    show(console, {"entries": [asdict(entry) for entry in entries]}, align(rows))


def verify_lines(reports: list[FileReport]) -> Iterator[str]:
    """A line a file, and one for all of them."""
    for report in reports:
        state = "ok" if report.ok else "CORRUPT"
        torn = f", torn tail of {report.torn_bytes:,} bytes" if report.torn_bytes else ""
        yield (
            f"{state}  {report.file}  {counted(report.batches, 'batch', 'es')},"
            f" {counted(report.records, 'record')}, {format_size(report.size_bytes)}{torn}"
        )
        if report.error is not None:
            error = report.error
            yield f"  {error.code} at byte {error.position:,}: {error.message}"
    bad = sum(not report.ok for report in reports)
    yield f"{counted(len(reports), 'file')}, {bad:,} corrupt"


def counted(count: int, noun: str, more: str = "s") -> str:
    """``1 batch``, ``2,000 batches``"""
    return f"{count:,} {noun}{'' if count == 1 else more}"


def batch_document(
    file: str, info: BatchInfo, columns: Columns | None, *, records: bool
) -> dict[str, object]:
    """A batch as JSON; one whose records cannot be read has none."""
    document: dict[str, object] = asdict(info)
    if records:
        listed = [] if columns is None else list(record_documents(file, info, columns))
        document["record_list"] = listed
    return document


def record_documents(file: str, info: BatchInfo, columns: Columns) -> Iterator[dict[str, object]]:
    """Record JSON. Offline the topic's name is not known: its id stands in its place."""
    topic_id, partition, *_ = place_of(file)
    for at, value in enumerate(columns.values):
        key = None if columns.keys is None else columns.keys[at]
        headers = (None if columns.headers is None else columns.headers[at]) or ()
        names = sum(len(name.encode()) + len(data or b"") for name, data in headers)
        yield record_document(
            topic=str(uuid.UUID(bytes=topic_id)),
            partition=partition,
            offset=info.base_offset + (at if columns.offsets is None else columns.offsets[at]),
            timestamp=columns.base_timestamp
            + (0 if columns.timestamps is None else columns.timestamps[at]),
            append_time=info.append_time,
            key=key,
            value=value,
            headers=headers,
            size_bytes=len(key or b"") + len(value or b"") + names,
        )


def record_lines(info: BatchInfo, columns: Columns) -> Iterator[str]:
    """``@12  key  value``"""
    for at, value in enumerate(columns.values):
        offset = info.base_offset + (at if columns.offsets is None else columns.offsets[at])
        key = None if columns.keys is None else columns.keys[at]
        yield f"@{offset}  {printable(key, key=True)}  {printable(value)}"


def dump_row(info: BatchInfo) -> str:
    check = "ok"
    if info.problem is not None:
        check = f"{'torn tail' if info.torn else 'BAD'}: {info.problem}"
    known = info.header_ok
    if info.control:
        check += " (control)"
    elif not info.records and known:
        check += " (empty range)"
    if info.delete_horizon is not None:
        check += f" (tombstones until {utc(info.delete_horizon)})"
    return fixed(
        (
            format_count(info.position),
            format_count(info.size_bytes),
            offsets(info.base_offset, info.last_offset),
            format_count(info.records) if known else "-",
            str(info.leader_epoch) if known else "-",
            utc(info.append_time) if known else "-",
            info.compression if known else "-",
            check,
        )
    )


def fixed(cells: Iterable[str]) -> str:
    """A row of the dump: its columns are as wide for one batch as for a million."""
    widths = _DUMP_COLUMNS.values()
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


def show(console: Console, document: dict[str, object], table: str) -> None:
    """To stdout; an empty list as ndjson is no line at all."""
    if text := console.render(document, table):
        click.echo(text)


def offsets(first: int, last: int) -> str:
    """``120-499``; an empty range is ``-``."""
    return "-" if last < first else f"{first:,}" if first == last else f"{first:,}-{last:,}"


def utc(time_ms: int) -> str:
    """``2026-11-21T08:41:38.123Z``; the number where it is no time, as in a damaged header."""
    try:
        moment = datetime.fromtimestamp(time_ms / 1_000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(time_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1_000:03d}Z"
