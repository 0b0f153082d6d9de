# pyright: reportUnnecessaryTypeIgnoreComment=true
"""A user's mistakes: type checkers find each, or they complain of the ignore. Never run."""

import tailrace


async def value_of_another_type(client: tailrace.Client) -> None:
    async with client.producer(value=str) as producer:
        await producer.send("orders", b"bytes")  # type: ignore[arg-type]


async def key_of_another_type(client: tailrace.Client) -> None:
    async with client.producer() as producer:
        await producer.send("orders", b"value", key="text")  # type: ignore[arg-type]


def unknown_argument(client: tailrace.Client) -> None:
    client.consumer("orders", prefetch=5)  # type: ignore[call-overload]


def unknown_policy(client: tailrace.Client) -> None:
    client.consumer("orders", on_decode_error="ignore")  # type: ignore[call-overload]


def misspelt_name() -> None:
    tailrace.conect()  # type: ignore[attr-defined]
