"""The OpenAPI 3.1 document of the api, made from the table of endpoints (pure).

Whatever an endpoint may answer is in it: what its description says, and what the guard and the
border may say of any request.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal

import msgspec

from tailrace.broker.http_endpoint import JSON, Endpoint, Parameter
from tailrace.broker.http_errors import STATUS, UNEXPECTED
from tailrace.protocol.version import VERSION

JsonSchema = dict[str, Any]
REFERENCE = "#/components/schemas/{name}"
ERROR = REFERENCE.format(name="ErrorDocument")
ANY = (401, 405, 421, 500, 503, 504)  # of every endpoint
TITLES = {
    400: "What was asked for cannot be: a parameter, the body, a name, a setting.",
    401: "No token, or a wrong one.",
    404: "What was named does not exist.",
    405: "The path does not take this method.",
    409: "It exists already, or is in use.",
    413: "The body, or a record in it, is too large.",
    415: "The body has another content type than the ones listed.",
    416: "The offset is outside of the log.",
    421: "Without a token: the Host header is not this broker.",
    500: "A fault of the broker; its log says more.",
    503: "Not now; try again after Retry-After seconds.",
    504: "Not in time; a change may still take effect.",
}
TOPIC_PARTITION: JsonSchema = {
    "title": "TopicPartition",
    "type": "object",
    "properties": {"topic": {"type": "string"}, "partition": {"type": "integer"}},
    "required": ["topic", "partition"],
}
IN_PATH = re.compile(r"{(\w+)}")


class Error(msgspec.Struct):
    """What went wrong, and what to do about it."""

    code: str  # of docs/errors.md
    class_: str = msgspec.field(name="class")
    message: str
    hint: str
    retriable: bool
    details: dict[str, Any]


class ErrorDocument(msgspec.Struct):
    """The answer where something went wrong."""

    error: Error


def openapi(endpoints: Iterable[Endpoint], *, token: bool) -> JsonSchema:
    """The document. ``token``: whether requests must carry one."""
    table = list(endpoints)
    kinds = [kind for one in table for kind in (*one.answers.values(), _body_kind(one), *one.parts)]
    shapes = [*dict.fromkeys(kind for kind in kinds if _has_schema(kind)), ErrorDocument]
    _, components = msgspec.json.schema_components(shapes, ref_template=REFERENCE)
    components["TopicPartition"] = TOPIC_PARTITION  # it is a tuple, but not in JSON
    paths: dict[str, JsonSchema] = {}
    for one in table:
        paths.setdefault(one.path, {})[one.method.lower()] = operation(one)
    document: JsonSchema = {
        "openapi": "3.1.0",
        "info": {
            "title": "tailrace",
            "version": VERSION,
            "description": "Any broker answers for the whole cluster. Other paths answer 404.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if token:
        scheme = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"token": scheme}
        document["security"] = [{"token": []}]
    return document


def operation(endpoint: Endpoint) -> JsonSchema:
    """One method of one path."""
    in_path = set(IN_PATH.findall(endpoint.path))
    found: JsonSchema = {
        "operationId": endpoint.operation_id,
        "summary": endpoint.summary,
        "parameters": [_parameter(one, in_path) for one in endpoint.parameters],
        "responses": {},
    }
    for status, kind in endpoint.answers.items():
        found["responses"][str(status)] = _answer(endpoint, kind)
    if endpoint.body is not None:
        schema = endpoint.body.schema or _schema(endpoint.body.kind)
        found["requestBody"] = {
            "required": True,
            "description": endpoint.body.doc or f"At most {endpoint.body.bytes_max:,} bytes.",
            "content": {
                name: {"schema": schema if name == JSON else {"type": "string"}}
                for name in endpoint.body.content_types
            },
        }
    for status in statuses(endpoint):
        found["responses"].setdefault(str(status), _refusal(status))
    return found


def statuses(endpoint: Endpoint) -> Sequence[int]:
    """Every status that goes with an error of the endpoint."""
    found = {*ANY, *endpoint.statuses}
    found |= {STATUS.get(code, UNEXPECTED) for code in endpoint.errors}
    found.add(400)  # a query that no endpoint has
    found.add(404)  # a parameter of a later release, a path parameter that is empty
    if endpoint.body is not None:
        found |= {413, 415}
    return sorted(found)


def _answer(endpoint: Endpoint, kind: Any) -> JsonSchema:
    if kind is None:
        return {"description": "Done."}
    content = {endpoint.answer_type: {"schema": _schema(kind)}}
    described = kind.__doc__ if _has_schema(kind) else None
    return {"description": described or endpoint.summary, "content": content}


def _refusal(status: int) -> JsonSchema:
    found: JsonSchema = {
        "description": TITLES[status],
        "content": {JSON: {"schema": {"$ref": ERROR}}},
    }
    if status == 503:
        found["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "required": True}}
    if status == 405:
        found["headers"] = {"Allow": {"schema": {"type": "string"}, "required": True}}
    return found


def _parameter(one: Parameter, in_path: set[str]) -> JsonSchema:
    where: Literal["path", "query"] = "path" if one.name in in_path else "query"
    schema: JsonSchema = {"type": "string"}
    if one.kind is bool:
        schema = {"type": "boolean"}
    elif one.kind is int:
        schema = {"type": "integer", "minimum": one.low, "maximum": one.high}
    elif one.choices:
        schema = {"type": "string", "enum": list(one.choices)}
    elif one.pattern:
        schema = {"type": "string", "pattern": one.pattern}
    elif where == "path":
        schema = {"type": "string", "minLength": 1}
    if one.default is not None and one.parse is None:
        schema["default"] = one.default
    found: JsonSchema = {
        "name": one.name,
        "in": where,
        "required": one.required or where == "path",
        "description": one.doc,
        "schema": schema,
    }
    if one.example:
        found["example"] = one.example
    return found


def _body_kind(endpoint: Endpoint) -> type | None:
    return endpoint.body.kind if endpoint.body is not None else None


def _has_schema(kind: Any) -> bool:
    return is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct))


def _schema(kind: Any) -> Mapping[str, Any]:
    if _has_schema(kind):
        return {"$ref": REFERENCE.format(name=kind.__name__)}
    return {"type": {str: "string", dict: "object"}[kind]}
