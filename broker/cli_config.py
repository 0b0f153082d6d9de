"""``tailrace config``: show, explain, check settings, and print a file of defaults."""

import difflib
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import click

from tailrace.broker.config import Config, Sources, examine, find_file, load
from tailrace.broker.config_entries import setting_of, settings_of
from tailrace.broker.settings import SETTINGS, Setting
from tailrace.protocol import texts_config
from tailrace.protocol.console import EXIT_USAGE, Console, align, error_document
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import to_json

DOC_COLUMNS = 90

_FILE = click.option("-c", "--config", "path", metavar="FILE", help="The configuration file.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def config() -> None:
    """Show, explain and check settings."""


def load_sources(path: str | None) -> Config:
    """The configuration that ``serve`` would run with."""
    return load(Sources(find_file(path, os.environ), dict(os.environ)))


@config.command("show")
@_FILE
@click.pass_context
def config_show(ctx: click.Context, path: str | None) -> int:
    """Every setting with its value and where it comes from."""
    settings = settings_of(load_sources(path).values)
    rows: list[tuple[str, ...]] = [("KEY", "VALUE", "SOURCE", "ORIGIN")]
    rows += [(one.key, one.value or '""', one.source, one.origin) for one in settings]
    document = {"settings": to_json(settings)}
    click.echo(console_of(ctx).render(document, align(rows)))
    return 0


@config.command("explain")
@click.argument("key")
@_FILE
@click.pass_context
def config_explain(ctx: click.Context, key: str, path: str | None) -> int:
    """What a setting means, its value and where that comes from."""
    values = load_sources(path).values
    if f"topic.{key}" in values:  # as it is named where a topic's own settings are refused
        key = f"topic.{key}"
    if key not in values:
        if key in SETTINGS and not SETTINGS[key].exists:
            raise texts_config.setting_later("config explain", key, release=SETTINGS[key].later)
        similar = difflib.get_close_matches(key, list(values), n=1)
        raise texts_config.setting_unknown(
            "config explain", key, similar=similar[0] if similar else None
        )
    value = values[key]
    setting = value.setting
    lines = [
        f"{key} = {toml_value(setting, value.text)}",
        f"  {setting.doc}",
        f"  kind {setting.kind.name}, default {toml_value(setting, value.default)}",
        f"  from {value.origin}" + (", reread on SIGHUP" if setting.dynamic else ""),
    ]
    if setting.per_topic:
        lines.append(f"  per topic: tailrace topic alter NAME --set {setting.name}=VALUE")
    document = {**to_json(setting_of(value)), "doc": setting.doc}
    click.echo(console_of(ctx).render(document, "\n".join(lines)))
    return 0


@config.command("check")
@click.argument("file")
@click.pass_context
def config_check(ctx: click.Context, file: str) -> int:
    """Check a configuration file; exit 2 if something is wrong."""
    return report_check(console_of(ctx), Sources(Path(file), dict(os.environ)))


def report_check(console: Console, sources: Sources) -> int:
    """Every error there is; the exit code."""
    found, errors = examine(sources)
    problems: list[TailraceError] = list(errors)
    if found is not None:
        problems += check_files(found)
    document = {"ok": not problems, "errors": [error_document(error) for error in problems]}
    text = "\n".join(f"error: {error}" for error in problems) or "configuration ok"
    click.echo(console.render(document, text), err=bool(problems) and console.output == "table")
    return EXIT_USAGE if problems else 0


def check_files(config: Config) -> list[TailraceError]:
    """What is wrong with the files the configuration names."""
    from tailrace.broker.security import (
        etcd_context,
        peer_context,
        read_password,
        read_token,
        server_context,
        shows_certificate,
        trusts_peers,
    )

    problems: list[TailraceError] = []
    checks: list[Callable[[], object]] = []
    if shows_certificate(config):
        checks.append(lambda: server_context(config.security))
    if trusts_peers(config):
        checks.append(lambda: peer_context(config.cluster))
    if config.http.bind is not None and config.http.token_file:
        checks.append(lambda: read_token(config.http.token_file))
    if any(url.startswith("https:") for url in config.cluster.etcd):
        checks.append(lambda: etcd_context(config.cluster))
    if config.cluster.etcd_user:
        checks.append(lambda: read_password(config.cluster))
    for check in checks:
        try:
            check()
        except TailraceError as error:
            problems.append(error)
    return problems


@config.command("init")
def config_init() -> int:
    """Print a commented file with every default."""
    click.echo(default_file(), nl=False)
    return 0


def default_file() -> str:
    """Every setting as a comment, by section: nothing in it changes anything."""
    lines = ["# tailrace: every setting with its default. Uncomment what you change."]
    section = ""
    for setting in SETTINGS.values():
        if not setting.exists:
            continue
        head, _, name = setting.key.replace("*", "client").rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        lines += [f"# {row}" for row in textwrap.wrap(setting.doc, DOC_COLUMNS)]
        lines.append(f"# {name} = {toml_value(setting, setting.default)}")
    return "\n".join(lines) + "\n"


def console_of(ctx: click.Context) -> Console:
    """The options of this run of the command line."""
    found = ctx.find_root().obj
    return found if isinstance(found, Console) else Console()


def toml_value(setting: Setting, text: str) -> str:
    """A canonical text as TOML: numbers and booleans bare, lists in brackets, all else quoted."""
    if list in setting.kind.toml:
        return json.dumps([part for part in text.split(",") if part])
    bare = text in ("true", "false") or text.isdigit()
    return text if setting.kind.toml and bare else json.dumps(text)
