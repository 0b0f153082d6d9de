"""The types of which heads are made: integers with their range, and the error that travels."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class IntRange:
    """The inclusive range of an integer field."""

    low: int
    high: int


I8 = Annotated[int, IntRange(-(1 << 7), (1 << 7) - 1)]
I16 = Annotated[int, IntRange(-(1 << 15), (1 << 15) - 1)]
I32 = Annotated[int, IntRange(-(1 << 31), (1 << 31) - 1)]
I64 = Annotated[int, IntRange(-(1 << 63), (1 << 63) - 1)]
U64 = Annotated[int, IntRange(0, (1 << 64) - 1)]
Count = Annotated[int, IntRange(0, (1 << 63) - 1)]

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class WireError:
    """One error of the catalogue, as it travels."""

    code: I16  # the number of T0xx
    message: str  # the catalogue's text, filled in by whoever found the error
    hint: str  # one next step, or ""
    details: dict[str, Scalar | list[Scalar]]  # the error's attributes, by name
