"""What etcd's HTTP gateway is asked and answers, as values (pure).

The gateway of etcd 3.4 and 3.5 takes JSON with the names of the protocol buffers: bytes are base64,
64-bit numbers may be text. Answers of streams are lines, each with ``result`` or ``error``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

# gRPC's codes
DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED, OUT_OF_RANGE = 4, 5, 8, 11
UNKNOWN, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 2, 13, 14, 16
CANCELLED, FAILED_PRECONDITION = 1, 9

_PASSING = {CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE}
_LOGIN_AGAIN = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",  # authentication was switched on meanwhile
    "etcdserver: revision of auth store is old",
)
_NO_SPACE = "database space exceeded"
_VERSION = re.compile(r"(\d+)\.(\d+)\.")
OLDEST = (3, 4)  # whose gateway is at /v3


# ── answers ──────────────────────────────────────────────────────────────────────────────────


class Header(Struct):
    cluster_id: int = 0
    revision: int = 0  # of the store, when it answered


class Answer(Struct):
    """What every answer has."""

    header: Header = msgspec.field(default_factory=Header)


class KeyValue(Struct):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0


class RangeAnswer(Answer):
    kvs: list[KeyValue] = []
    more: bool = False


class TxnAnswer(Answer):
    succeeded: bool = False


class LeaseAnswer(Answer):
    ID: int = 0
    TTL: int = 0  # whole seconds; 0: it has ended


class LoginAnswer(Answer):
    token: str = ""


class StatusAnswer(Answer):
    version: str = ""
    errors: list[str] = []  # alarms among them


class Event(Struct):
    kv: KeyValue = msgspec.field(default_factory=KeyValue)


class WatchAnswer(Answer):
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: list[Event] = []


class _Failure(Struct):
    """An error as the gateway words it, at the end of a request or in a stream."""

    message: str = ""
    code: int = 0
    grpc_code: int = 0  # in streams of 3.4


class _Refusal(Struct):
    error: str | _Failure
    message: str = ""
    code: int = 0


class _Line(Struct):
    result: msgspec.Raw = msgspec.Raw()
    error: _Failure | None = None


A = TypeVar("A", bound=Answer)


class NotEtcd(Exception):
    """Whoever answered does not speak etcd's API."""


class Refused(Exception):
    """etcd answered with an error."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    @property
    def passing(self) -> bool:
        """Whether another member, or the same one later, may do better."""
        return self.code in _PASSING and not self.login_again

    @property
    def login_again(self) -> bool:
        """Whether a new token would help. Nothing was done then."""
        return self.code == UNAUTHENTICATED or self.message.startswith(_LOGIN_AGAIN)

    @property
    def no_space(self) -> bool:
        return _NO_SPACE in self.message


def decode(status: int, body: bytes, kind: type[A]) -> A:
    """The answer to a request; ``Refused`` or ``NotEtcd``."""
    if status != 200:
        raise _refusal(status, body)
    return _decoded(body, kind)


def decode_line(line: bytes, kind: type[A]) -> A:
    """One answer of a stream; ``Refused`` or ``NotEtcd``."""
    found = _decoded(line, _Line)
    if found.error is not None:
        raise Refused(found.error.message, found.error.grpc_code or found.error.code)
    return _decoded(found.result, kind)


def _refusal(status: int, body: bytes) -> Exception:
    try:
        found = _decoded(body, _Refusal)
    except NotEtcd:
        return NotEtcd(f"HTTP status {status}, not etcd's API v3")
    if isinstance(found.error, _Failure):
        return Refused(found.error.message, found.error.grpc_code or found.error.code)
    return Refused(found.message or found.error, found.code)


D = TypeVar("D", bound=Struct)


def _decoded(body: bytes | msgspec.Raw, kind: type[D]) -> D:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotEtcd("an answer that is not etcd's API v3") from error


def too_old(version: str) -> bool:
    """Whether a version of etcd lacks what is needed; one that cannot be read does not."""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) < OLDEST


# ── questions ────────────────────────────────────────────────────────────────────────────────

Question = Mapping[str, Any]


def encode(question: Question) -> bytes:
    return msgspec.json.encode(question)


def range_end(prefix: bytes) -> bytes:
    """What comes right behind all keys that start with ``prefix``: UTF-8, never empty."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def read_one(key: bytes) -> Question:
    return {"key": key}


@dataclass(frozen=True, slots=True)
class Page:
    """Keys from ``first`` to before ``end``, at most ``limit``."""

    first: bytes
    end: bytes
    limit: int
    revision: int = 0  # as of which; 0: as of now
    since: int = 0  # only what a later revision has written

    def question(self) -> Question:
        asked: dict[str, Any] = {"key": self.first, "range_end": self.end, "limit": self.limit}
        if self.revision:
            asked["revision"] = self.revision
        if self.since:
            asked["min_mod_revision"] = self.since + 1
        return asked


def change(
    compare: Sequence[tuple[bytes, int]],
    puts: Mapping[bytes, bytes],
    deletes: Sequence[bytes],
    lease: int | None,
) -> Question:
    """All of it, if each key's revision (0: absent) is the compared one."""
    bound = {} if lease is None else {"lease": lease}
    return {
        "compare": [
            {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision}
            for key, revision in compare
        ],
        "success": [
            *({"request_put": {"key": key, "value": puts[key], **bound}} for key in puts),
            *({"request_delete_range": {"key": key}} for key in deletes),
        ],
    }


def watch_all(first: bytes, end: bytes) -> Question:
    """Changes from now on."""
    return {"create_request": {"key": first, "range_end": end}}
