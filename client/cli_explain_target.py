"""``tailrace explain TARGET``: the target as it is written, the explanation as it is shown."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from tailrace.client.cli_run import show, with_client
from tailrace.protocol.console import Console, align

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.protocol.shapes import Explanation, Fact, Scalar

FORMS = "CODE, TOPIC, TOPIC:P, TOPIC:P:OFF"
DIGITS_MAX = 18


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be explained."""

    topic: str
    partition: int | None = None
    offset: int | None = None


def parse_target(text: str) -> Target:
    """``orders``, ``orders:2`` or ``orders:2:881``; a colon at the end changes nothing, so that
    ``T041:`` is the topic of that name."""
    topic, *numbers = text.removesuffix(":").split(":")
    if not topic or len(numbers) > 2 or not all(map(_is_number, numbers)):
        raise click.UsageError(f"'{text}' is none of {FORMS}")
    found = [int(number) for number in numbers]
    if found and found[0] >= 1 << 31:
        raise click.UsageError(f"'{text}': there is no partition {found[0]}")
    return Target(topic, *found)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX


def explain_target(console: Console, target: Target | None, group: str | None) -> None:
    """Ask, and show it. ``target`` None: the group alone."""

    async def work(client: "Client") -> "Explanation":
        from tailrace.client.explaining import explain

        if target is None:
            return await explain(client, group=group)
        return await explain(
            client,
            topic=target.topic,
            partition=target.partition,
            offset=target.offset,
            group=group,
        )

    found = with_client(console, work)
    show(console, found, as_text(found))


def as_text(found: "Explanation") -> str:
    """As it stands on a terminal."""
    parts = [f"{found.target}  {found.kind}  {found.verdict}", f"\n{found.summary}"]
    rows = [(fact.name, _fact(fact)) for fact in found.facts]
    if rows:
        parts.append(f"\n{align(rows)}")
    if found.next is not None:
        parts.append(f"\nNext  {found.next}")
    return "\n".join(parts)


def _fact(fact: "Fact") -> str:
    if fact.name.endswith("_time") and isinstance(fact.value, int):
        return f"{datetime.fromtimestamp(fact.value / 1000).astimezone():%Y-%m-%d %H:%M:%S%z}"
    return _value(fact.value)


def _value(value: "Scalar | list[Scalar]") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:,}" if isinstance(value, int | float) else str(value)
