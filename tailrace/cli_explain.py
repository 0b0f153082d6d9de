"""``tailrace explain`` and ``tailrace completion``: codes and scripts need no broker."""

import difflib
import re

import click
from click.shell_completion import get_completion_class

from tailrace.protocol.catalogue import CATALOGUE, Entry
from tailrace.protocol.console import Console

CODE = re.compile(r"[Tt][0-9]{3}")


@click.command()
@click.argument("target", metavar="[TARGET]", required=False)
@click.option("-g", "--group", metavar="GROUP", help="As far as this group is concerned.")
@click.pass_obj
def explain(console: Console, target: str | None, group: str | None) -> None:
    """Say why something is as it is: an error code, a record, a partition, a topic, a group.

    TARGET is a code (T041: cause, fix and example), TOPIC, TOPIC:PARTITION or
    TOPIC:PARTITION:OFFSET; -g alone is the group. A topic whose name is like a code ends in a
    colon: T041:
    """
    if target is None and group is None:
        raise click.UsageError("nothing to explain: CODE, TOPIC, TOPIC:P, TOPIC:P:OFF or -g GROUP")
    if target is not None and CODE.fullmatch(target):
        if group is not None:
            raise click.UsageError(f"{target} is an error code; -g goes with topics")
        explain_code(console, target.upper())
        return
    from tailrace.client.cli_explain_target import explain_target, parse_target

    explain_target(console, None if target is None else parse_target(target), group)


def explain_code(console: Console, code: str) -> None:
    """Cause, fix and example of an error."""
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
