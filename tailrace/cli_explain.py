"""``tailrace explain CODE`` and ``tailrace completion``: answers that need no broker."""

import difflib
import re

import click
from click.shell_completion import get_completion_class

from tailrace.protocol import texts_cli
from tailrace.protocol.catalogue import CATALOGUE, Entry
from tailrace.protocol.console import Console


@click.command()
@click.argument("target", metavar="CODE")
@click.pass_obj
def explain(console: Console, target: str) -> None:
    """Say what an error code means, what to do, and show an example."""
    code = target.upper()
    if not re.fullmatch(r"T\d{3}", code):
        topic, colon, _ = target.partition(":")
        until_then = f"See the partition: tailrace topic describe {topic}"
        raise texts_cli.later_command(f"explain {target}", *([until_then] if colon else []))
    entry = CATALOGUE.get(code)
    if entry is None:
        near = difflib.get_close_matches(code, CATALOGUE, n=3, cutoff=0.5)
        raise click.UsageError(f"there is no error {code}. Similar: {', '.join(near) or 'none'}")
    document: dict[str, object] = {
        "code": entry.code,
        "class": entry.class_name,
        "retriable": entry.retriable,
        "cause": entry.cause,
        "fix": entry.fix,
        "example": entry.example,
    }
    click.echo(console.render(document, as_text(entry)))


def as_text(entry: Entry) -> str:
    retriable = "the same call may succeed later" if entry.retriable else "not retriable"
    return (
        f"{entry.code}  {entry.class_name}  ({retriable})\n\n"
        f"Cause    {entry.cause}\nFix      {entry.fix}\nExample  {entry.example}"
    )


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Bash: eval "$(tailrace completion bash)", for example in ~/.bashrc.
    """
    found = get_completion_class(shell)
    assert found is not None
    script = found(ctx.find_root().command, {}, "tailrace", "_TAILRACE_COMPLETE")
    click.echo(script.source())
