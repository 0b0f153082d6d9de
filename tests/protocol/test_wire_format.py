"""docs/wire_format.md says what the code does: fields, types, limits, and the worked example."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from tailrace.protocol import connection
from tailrace.protocol.codec import ARRAY_MAX, MAP_MAX, encode_message
from tailrace.protocol.frame import PREAMBLE, encode_frame
from tailrace.protocol.messages import REQUESTS, RESPONSES, Api, MetadataRequest

PAGE = (Path(__file__).parent.parent.parent / "docs" / "wire_format.md").read_text()
INTEGERS = {
    **{(-(1 << bits - 1), (1 << bits - 1) - 1): f"i{bits}" for bits in (8, 16, 32, 64)},
    **{(0, (1 << bits) - 1): f"u{bits}" for bits in (16, 64)},
    (0, (1 << 63) - 1): "count",
}


def notation(hint: Any) -> str:
    """A type as the page writes it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return f"{notation(arguments[0])}?"
    if origin is Annotated:
        return INTEGERS[arguments[1].low, arguments[1].high]
    if origin is tuple:
        return f"[{notation(arguments[0])}]"
    names: dict[Any, str] = {str: "str", bytes: "bin", bool: "bool"}
    return names.get(hint) or ("map" if origin is dict else str(hint.__name__))


def messages_in(hint: Any) -> Iterator[type[Any]]:
    """A message and every message within it."""
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
        for inner in get_type_hints(hint, include_extras=True).values():
            yield from messages_in(inner)
    for argument in get_args(hint):
        yield from messages_in(argument)


ALL = {m.__name__: m for c in (*REQUESTS.values(), *RESPONSES.values()) for m in messages_in(c)}


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_table_of_a_message_is_its_fields(name: str) -> None:
    cls = ALL[name]
    hints = get_type_hints(cls, include_extras=True)
    expected = [(str(i), f.name, notation(hints[f.name])) for i, f in enumerate(fields(cls))]
    found = re.search(rf"\| \*\*{name}\*\* \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE)
    if found is None:
        assert expected == []
        assert f"**{name}** has no fields" in PAGE
        return
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in found[1].splitlines()]
    assert [(row[0], row[1].strip("`"), row[2]) for row in rows] == expected
    assert all(row[3] for row in rows), "each field has its meaning"


def test_the_page_describes_no_message_that_is_not_there() -> None:
    named = set(re.findall(r"\*\*([A-Z][A-Za-z]+)\*\*(?: \| field| has no)", PAGE))
    assert named == set(ALL)


@pytest.mark.parametrize("api", list(Api), ids=lambda api: api.name)
def test_every_api_has_its_section(api: Api) -> None:
    name = "".join(part.capitalize() for part in api.name.split("_"))
    assert f"\n### {int(api)} {name}\n" in PAGE


def test_the_preamble() -> None:
    assert PREAMBLE.hex(" ").upper() in PAGE


def test_the_limits() -> None:
    kib, mib = connection.KIB, connection.MIB
    for text in (
        f"Hello {connection.HELLO_BYTES_MAX // kib} KiB",
        f"apis 6 to 14, 18, 19 and 21 to 27 {connection.ADMIN_BYTES_MAX // kib} KiB",
        f"({connection.PRODUCE_BYTES_MAX // mib} MiB unless set otherwise)",
        f"others {connection.GENERAL_BYTES_MAX // mib} MiB",
        f"at most {connection.HEAD_BYTES_MAX // kib} KiB",
        f"others {connection.ANSWER_HEAD_BYTES_MAX // mib} MiB",
        f"`in_flight_max` ({connection.IN_FLIGHT_MAX})",
        f"at most {ARRAY_MAX:,}",
        f"at most {MAP_MAX} entries",
    ):
        assert text in PAGE.replace("\n  ", " ")


def test_the_worked_example() -> None:
    example = re.search(r"## 6\..*?```\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    written = "".join(line[:24] for line in example[1].splitlines())
    head = encode_message(MetadataRequest(("orders", "refunds"), True))
    assert bytes.fromhex(written) == encode_frame(Api.METADATA, 1, 7, head)
