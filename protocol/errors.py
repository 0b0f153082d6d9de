"""Every error a caller or a peer can see: one class per meaning, each with a code.

``str(error)`` is ``"{code}: {message}. {hint}"``. The texts are made in ``texts*.py`` and nowhere
else; what each code means and how to mend it is in ``catalogue.py`` (``tailrace explain CODE``).

    TailraceError T000
    ├─ ConnectError T001-T005 T121-T124         ├─ AuthError T006
    │  └─ VersionMismatch T120                  ├─ TopicExists T012
    ├─ ConfigError(ValueError) T080-T086        ├─ InvalidName T013
    ├─ InputError(ValueError) T062              ├─ PartitionOffline T033
    ├─ UsageError(RuntimeError) T052 T054 T055  ├─ RequestTimeout(TimeoutError) T034
    │  └─ ForkedClientError T053                ├─ GroupNotEmpty T044
    ├─ NotFound                                 └─ MetadataUnavailable T100
    │  └─ TopicNotFound T010, PartitionNotFound T011, GroupNotFound T043
    ├─ ProduceError
    │  ├─ SendTimeout(TimeoutError) T020   ├─ BatchRefused T028   ├─ CloseTimeout(TimeoutError) T026
    │  ├─ RecordTooLarge T021              ├─ SendManyError T024  ├─ NotEnoughReplicas T030
    │  └─ InvalidTimestamp T022            ├─ FlushError T025     └─ StorageFull T031
    │                                      └─ BufferFull T023
    ├─ ConsumeError
    │  └─ CorruptBatch T035, PartitionLost T040, OffsetOutOfRange T041, GroupFenced T042,
    │     GroupConfigMismatch T070
    ├─ CodecError
    │  └─ DecodeError T060, EncodeError T061
    ├─ InternalError: T032 T036 T037 T038 T039 T045; retried by every client, never raised to users
    └─ BrokerError T090-T094

The attributes of a class are its annotations; they are filled from ``details``, and those not
given there are empty (``""``, ``0``, ``[]`` … or None).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Any, ClassVar, cast

from tailrace.protocol.fields import Scalar, WireError

Kind = type | UnionType
INTERNAL = frozenset({"T032", "T036", "T037", "T038", "T039", "T045"})
RETRIABLE = INTERNAL.union(
    ("T001", "T002", "T003", "T005", "T008", "T020", "T030", "T031", "T033", "T034"),
    ("T040", "T042", "T100", "T123"),
)

CLASSES: dict[str, "type[TailraceError]"] = {}  # by code; each class enters itself


class TailraceError(Exception):
    """Base of all; itself raised for a bug of the broker (T000) and for a code this release does
    not know."""

    code: str = ""
    message: str
    hint: str
    retriable: bool  # the same call may succeed later; the SDK already retried until its timeout
    details: dict[str, object]  # the attributes by name, and whatever else a newer peer sent
    attributes: ClassVar[dict[str, Kind]] = {}  # name -> type, for subclasses only

    def __init_subclass__(cls) -> None:
        own = {name: _kind(annotation) for name, annotation in cls.__annotations__.items()}
        bases = [base.attributes for base in cls.__bases__ if issubclass(base, TailraceError)]
        cls.attributes = bases[0] | own
        if "code" in cls.__dict__:
            CLASSES.setdefault(cls.code, cls)

    def __init__(self, code: str, message: str, hint: str = "", **details: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retriable = code in RETRIABLE
        self.details = details
        for name, kind in self.attributes.items():
            setattr(self, name, details[name] if name in details else _empty(kind))

    @property
    def docs(self) -> str:
        """Where the code is explained, relative to the documentation's root."""
        return f"errors.md#{self.code.lower()}"

    def __str__(self) -> str:
        return error_line(self.code, self.message, self.hint)

    def __reduce__(self) -> tuple[Any, ...]:
        cls = cast(Any, type(self))
        return partial(cls, self.code, self.message, self.hint, **self.details), ()


def error_line(code: str, message: str, hint: str) -> str:
    """The one form of every error and notice."""
    return f"{code}: {message}. {hint}" if hint else f"{code}: {message}."


def _kind(annotation: Any) -> Kind:
    """What ``isinstance`` takes: list for ``list[str]``, ``int | None`` as it is."""
    return cast(Kind, getattr(annotation, "__origin__", annotation))


