"""What an endpoint of HTTP is: the one description that routes, checks and OpenAPI are made from.

A handler gets a ``Context`` whose parameters and body were checked against the description, and
returns a ``Reply``; what it raises becomes an error document (``http_errors``). Handlers are thin:
a request to the ``Gateway``, the answer as a shape.

Nothing here knows starlette; nothing here is imported unless HTTP is on.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from tailrace.broker.config import Config
from tailrace.broker.gateway import Gateway
from tailrace.broker.http_guard import Account
from tailrace.protocol import texts_http

if TYPE_CHECKING:
    from starlette.responses import Response

JSON = "application/json"
NDJSON = "application/x-ndjson"
JSON_BYTES_MAX = 65_536  # of a document: as much as an administrative request on the wire
NUMBER_MAX = (1 << 63) - 1
PARTITION_MAX = (1 << 31) - 1
LIST_LIMIT_MAX = 1_000

# In the bodies of requests, which are msgspec Structs.
Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]  # an offset
Count = Annotated[int, Meta(ge=-(1 << 31), le=PARTITION_MAX)]  # judged by the broker
Setting = str | bool | Annotated[int, Meta(ge=-NUMBER_MAX, le=NUMBER_MAX)] | float


def one_of(*kinds: type) -> Meta:
    """For the document: each item of a list is one of these."""
    refs = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]
    return Meta(extra_json_schema={"items": {"anyOf": refs}})


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter, of the query unless its name stands in the path."""

    name: str
    doc: str
    kind: type = str  # str, int or bool
    default: Any = None
    required: bool = False
    low: int = 0  # of an int
    high: int = NUMBER_MAX
    choices: tuple[str, ...] = ()
    pattern: str = ""  # what a str that is read by ``parse`` looks like, for the document
    parse: Callable[[str], Any] | None = None  # raises ValueError that says what is wanted
    example: str = ""

    def read(self, text: str) -> Any:
        """The value of a text. Raises InputError T062."""
        try:
            return self._read(text)
        except ValueError as error:
            raise texts_http.bad_request(f"{self.name} is {text!r}, not {error}") from None

    def _read(self, text: str) -> Any:
        if self.parse is not None:
            return self.parse(text)
        if self.kind is bool:
            if text not in ("true", "false"):
                raise ValueError("true or false")
            return text == "true"
        if self.kind is int:
            digits = text.removeprefix("-")
            short = len(digits) <= 19 and digits.isascii() and digits.isdigit()
            if not short or not self.low <= int(text) <= self.high:
                raise ValueError(f"a number from {self.low:,} to {self.high:,}")
            return int(text)
        if self.choices and text not in self.choices:
            raise ValueError(" or ".join(self.choices))
        return text


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries; ``kind``: a msgspec Struct, None where the handler reads it."""

    kind: type | None
    content_types: tuple[str, ...] = (JSON,)
    bytes_max: int = JSON_BYTES_MAX  # never more than limits.request_size
    doc: str = ""
    schema: Mapping[str, Any] | None = None  # for the document, where ``kind`` is None


@dataclass(frozen=True, slots=True)
class Context:
    """One request, checked."""

    gateway: Gateway
    config: Config
    values: Mapping[str, Any]  # every parameter by name, its default filled in
    answer: Account  # of bytes, until the answer is out; small ones need none
    headers: Mapping[str, str] = field(default_factory=dict[str, str])  # names in lower case
    content_type: str = ""  # one of the body's, without parameters
    body: bytes = b""
    document: Any = None  # the body as its ``kind``


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a shape, or nothing with 204."""

    document: object = None
    status: int = 200


Handler = Callable[[Context], "Awaitable[Reply | Response]"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. ``answers``: by status, the type of the document or None."""

    method: str
    path: str  # "/api/v1/topics/{topic}"; what stands in braces is a parameter, too
    operation_id: str
    summary: str
    handler: Handler
    answers: Mapping[int, Any]
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    errors: tuple[str, ...] = ()  # codes beyond those that any request may get
    statuses: tuple[int, ...] = ()  # beyond those of the errors
    parts: tuple[type, ...] = ()  # what ``one_of`` names in an answer
    answer_type: str = JSON

    @property
    def repeatable(self) -> bool:
        """Whether the same head means the same once more, and its answer is a whole one: there is
        nothing in its path, no body, and no parameter that is read by the clock."""
        named = "{" in self.path or any(one.parse is not None for one in self.parameters)
        return self.method == "GET" and not named

    def read(self, path: Mapping[str, str], query: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Every parameter's value. Raises InputError T062 for what is wrong, unknown or missing."""
        known = {one.name: one for one in self.parameters}
        values: dict[str, Any] = {one.name: one.default for one in self.parameters}
        given: set[str] = set()
        for name, text in (*path.items(), *query):
            if name not in known:
                raise texts_http.bad_request(f"unknown parameter {name!r}")
            if name in given:
                raise texts_http.bad_request(f"{name} is given twice")
            given.add(name)
            values[name] = known[name].read(text)
        for one in self.parameters:
            if one.required and one.name not in given:
                raise texts_http.bad_request(f"the parameter {one.name} is missing")
        return values


# ── lists ────────────────────────────────────────────────────────────────────────────────────

LIST_PARAMETERS = (
    Parameter("limit", "At most so many.", int, LIST_LIMIT_MAX, low=1, high=LIST_LIMIT_MAX),
    Parameter("after", "Only names behind this one: `next` of the answer before."),
)


def page(names: list[str], values: Mapping[str, Any]) -> tuple[int, int, str | None]:
    """Which part of sorted names is asked for, from one index to another, and ``next``."""
    after: str | None = values["after"]
    limit: int = values["limit"]
    first = 0 if after is None else sum(name <= after for name in names)
    end = first + limit
    return first, end, names[end - 1] if end < len(names) else None
