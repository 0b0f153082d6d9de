"""Errors as HTTP answers: the one border between what is raised and what is sent (pure)."""

import math
from collections.abc import Mapping

from tailrace.protocol import texts_http
from tailrace.protocol.console import compact, error_document
from tailrace.protocol.errors import StorageFull, TailraceError

UNEXPECTED = 500
RETRY_AFTER_S = 1
STATUS: dict[str, int] = {
    **dict.fromkeys(("T010", "T011", "T043"), 404),
    **dict.fromkeys(("T012", "T044"), 409),
    **dict.fromkeys(("T013", "T022", "T061", "T062", "T080", "T081", "T082", "T083", "T086"), 400),
    "T006": 401,
    "T021": 413,
    "T041": 416,
    **dict.fromkeys(("T030", "T031", "T033", "T100", "T123"), 503),
    **dict.fromkeys(("T020", "T034"), 504),
}


class Refused(Exception):
    """A request that was refused before its handler; the error's code has another status."""

    def __init__(
        self, status: int, error: TailraceError, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error
        self.headers = headers or {}


def status_of(error: TailraceError) -> int:
    """The status code of an error's answer."""
    return STATUS.get(error.code, UNEXPECTED)


def as_request_error(error: TailraceError) -> TailraceError:
    """T062 for T121: where one of our own handlers finds a request of the wire malformed (too much
    in it, something twice), whoever asked over HTTP said so."""
    if error.code != "T121":
        return error
    return texts_http.bad_request(str(error.details.get("reason", error.message)))


def headers_of(error: TailraceError, status: int) -> dict[str, str]:
    """What goes with it."""
    if status != 503:
        return {"www-authenticate": "Bearer"} if status == 401 else {}
    seconds = error.retry_after if isinstance(error, StorageFull) else 0.0
    return {"retry-after": str(max(RETRY_AFTER_S, math.ceil(seconds)))}


def error_body(error: TailraceError) -> bytes:
    """``{"error": {…}}``, whatever its details hold."""
    return f'{{"error":{error_text(error)}}}'.encode(errors="replace")


def error_text(error: TailraceError) -> str:
    """What stands for an error in a document."""
    return compact(error_document(error))
