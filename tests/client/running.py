"""Running the asynchronous body of a test on either event loop, with a bound."""

from collections.abc import Awaitable, Callable

import anyio

BODY_SECONDS_MAX = 10.0


def run(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run ``body`` to its end on asyncio or trio; TimeoutError if it hangs."""

    async def bounded() -> None:
        with anyio.fail_after(BODY_SECONDS_MAX):
            await body()

    anyio.run(bounded, backend=backend)