_EMPTY: dict[Kind, Callable[[], object]] = {
    kind: kind for kind in (str, int, float, bool, list, dict, tuple)
}


def _empty(kind: Kind) -> object:
    make = _EMPTY.get(kind)
    return None if make is None else make()


@dataclass(frozen=True, slots=True)
class Notice:
    """A coded text that is logged or warned, never raised (T050 T051 T071 T072 T073 T110)."""

    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return error_line(self.code, self.message, self.hint)


class ConnectError(TailraceError):
    """No usable connection: nobody there, someone else there, or the bytes made no sense."""

    attempts: list[tuple[str, str]]  # (address, reason)
    elapsed: float  # seconds


class VersionMismatch(ConnectError):
    """Client and broker have no protocol version in common."""

    code = "T120"
    client_range: tuple[int, int]
    broker_range: tuple[int, int]


class AuthError(TailraceError):
    """The token or password was refused."""

    code = "T006"


class ConfigError(TailraceError, ValueError):
    """A setting or an argument is unknown, wrong or contradicts another."""

    key: str
    source: str | None  # file:line, variable or option


class InputError(TailraceError, ValueError):
    """What was given on stdin, in a file or in a request body cannot be read."""

    code = "T062"
    line: int | None


class UsageError(TailraceError, RuntimeError):
    """A call in the wrong place or at the wrong time: our caller's bug."""


class ForkedClientError(UsageError):
    """The client crossed a fork."""

    code = "T053"
    created_pid: int
    pid: int


class RequestTimeout(TailraceError, TimeoutError):
    """A request got no answer in time."""

    code = "T034"


class MetadataUnavailable(TailraceError):
    """The broker cannot reach its metadata store."""

    code = "T100"


class NotFound(TailraceError):
    """What was named does not exist."""

    name: str
    similar: list[str]


class TopicNotFound(NotFound):
    """No such topic."""

    code = "T010"


class PartitionNotFound(NotFound):
    """The topic has no such partition."""

    code = "T011"


class GroupNotFound(NotFound):
    """No such consumer group."""

    code = "T043"


class TopicExists(TailraceError):
    """The name is taken."""

    code = "T012"


class InvalidName(TailraceError):
    """The name may not be used."""

    code = "T013"


class GroupNotEmpty(TailraceError):
    """The group still has members."""

    code = "T044"
    members: list[str]


class PartitionOffline(TailraceError):
    """The partition has no leader."""

    code = "T033"


class ProduceError(TailraceError):
    """Records were not, or not surely, written."""

    topic: str
    partition: int | None
    maybe_written: bool  # whether the record may still appear, at most once


class SendTimeout(ProduceError, TimeoutError):
    """Not acknowledged within the producer's timeout."""

    code = "T020"
    attempts: int
    elapsed: float  # seconds
    last_error: TailraceError | None


class RecordTooLarge(ProduceError):
    """Larger than the topic's max_record."""

    code = "T021"
    size: int  # bytes
    limit: int  # bytes


class InvalidTimestamp(ProduceError):
    """Event time below zero or too far ahead of the broker's clock."""

    code = "T022"
    timestamp: int  # ms since the epoch
    limit: int  # ms since the epoch: the largest one allowed


class BufferFull(ProduceError):
    """``enqueue_nowait`` found no room."""

    code = "T023"
    buffered_bytes: int


class SendManyError(ProduceError):
    """Some records of a ``send_many`` failed."""

    code = "T024"
    failures: dict[int, TailraceError]  # by index into the columns given
    metadata: list[Any]  # RecordMetadata | None, in input order


class FlushError(ProduceError):
    """Records whose delivery nobody awaited failed."""

    code = "T025"
    failed: int
    first: TailraceError


class CloseTimeout(ProduceError, TimeoutError):
    """Records were left when ``close_timeout`` passed."""

    code = "T026"
    undelivered: int


class BatchRefused(ProduceError):
    """The broker found the batch malformed or corrupt."""

    code = "T028"
    reason: str


class NotEnoughReplicas(ProduceError):
    """Fewer replicas in sync than the topic asks for."""

    code = "T030"
    have: int
    need: int


class StorageFull(ProduceError):
    """The broker's disk is below its reserve; reading goes on."""

    code = "T031"
    broker: str
    retry_after: float  # seconds


class ConsumeError(TailraceError):
    """Records could not be read or committed."""

    topic: str | None
    partition: int | None


