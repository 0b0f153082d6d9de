"""How a command's result or error becomes text: one shape for every command of every room.

Pure: values in, text out; whoever calls writes it (stdout carries data only, everything else goes
to stderr). Exit codes are part of the contract: scripts branch on them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from tailrace.protocol.errors import TailraceError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_NOT_FOUND = 4
EXIT_TIMED_OUT = 5
EXIT_UNHEALTHY = 6
EXIT_STORAGE = 7
EXIT_INTERRUPTED = 130

_EXIT_CODES: dict[str, int] = {
    **dict.fromkeys(("T001", "T002", "T003", "T004", "T005", "T100"), EXIT_UNREACHABLE),
    **dict.fromkeys(("T010", "T011", "T041", "T043"), EXIT_NOT_FOUND),
    **dict.fromkeys(("T020", "T026", "T034"), EXIT_TIMED_OUT),
    "T093": EXIT_STORAGE,
    "T094": EXIT_STORAGE,
}


Output = Literal["table", "json", "ndjson"]
OUTPUTS: dict[str, Output] = {"table": "table", "json": "json", "ndjson": "ndjson"}


@dataclass
class Console:
    """The global options of one run of the command line."""

    output: Output = "table"
    url: str | None = None
    timeout_seconds: float = 10.0
    tls_ca: str | None = None
    quiet: bool = False
    verbose: bool = False
    color: bool = True

    def render(self, document: Mapping[str, object], table: str) -> str:
        """The result as asked for; ndjson is one line per element of a one-list document."""
        if self.output == "table":
            return table
        if self.output == "json":
            return compact(document)
        values = list(document.values())
        if len(values) == 1 and isinstance(values[0], list):
            return "\n".join(map(compact, cast("list[object]", values[0])))
        return compact(document)

    def render_error(self, error: TailraceError) -> str:
        """The line for stderr."""
        if self.output == "table":
            return f"error: {error}"
        return compact({"error": error_document(error)})


def compact(value: object) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def error_document(error: TailraceError) -> dict[str, object]:
    """An error as the CLI and HTTP show it."""
    return {
        "code": error.code,
        "class": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "retriable": error.retriable,
        "details": error.details,
    }


def exit_code(error: TailraceError) -> int:
    """The process exit code for an error that ended a command."""
    if error.code.startswith(("T05", "T08")):
        return EXIT_USAGE
    return _EXIT_CODES.get(error.code, EXIT_FAILED)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns two spaces apart, without trailing blanks."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
