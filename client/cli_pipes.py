"""stdin as lines and stdout as a pipe, on an event loop that must stay free for Ctrl-C."""

import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TextIO

import anyio
import click

from tailrace.protocol import texts_cli

READ_BYTES = 1 << 20
LINE_BYTES_MAX = 1 << 28  # far above any max_record: a stream without newlines must end somewhere


def stdin_descriptor() -> int:
    """Of stdin; a ``UsageError`` if there is none (``<&-``)."""
    stdin: TextIO | None = sys.stdin
    if stdin is None:
        raise click.UsageError("stdin is closed: give -f FILE or --value TEXT")
    return stdin.fileno()


async def read_lines(descriptor: int) -> AsyncIterator[list[bytes]]:
    """Lines without their newline, as many at a time as are there.

    A last line without a newline counts. Waits, cancellably, only where waiting is possible: for
    pipes, sockets and terminals. Raises InputError T062 for a line without end.
    """
    waits = _waits(descriptor)
    rest: list[bytes] = []
    rest_bytes = 0
    number = 1  # of the line that ``rest`` begins
    while True:
        if waits:
            await anyio.wait_readable(descriptor)
        data = os.read(descriptor, READ_BYTES)
        if not data:
            break
        *lines, last = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*rest, lines[0]))
            rest, rest_bytes = [], 0
            number += len(lines)
            yield lines
        if last:
            rest.append(last)
            rest_bytes += len(last)
        if rest_bytes > LINE_BYTES_MAX:
            reason = f"longer than {LINE_BYTES_MAX:,} bytes"
            raise texts_cli.invalid_input(reason, line=number)
    if rest:
        yield [b"".join(rest)]


def _waits(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


async def until_stdout_closes(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work``; BrokenPipeError as soon as nobody reads our stdout any more.

    Without it ``consume | head -1`` would stay until the next record fails to be written.
    """
    descriptor = _stdout_pipe()
    if descriptor is None:
        await work()
        return
    closed = False

    async def watch(scope: anyio.CancelScope) -> None:
        nonlocal closed
        # The writing end of a pipe is never readable; what wakes it is the reader's going away.
        await anyio.wait_readable(descriptor)
        closed = True
        scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, tasks.cancel_scope)
            await work()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # only ``work`` raises
    if closed:
        raise BrokenPipeError


def _stdout_pipe() -> int | None:
    """The descriptor of stdout if it is a pipe."""
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError):  # not a real file
        return None
