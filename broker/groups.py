"""Looking into exception groups: nurseries wrap what nobody outside needs to know of (C10)."""

from typing import cast

from tailrace.protocol.errors import TailraceError


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error a group is about: one with a code before any other."""
    coded = group.subgroup(TailraceError)
    one: BaseException = group if coded is None else coded
    while isinstance(one, BaseExceptionGroup):
        one = cast(BaseException, one.exceptions[0])
    return one
