"""What every provoked error is held against, and hands for provoking: a raw client, a command."""

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import click
import pytest
import trio

from tailrace.cli import root, run
from tailrace.protocol.catalogue import CATALOGUE
from tailrace.protocol.console import Console
from tailrace.protocol.errors import CLASSES, TailraceError
from tests.broker.harness import Client

# What a shell would be given: from "tailrace" up to the end of the phrase.
COMMAND = re.compile(r"(?<![/\w-])tailrace (?P<words>[a-z][^,;()]*?)(?=\.?$|[.:] |[,;()])")


def told(error: BaseException, code: str, message: str, /, **attributes: object) -> None:
    """``message`` is a pattern for the whole of it; ``attributes`` as the class has them."""
    assert isinstance(error, TailraceError)
    assert (error.code, type(error)) == (code, CLASSES[code])
    assert re.fullmatch(message, error.message), error.message
    assert str(error) == f"{code}: {error.message}." + (f" {error.hint}" if error.hint else "")
    assert error.retriable is CATALOGUE[code].retriable
    found = {name: getattr(error, name) for name in attributes}
    assert found == attributes
    check_commands(error.hint)


def told_by(document: dict[str, Any], code: str, message: str, /, **details: object) -> None:
    """The same for the document of an error, as ``-O json`` and HTTP have it."""
    assert (document["code"], document["class"]) == (code, CATALOGUE[code].class_name)
    assert document["retriable"] is CATALOGUE[code].retriable
    assert re.fullmatch(message, document["message"]), document["message"]
    assert {name: document["details"][name] for name in details} == details
    check_commands(document["hint"])


def check_commands(text: str) -> None:
    """Every command line that a text names is one: it exists, with these options."""
    for words in commands(text):
        parse(words)


def commands(text: str) -> Iterator[list[str]]:
    for found in COMMAND.finditer(text):
        yield found["words"].split()


def parse(words: list[str]) -> None:
    """As the command line would, without running it; files need not be there.

    Raises click's UsageError.
    """
    # With the settings of a real run: click remembers the help option of a command it has seen.
    ctx = click.Context(root, info_name="tailrace", obj=Console(), **root.context_settings)
    command: click.Command = root
    while isinstance(command, click.Group):
        assert words, f"{ctx.command_path} alone does nothing"
        name, found, words = command.resolve_command(ctx, words)
        assert found is not None
        command, ctx = found, click.Context(found, parent=ctx, info_name=name)
    if words == ["--help"]:
        return
    try:
        command.parse_args(ctx, words)
    except click.BadParameter as error:
        if not error.message.endswith("does not exist."):
            raise


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the error of a command that fails."""
    capsys.readouterr()
    code = run([*arguments, "-O", "json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
    return code, document


def with_raw_client(url: str, talk: Callable[[Client], Awaitable[None]]) -> None:
    """A conversation in the protocol itself, after the greeting."""
    host, port = url.removeprefix("tailrace://").split(":")

    async def main() -> None:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                client = Client(stream)
                await client.hello()
                await talk(client)

    trio.run(main)
