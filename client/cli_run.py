"""What the client's commands share: one connection, run to its end, from the global options.

The client itself is imported when it is needed: help and usage errors are instant.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from tailrace.protocol import texts_cli
from tailrace.protocol.console import EXIT_FAILED, Console
from tailrace.protocol.units import parse_duration_s

if TYPE_CHECKING:
    import ssl

    from tailrace.client.client import Client

T = TypeVar("T")


def with_client(console: Console, work: "Callable[[Client], Awaitable[T]]") -> T:
    """Run ``work`` with a connected client on an asyncio loop; errors leave as themselves."""
    import anyio

    async def session() -> T:
        async with connect_by(console) as client:
            return await work(client)

    return anyio.run(session, backend="asyncio")


def connect_by(console: Console) -> "Client":
    """A client for the broker that the global options name; connects on ``async with``."""
    from tailrace.client.client import connect

    url = console.url
    if url is not None and "://" not in url:
        url = f"tailrace://{url}"
    tls = None if console.tls_ca is None else trust(console.tls_ca)
    return connect(
        url,
        tls=tls,
        connect_timeout=min(5.0, console.timeout_seconds),
        request_timeout=console.timeout_seconds,
    )


def trust(path: str) -> "ssl.SSLContext":
    """A TLS context that trusts the certificates in a file, or ConfigError T082."""
    import ssl

    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise texts_cli.bad_value(source="--tls-ca", key=path, reason=str(error)) from error


def confirm(question: str, yes: bool) -> None:
    """Ask before destroying something; off a terminal only ``--yes`` will do (exit 2)."""
    if yes:
        return
    if not on_terminal():
        raise click.UsageError(f"{question} Not asking off a terminal: add --yes.")
    if not click.confirm(question, err=True):
        raise click.exceptions.Exit(EXIT_FAILED)


def on_terminal() -> bool:
    """Whether somebody is there to answer."""
    stdin: TextIO | None = sys.stdin  # None: closed by the shell
    return stdin is not None and stdin.isatty()


def say(console: Console, text: str) -> None:
    """A summary line on stderr, unless ``-q``."""
    if not console.quiet:
        click.echo(text, err=True)


def show(console: Console, document: object, table: str) -> None:
    """The result, a dict or a shape, on stdout; an empty list as ndjson is no line at all."""
    from tailrace.protocol.shapes import to_json

    if text := console.render(to_json(document), table):
        click.echo(text)


def show_document(console: Console, document: object) -> None:
    """What a mutating command shows on stdout only where it was asked for."""
    if console.output != "table":
        show(console, document, "")


def plural(count: int, noun: str) -> str:
    """``1 partition``, ``1,000 records``"""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration_s(option: str, text: str | None) -> float | None:
    """An option's duration, None where it is not given."""
    if text is None:
        return None
    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise click.UsageError(f"{option} '{text}' is not {error}") from error


def settings(pairs: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` options as a dict."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set takes KEY=VALUE, not '{pair}'")
        if key in found:
            raise click.UsageError(f"--set of {key} twice")
        found[key] = value
    return found
