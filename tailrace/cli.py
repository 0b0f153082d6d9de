"""The command line's root: global options, lazy commands, and the one border for errors.

A command's module is imported only when that command runs, so ``--help`` and usage errors cost no
more than click does. Global options may stand before or after the command's name: they are added
to every command as it is loaded.
"""

import contextlib
import copy
import gc
import importlib
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

import click

from tailrace.protocol import console as consoles, texts_cli
from tailrace.protocol.console import Console
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import parse_duration_s
from tailrace.protocol.version import VERSION

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETE_VARIABLE = "_TAILRACE_COMPLETE"


class Place(NamedTuple):
    """Where a command is, and its line in the help, known without importing it."""

    module: str
    name: str
    help: str
    server: bool = False  # needs the [server] extra


COMMANDS: dict[str, Place] = {
    "dev": Place("tailrace.broker.cli", "dev", "Start a broker for development.", True),
    "serve": Place("tailrace.broker.cli", "serve", "Run a broker as a daemon.", True),
    "topic": Place("tailrace.client.cli_topic", "topic", "Create, list, change, delete topics."),
    "produce": Place("tailrace.client.cli_produce", "produce", "Send lines of stdin as records."),
    "consume": Place("tailrace.client.cli_consume", "consume", "Print records as they come."),
    "tail": Place("tailrace.client.cli_consume", "tail", "Print the last records of a topic."),
    "cat": Place("tailrace.client.cli_consume", "cat", "Print records by offset."),
    "group": Place("tailrace.client.cli_group", "group", "Consumer groups: lag, offsets."),
    "cluster": Place("tailrace.client.cli_cluster", "cluster", "The brokers and their health."),
    "segment": Place("tailrace.storage.cli", "segment", "Inspect log files offline."),
    "bench": Place("tailrace.bench.cli", "bench", "Measure produce, consume and end to end."),
    "doctor": Place("tailrace.cli_doctor", "doctor", "Check this machine and the broker."),
    "config": Place("tailrace.broker.cli_config", "config", "Show and check settings.", True),
    "explain": Place("tailrace.cli_explain", "explain", "Say why: a code, record, topic, group."),
    "completion": Place("tailrace.cli_explain", "completion", "Print shell completion."),
}
EXTRAS = ("trio", "msgspec", "starlette", "h11", "httpx2")  # what [server] brings
# Reserved names: refused with T086, so that a script learns why.
LATER = frozenset(
    ("queue", "txn", "stream", "connect", "schema", "acl", "user", "profile", "metrics", "debug")
)
LATER_OPTIONS: dict[str, tuple[str, ...]] = {
    "tailrace consume": ("--filter",),
    "tailrace dev": ("--seed", "--console"),
}