class CorruptBatch(ConsumeError):
    """Stored bytes are damaged; they are never served."""

    code = "T035"
    offset: int
    broker: str


class PartitionLost(ConsumeError):
    """The partition went to another member before its offsets were committed."""

    code = "T040"
    offsets: dict[Any, int]  # by TopicPartition: what was not committed


class OffsetOutOfRange(ConsumeError):
    """The offset is not in the log (any more)."""

    code = "T041"
    requested: int
    start: int
    end: int


class GroupFenced(ConsumeError):
    """Another member has taken this one's place."""

    code = "T042"
    group: str
    member_id: str


class GroupConfigMismatch(ConsumeError):
    """The group's members subscribe to something else."""

    code = "T070"
    yours: list[str]
    theirs: list[str]


class CodecError(TailraceError):
    """A value and its codec do not fit."""

    topic: str
    partition: int | None
    offset: int | None
    raw: bytes | None


class DecodeError(CodecError):
    """Stored bytes are not what the codec reads."""

    code = "T060"


class EncodeError(CodecError):
    """The codec does not take a value of this type."""

    code = "T061"


class InternalError(TailraceError):
    """Between broker and client only: always retried, shown only as ``last_error``."""


class NotLeader(InternalError):
    """This broker does not lead the partition."""

    code = "T032"


class CoordinatorLoading(InternalError):
    """The group's coordinator is replaying its log."""

    code = "T036"


class OffsetNotAvailable(InternalError):
    """A new leader does not know its high watermark yet."""

    code = "T037"


class OutOfOrderSequence(InternalError):
    """A producer's batch came before the one in front of it."""

    code = "T038"


class UnknownProducer(InternalError):
    """The partition has no memory of this producer id."""

    code = "T039"


class EpochFenced(InternalError):
    """The request names another leader epoch than the partition's."""

    code = "T045"


class BrokerError(TailraceError):
    """A broker or an offline tool cannot work with the data directory."""


for _class, _codes in (
    (ConnectError, "T001 T002 T003 T004 T005 T121 T122 T123 T124"),
    (UsageError, "T052 T054 T055"),
    (ConfigError, "T080 T081 T082 T083 T084 T085 T086"),
    (BrokerError, "T090 T091 T092 T093 T094"),
    (TailraceError, "T000"),
):
    CLASSES.update(dict.fromkeys(_codes.split(), _class))


# ── the wire ─────────────────────────────────────────────────────────────────────────────────

_DETAILS_MAX = 256
_LIST_MAX = 1_000  # both well within the codec's bounds
_POSITIONAL = frozenset({"self", "code", "message", "hint"})  # would clash as keyword arguments


def to_wire(error: TailraceError) -> WireError:
    """The error as it travels. Details that are no scalars or lists of them stay behind."""
    details: dict[str, Scalar | list[Scalar]] = {}
    for name, value in list(error.details.items())[:_DETAILS_MAX]:
        if _travels(value):
            details[name] = cast(Scalar, value)
        elif isinstance(value, list | tuple):
            items = list(cast(Sequence[Any], value))[:_LIST_MAX]
            if all(map(_travels, items)):
                details[name] = items
    return WireError(int(error.code[1:]), error.message, error.hint, details)


def _travels(value: object) -> bool:
    """Whether every client can read it: a finite scalar of at most 64 bits, or Unicode text."""
    match value:
        case float():
            return math.isfinite(value)
        case int():
            return -(1 << 63) <= value < 1 << 63
        case str():
            return not any("\ud800" <= character <= "\udfff" for character in value)
        case _:
            return value is None


def from_wire(error: WireError) -> TailraceError:
    """The error a peer sent. A detail of the wrong type is dropped; its attribute is empty then."""
    code = f"T{error.code:03d}"
    cls = CLASSES.get(code, TailraceError)
    return cls(code, error.message, error.hint, **_well_typed(cls, error.details))


def _well_typed(
    cls: type[TailraceError], details: Mapping[str, Scalar | list[Scalar]]
) -> dict[str, object]:
    kept: dict[str, object] = {}
    for name, value in details.items():
        kind = cls.attributes.get(name)
        if name in _POSITIONAL:
            continue
        if kind is tuple and isinstance(value, list):
            kept[name] = tuple(value)
        elif kind is float and type(value) is int:
            kept[name] = float(value)
        elif kind is None or (
            isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        ):
            kept[name] = value
    return kept
