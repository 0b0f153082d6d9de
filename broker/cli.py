"""``tailrace dev`` and ``tailrace serve``.

Commands return their exit code. What a command prints goes through the ``Console`` in the root
context's ``obj``; errors are raised, the root makes them text, but for a broker that could not
start or go on: its exit codes are those of a daemon (``process.failure_code``).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tailrace.broker.cli_config import console_of, report_check
from tailrace.broker.config import Config, Given, Sources, find_file, load
from tailrace.broker.config_values import read_options
from tailrace.broker.kinds import Address
from tailrace.protocol import texts_cli
from tailrace.protocol.console import Console, compact
from tailrace.protocol.errors import TailraceError

if TYPE_CHECKING:
    from tailrace.broker.server import Ready

DEV_DEFAULTS = {
    "broker.auto_create": "true",
    "group.assign_delay": "0ms",
    "storage.data_dir": "./.tailrace",
    "log.format": "text",
}
DEV_ADDRESS = "127.0.0.1:7400"
MEMORY_DIRECTORY = "/dev/shm"
_PORT = click.IntRange(0, 65535)


@click.command()
@click.option("--brokers", type=click.IntRange(1, 9), default=1, metavar="N", help="Default 1.")
@click.option("--port", type=_PORT, default=7400, metavar="PORT", help="Default 7400; 0: any free.")
@click.option("--http-port", type=_PORT, default=7480, metavar="PORT", help="Default 7480; 0: any.")
@click.option("--data", default=None, metavar="DIR", help="Default ./.tailrace")
@click.option("--memory", is_flag=True, help="Keep data in memory, gone at exit.")
@click.option("--no-auto-create", is_flag=True, help="Do not create topics on first use.")
@click.pass_context
def dev(
    ctx: click.Context,
    brokers: int,
    port: int,
    http_port: int,
    data: str | None,
    memory: bool,
    no_auto_create: bool,
) -> int:
    """Start a broker for development, or several that replicate to each other."""
    if memory and data is not None:
        raise click.UsageError("--memory and --data exclude each other")
    console = console_of(ctx)
    options: list[Given] = []

    def option(key: str, value: str, name: str) -> None:
        options.append(Given(key, value, "cli", name))

    if ctx.get_parameter_source("port") is ParameterSource.COMMANDLINE:
        option("listeners.client.bind", f"127.0.0.1:{port}", "--port")
    if ctx.get_parameter_source("http_port") is ParameterSource.COMMANDLINE:
        option("http.bind", f"127.0.0.1:{http_port}", "--http-port")
    if data is not None:
        option("storage.data_dir", data, "--data")
    if no_auto_create:
        option("broker.auto_create", "false", "--no-auto-create")
    options += verbosity(console)
    with memory_directory(wanted=memory) as directory:
        if directory is not None:
            option("storage.data_dir", directory, "--memory")
        log_format = "text" if console.output == "table" else "json"
        defaults = {**DEV_DEFAULTS, "log.format": log_format}
        sources = Sources(None, dict(os.environ), tuple(options), defaults)
        config = load(sources)
        kept = "in memory (gone at exit)" if memory else f"{config.storage.data_dir}"
        kept += "" if memory else " (delete to reset)"
        if brokers > 1:
            return run_several(console, several(sources, brokers), kept)
        if os.path.exists(f"{config.storage.data_dir}/cluster.sqlite"):
            raise texts_cli.other_kind(config.storage.data_dir, several=True)

        def human(ready: "Ready") -> str:
            return (
                f"broker ready {ready.url}, http {ready.http or 'off'}, data {kept},"
                f" Ctrl-C to stop\ntry: tailrace {there(ready.url)}produce hello"
            )

        return run_broker(console, config, sources, human)


def several(sources: Sources, brokers: int) -> list[Config]:
    """As for one broker, but for ids, ports (each one more than that before) and directories."""
    one = load(sources)

    def of(number: int) -> Config:
        def at(key: str, address: Address, name: str) -> Given:
            port = address.port and address.port + number
            return Given(key, str(Address(address.host, port)), "cli", name)

        broker_id = f"n{number + 1}"
        options = [
            Given("broker.id", broker_id, "cli", "--brokers"),
            Given("storage.data_dir", f"{one.storage.data_dir}/{broker_id}", "cli", "--data"),
            *(at(f"listeners.{each.name}.bind", each.bind, "--port") for each in one.listeners),
        ]
        if one.http.bind is not None:
            options.append(at("http.bind", one.http.bind, "--http-port"))
        config = load(replace(sources, options=(*sources.options, *options)))
        return replace(config, cluster=replace(config.cluster, metadata="shared"))

    return [of(number) for number in range(brokers)]


def run_several(console: Console, configs: list[Config], kept: str) -> int:
    """Run them until they end; the exit code."""
    from tailrace.broker import several as processes  # trio, and with it half of the start

    directory = os.path.dirname(configs[0].storage.data_dir)
    urls: list[str] = []

    def announce(ready: "Ready") -> None:
        urls.append(ready.url.removeprefix("tailrace://"))
        if console.output != "table":
            click.echo(compact(ready_document(ready)))
            return
        lines = [f"broker {ready.broker_id} ready {ready.url}, http {ready.http or 'off'}"]
        if len(urls) == len(configs):
            lines += [
                f"{len(urls)} brokers ready tailrace://{','.join(urls)}, data {kept}, Ctrl-C to"
                " stop",
                f"try: tailrace {there(urls[0])}produce hello",
            ]
        if not console.quiet:
            click.echo("\n".join(lines), err=True)

    return guarded(console, lambda: processes.run(configs, directory, announce), directory)


def there(url: str) -> str:
    """The option that leads a command to this broker; none if it looks there anyway."""
    address = url.removeprefix("tailrace://")
    return "" if address == DEV_ADDRESS else f"-b {address} "


@contextmanager
def memory_directory(*, wanted: bool) -> Generator[str | None]:
    """A private directory in memory (else in the temporary one) that is removed afterwards."""
    if not wanted:
        yield None
        return
    parent = MEMORY_DIRECTORY if os.access(MEMORY_DIRECTORY, os.W_OK | os.X_OK) else None
    directory = tempfile.mkdtemp(prefix="tailrace-dev-", dir=parent)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@click.command()
@click.option("-c", "--config", "path", metavar="FILE", help="The configuration file.")
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="One value.")
@click.option("--data", default=None, metavar="DIR", help="The data directory.")
@click.option("--check", is_flag=True, help="Check the configuration and exit.")
@click.pass_context
def serve(
    ctx: click.Context,
    path: str | None,
    assignments: tuple[str, ...],
    data: str | None,
    check: bool,
) -> int:
    """Run a broker as a daemon."""
    console = console_of(ctx)
    options = read_options(assignments)
    if data is not None:
        options.append(Given("storage.data_dir", data, "cli", "--data"))
    options += verbosity(console)
    sources = Sources(find_file(path, os.environ), dict(os.environ), tuple(options))
    if check:
        return report_check(console, sources)
    return run_broker(console, load(sources), sources, lambda ready: None)


def verbosity(console: Console) -> list[Given]:
    """What ``-v`` means for a broker."""
    return [Given("log.level", "debug", "cli", "-v")] if console.verbose else []


def run_broker(
    console: Console, config: Config, sources: Sources, human: "Callable[[Ready], str | None]"
) -> int:
    """Run it until it ends; the exit code. ``human`` is what to print when it is ready."""
    from tailrace.broker import process  # trio, and with it half of the start

    def announce(ready: "Ready") -> None:
        if console.output != "table":
            click.echo(compact(ready_document(ready)))
        elif not console.quiet and (text := human(ready)) is not None:
            click.echo(text, err=True)

    return guarded(console, lambda: process.run(config, sources, announce), config.storage.data_dir)


def guarded(console: Console, run: "Callable[[], int]", data_dir: str) -> int:
    """What it returns; of a broker that could not start or go on, a daemon's exit code."""
    from tailrace.broker.process import failure_code

    failed: TailraceError
    try:
        return run()
    except TailraceError as error:
        failed = error
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:  # a write that finds no room does not say where
        failed = texts_cli.file_error(
            error.filename or data_dir, reason=error.strerror or str(error)
        )
    click.echo(console.render_error(failed), err=True)
    return failure_code(failed)


def ready_document(ready: "Ready") -> dict[str, object]:
    """The one line of ``-O json``."""
    return {
        **{"event": "ready", "url": ready.url, "http": ready.http, "data_dir": ready.data_dir},
        **{"broker_id": ready.broker_id, "pid": os.getpid()},
    }
