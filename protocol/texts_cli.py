"""The texts of the command line itself; rules as in ``texts.py``."""

from tailrace.protocol import errors
from tailrace.protocol.texts import shown
from tailrace.protocol.units import format_count as count, format_seconds


def invalid_input(
    reason: str, *, line: int | None = None, hint: str = "See: tailrace produce --help"
) -> errors.InputError:
    """T062 for stdin, files and request bodies. ``line`` counts from 1."""
    where = "" if line is None else f"line {count(line)}: "
    return errors.InputError("T062", f"{where}{shown(reason)}", hint, line=line)


def usage(message: str, *, command: str) -> errors.ConfigError:
    """T082 for options and arguments of a command. ``command``: "tailrace topic create"."""
    return errors.ConfigError(
        "T082",
        f"{command}: {shown(message).removesuffix('.')}",
        f"See: {command} --help",
        key=command,
    )


def bad_value(source: str, *, key: str, reason: str) -> errors.ConfigError:
    """T082 for an option's value. ``source``: the option; ``key``: what was given."""
    return errors.ConfigError(
        "T082",
        f"{source} {shown(key)}: {shown(reason)}",
        "See: tailrace --help",
        key=key,
        source=source,
    )


def file_error(path: object, *, reason: str) -> errors.InputError:
    """T062 for what cannot be read or written. ``path``: None if it has no name."""
    where = "" if path is None else f"{shown(str(path))}: "
    return errors.InputError("T062", f"{where}{reason}", "Check the path and its permissions.")


def index_misfits(path: str, *, where: str) -> errors.BrokerError:
    """T094 for an index whose checksum holds. ``where``: "its end", "an entry for offset 7"."""
    return errors.BrokerError(
        "T094",
        f"{shown(path)} does not fit its log file: {where} is not there",
        "Remove it while the broker is stopped: the next start rebuilds it from the log file.",
        **{"path": path, "where": where},
    )


def needs_server(command: str) -> errors.ConfigError:
    """T084. ``command``: "dev"."""
    return errors.ConfigError(
        "T084",
        f"'{command}' needs the server",
        "Install it: pip install 'tailrace[server]'",
        key=command,
    )


def later_command(
    command: str, hint: str = "See what there is: tailrace --help"
) -> errors.ConfigError:
    """T086: a reserved name. ``command``: "queue", "topic purge"."""
    return errors.ConfigError(
        "T086",
        f"'{shown(command)}' comes with a later release",
        shown(hint),
        key=command,
    )


def other_kind(path: str, *, several: bool) -> errors.ConfigError:
    """T082: a directory of ``tailrace dev`` for one broker where several are asked for, or vice
    versa. ``several``: what it is."""
    holds, asked = ("several brokers", "one") if several else ("one broker", "several")
    return errors.ConfigError(
        "T082",
        f"{shown(path)} holds the data of {holds}, and {asked} shall use it",
        "Take another one: tailrace dev --data DIR, or delete it to reset.",
        key="storage.data_dir",
        source=None,
    )


def bench_stuck(*, waited_s: float, reason: str) -> errors.RequestTimeout:
    """T034: nothing was acknowledged or read for so long. ``reason``: what the client knows."""
    return errors.RequestTimeout(
        "T034",
        f"the bench got no further in {format_seconds(waited_s)} s: {shown(reason)}",
        "Look: tailrace doctor, or raise --timeout.",
        what="bench",
        address="",
        elapsed=waited_s,
    )
