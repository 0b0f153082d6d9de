"""From files, environment and options to one value per setting, each with where it came from.

Order of precedence: command line > environment > file > default. Nothing is skipped: a key that
does not exist, or comes with a later release, is an error (T080), as is a value of the wrong kind
(T082). Errors are collected, so that ``tailrace config check`` can show all of them at once.

Pure, but for ``read_file``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tailrace.broker.settings import (
    LATER_SECTIONS,
    SETTINGS,
    Setting,
    is_listener_name,
    setting_of,
)
from tailrace.protocol import texts_config as texts
from tailrace.protocol.errors import ConfigError

Source = Literal["default", "file", "env", "cli"]
Plain = str | int | float | bool
ENVIRONMENT_PREFIX = "TAILRACE_"

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_ASSIGNMENT = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")
_ERROR_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


@dataclass(frozen=True, slots=True)
class Given:
    """A value somebody wrote, not yet checked."""

    key: str  # "storage.data_dir"
    value: object
    source: Source
    origin: str  # file:line, variable or option: what an error names


@dataclass(frozen=True, slots=True)
class Value:
    """The effective value of one key."""

    key: str
    setting: Setting
    text: str  # canonical
    parsed: Any  # what setting.kind.parse made of it
    default: str
    source: Source
    origin: str


# ── where values are written ─────────────────────────────────────────────────────────────────


def read_file(path: Path) -> list[Given]:
    """The settings of a TOML file. ConfigError T082 if it cannot be read or is no TOML."""
    import tomllib  # here: it costs 60 ms, and a broker without a file need not pay them

    try:
        text = path.read_text("utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise texts.file_unreadable(str(path), reason=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise texts.file_invalid(str(path), reason=f"not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        line = _ERROR_LINE.search(str(error))
        source = f"{path}:{line[1]}" if line else str(path)
        raise texts.file_invalid(source, reason=_ERROR_LINE.sub("", str(error))) from error
    lines = dict(_lines_of(text))
    return [
        Given(key, value, "file", f"{path}:{lines[key]}" if key in lines else str(path))
        for key, value in _flatten("", document)
    ]


def _flatten(prefix: str, table: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Tables become dotted keys, as far as the table of settings goes down with them."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and _is_section(key):
            yield from _flatten(f"{key}.", cast(dict[str, object], value))
        else:
            yield key, value


def _is_section(key: str) -> bool:
    first, _, rest = key.partition(".")
    if first == "listeners":
        return "." not in rest
    return any(known.startswith(f"{key}.") for known in SETTINGS)


def _lines_of(text: str) -> Iterator[tuple[str, int]]:
    """(key, line) of every header and assignment, for error messages only."""
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _plain_key(header[1])
            yield section, number
        elif assignment := _ASSIGNMENT.match(line):
            key = _plain_key(assignment[1])
            yield (f"{section}.{key}" if section else key), number


def _plain_key(written: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in written.split("."))


def read_environment(environ: Mapping[str, str]) -> list[Given]:
    """``TAILRACE_SECTION__KEY`` variables; names without ``__`` are not settings."""
    return [
        Given(name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), value, "env", name)
        for name, value in sorted(environ.items())
        if name.startswith(ENVIRONMENT_PREFIX) and "__" in name
    ]


def read_options(assignments: Iterable[str]) -> list[Given]:
    """``SECTION.KEY=VALUE`` as given to ``--set``. ConfigError T082 without a ``=``."""
    found: list[Given] = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise texts.not_an_assignment("--set", assignment)
        found.append(Given(key, value, "cli", f"--set {key}"))
    return found


def read_mapping(values: Mapping[str, Plain], origin: str) -> list[Given]:
    """Settings given by Python: a bare number is seconds or bytes."""
    return [Given(key, with_unit(key, value), "cli", origin) for key, value in values.items()]


def with_unit(key: str, value: Plain) -> str:
    """A Python value as text: 604800 for a duration is ``604800s``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    setting = setting_of(key)
    unit = setting.kind.bare_unit if setting is not None else ""
    return f"{value}{unit}" if isinstance(value, int | float) else value


# ── what they come to ────────────────────────────────────────────────────────────────────────


def resolve(
    given: Iterable[Given], defaults: Mapping[str, str]
) -> tuple[dict[str, Value], list[ConfigError]]:
    """One value per key and every error found; later values in ``given`` win.

    ``defaults`` replace those of the table (``tailrace dev`` and tests have their own).
    """
    values: dict[str, Value] = {}
    errors: list[ConfigError] = []
    listeners = {"client"}
    written: list[Value] = []
    for one in given:
        try:
            value = parse(one, defaults)
        except ConfigError as error:
            errors.append(error)
            continue
        written.append(value)
        if value.key.startswith("listeners."):
            listeners.add(value.key.split(".")[1])
    for key, setting in expand(listeners):
        values[key] = _default(key, setting, defaults)
    for value in written:
        values[value.key] = value
    return values, errors


def expand(listeners: Iterable[str]) -> Iterator[tuple[str, Setting]]:
    """Every key that exists in this release, with the listeners' names filled in."""
    for key, setting in SETTINGS.items():
        if not setting.exists:
            continue
        if "*" in key:
            for name in sorted(listeners):
                yield key.replace("*", name), setting
        else:
            yield key, setting


def _default(key: str, setting: Setting, defaults: Mapping[str, str]) -> Value:
    text = defaults.get(key, setting.default)
    return Value(key, setting, text, setting.kind.parse(text), text, "default", "default")


def parse(given: Given, defaults: Mapping[str, str]) -> Value:
    """One checked value; ConfigError T080, T082 or T086."""
    setting = setting_of(given.key)
    if setting is None:
        raise _unknown(given)
    if not setting.exists:
        raise texts.setting_later(given.origin, given.key, release=setting.later)
    default = defaults.get(given.key, setting.default)
    text, parsed = parse_value(setting, given.key, given.value, given.origin)
    return Value(given.key, setting, text, parsed, default, given.source, given.origin)


def parse_value(setting: Setting, key: str, value: object, origin: str) -> tuple[str, Any]:
    """(canonical text, parsed value) of what was written; ConfigError T082 or T086."""
    kind = setting.kind
    text = with_unit("", value) if isinstance(value, Plain) else _text_of(value)
    if text in setting.later_values:
        raise texts.value_later(origin, key, value=text, release=setting.later)
    try:
        parsed = kind.parse(text)
        if type(value) not in (*kind.toml, str):
            raise ValueError("text in quotes")
    except ValueError as error:
        raise texts.setting_invalid(origin, key, value=repr(value), wanted=str(error)) from None
    return kind.text(parsed), parsed


def _text_of(value: object) -> str:
    """A list as its kind parses it; anything else no kind takes."""
    if isinstance(value, list):
        return ",".join(map(str, cast(list[object], value)))
    return str(value)


def _unknown(given: Given) -> ConfigError:
    import difflib  # only a mistake pays for it

    names = [key for key, _ in expand({"client"})]
    parts = given.key.split(".")
    if release := LATER_SECTIONS.get(parts[0]):
        return texts.setting_later(given.origin, given.key, release=release)
    if parts[0] == "listeners" and len(parts) == 3 and is_listener_name(parts[1]):
        names = [key.replace("*", parts[1]) for key in SETTINGS if "*" in key]
    similar = difflib.get_close_matches(given.key, names, n=1)
    return texts.setting_unknown(given.origin, given.key, similar=similar[0] if similar else None)