class LazyGroup(click.Group):
    """The root: knows every command's name and help line, imports only the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER:
            raise texts_cli.later_command(command=cmd_name)
        place = COMMANDS.get(cmd_name)
        if place is None and (near := similar(cmd_name)):
            raise click.UsageError(f"No such command '{cmd_name}'. Similar: {near}", ctx)
        return None if place is None else load(cmd_name, place)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """The names, without loading what they stand for."""
        from click.shell_completion import CompletionItem

        found = [(name, place) for name, place in COMMANDS.items() if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=place.help) for name, place in found]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items()])


def similar(name: str) -> str | None:
    """The command that was probably meant."""
    import difflib

    return next(iter(difflib.get_close_matches(name, COMMANDS, n=1)), None)


def load(name: str, place: Place) -> click.Command:
    """The command, with the global options added; T084 if its extra is not installed.

    All of it: whoever uses the SDK under trio has that, and yet no server.
    """
    if place.server and not all(map(installed, EXTRAS)):
        raise texts_cli.needs_server(command=name)
    command = cast(click.Command, getattr(importlib.import_module(place.module), place.name))
    add_globals(command)
    return command


def installed(name: str) -> bool:
    """Whether a library is there; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def add_globals(command: click.Command) -> None:
    """Let the global options stand behind the command's name too."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            add_globals(inner)
        if (listing := command.commands.get("list")) is not None:
            command.commands["ls"] = alias = copy.copy(listing)
            alias.hidden = True
        return
    taken = {parameter.name for parameter in command.params}
    command.params.extend(option for option in global_options() if option.name not in taken)


def global_options() -> list[click.Option]:
    """The options every command takes; each stores its value in the Console of this run."""

    def option(
        *names: str,
        field: str,
        parse: Callable[[str], object] = str,
        flag: object = None,
        **more: Any,
    ) -> click.Option:
        def store(ctx: click.Context, parameter: click.Parameter, value: str | bool | None) -> None:
            # Behind the command's name an absent option must not undo one before it.
            if value is None or value is False:
                return
            setattr(console_of(ctx), field, flag if value is True else parse(value))
            if field == "verbose":
                log_to_stderr()

        is_flag = flag is not None
        return click.Option(names, callback=store, expose_value=False, is_flag=is_flag, **more)

    waits = "Give up after so long (default 10s)."
    shapes = click.Choice(list(consoles.OUTPUTS))
    return [
        option("-b", "--url", field="url", metavar="URL", help="Broker(s) to connect to."),
        option(*("-O", "--output"), field="output", type=shapes, help="Default table."),
        option("--timeout", field="timeout_seconds", parse=seconds, metavar="DUR", help=waits),
        option("--tls-ca", field="tls_ca", metavar="FILE", help="Trust these certificates."),
        option("-q", "--quiet", field="quiet", flag=True, help="No summaries, no progress."),
        option("-v", "--verbose", field="verbose", flag=True, help="Log to stderr."),
        option("--no-color", field="color", flag=False, help="Plain output."),
    ]


def seconds(text: str) -> float:
    """A duration above 0 that ends."""
    try:
        found = parse_duration_s(text)
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not {error}") from error
    if not 0 < found < math.inf:
        raise click.BadParameter(f"'{text}' is no time to wait: 500ms, 10s, 1h")
    return found


def console_of(ctx: click.Context) -> Console:
    """The Console of this run."""
    found = ctx.find_root().obj
    assert isinstance(found, Console)
    return found


def new_console() -> Console:
    """As the environment asks for it; options change it as they are parsed."""
    output = os.environ.get("TAILRACE_OUTPUT") or "table"
    if output not in consoles.OUTPUTS:
        raise click.UsageError(f"TAILRACE_OUTPUT is '{output}', not table, json or ndjson")
    return Console(
        output=consoles.OUTPUTS[output],
        url=os.environ.get("TAILRACE_URL") or None,
        color="NO_COLOR" not in os.environ,
    )


def show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from tailrace.protocol.messages import PROTOCOL

        click.echo(f"tailrace {VERSION} (protocol {PROTOCOL})")
        ctx.exit()


root = LazyGroup(
    "tailrace",
    help="A log-based message broker for Python teams.",
    params=[
        *global_options(),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=show_version,
            help="Show the version and exit.",
        ),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract."""
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # closed by the shell (``>&-``)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    gc.freeze()  # a last collection takes 0.05 s, a broker's 0.2 s, and frees what ends anyway
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; the exit code. The one place where errors become text."""
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        return complete(instruction)
    try:
        code = invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return closed_stdout()
    except (KeyboardInterrupt, click.Abort):
        return consoles.EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return consoles.EXIT_USAGE
    except (TailraceError, click.ClickException, OSError) as error:
        translated = translate(error)
        console = Console(output=asked_output(arguments))
        click.echo(console.render_error(translated), err=True)
        return consoles.exit_code(translated)


def invoke(arguments: list[str]) -> int:
    """Click's own ``main`` without its handlers: they end some errors before they get here."""
    try:
        with root.make_context("tailrace", list(arguments), obj=new_console()) as ctx:
            result: object = root.invoke(ctx)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    return result if isinstance(result, int) else 0


def translate(error: TailraceError | click.ClickException | OSError) -> TailraceError:
    """What went wrong as an error of ours."""
    if isinstance(error, TailraceError):
        return error
    if isinstance(error, click.ClickException):
        ctx = error.ctx if isinstance(error, click.UsageError) else None
        command = "tailrace" if ctx is None else ctx.command_path
        if isinstance(error, click.NoSuchOption):
            name = error.option_name
            if name in LATER_OPTIONS.get(command, ()):
                return texts_cli.later_command(f"{command.removeprefix('tailrace ')} {name}")
        return texts_cli.usage(message=error.format_message(), command=command)
    return texts_cli.file_error(error.filename, reason=error.strerror or str(error))


def closed_stdout() -> int:
    """The reader went away (``| head``): nobody is left to tell."""
    # Point stdout elsewhere, so that the interpreter's own flush at exit does not complain either.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def complete(instruction: str) -> int:
    """Answer the shell's completion; where there is no answer there is no complaint either."""
    from click.shell_completion import shell_complete

    try:
        return shell_complete(root, {}, "tailrace", COMPLETE_VARIABLE, instruction)
    except (TailraceError, click.ClickException):
        return consoles.EXIT_FAILED


def asked_output(arguments: Sequence[str]) -> consoles.Output:
    """The output asked for, even if the command line turns out wrong before it is parsed."""
    asked = os.environ.get("TAILRACE_OUTPUT", "table")
    for at, argument in enumerate(arguments):
        if argument in ("-O", "--output") and at + 1 < len(arguments):
            asked = arguments[at + 1]
        elif argument.startswith(("-O", "--output=")) and argument != "-O":
            asked = argument.removeprefix("--output=").removeprefix("-O")
    return consoles.OUTPUTS.get(asked, "table")


def log_to_stderr() -> None:
    """With ``-v`` the SDK's own log lines go to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("tailrace")
    if logger.handlers:
        return  # given both before and after the command
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


if __name__ == "__main__":
    main()
