"""``max_processing``: a partition whose record is in hand for longer is handed back.

The broker keeps a partition with its member as long as that is there, so the member leaves, others
get what it had, and it joins again. Its other partitions end as if they were withdrawn: what is in
hand there may finish first, up to ``rebalance_timeout``.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from tailrace.client.holding import Holding
from tailrace.client.metrics import instruments
from tailrace.client.retry import Backoff
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.texts import partition_name

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.holdings import Holdings

_log = logging.getLogger("tailrace.client")


async def watch(client: "Client", holdings: "Holdings", limit_s: float) -> None:
    """Until it is cancelled, or the group will not have the member back."""
    while True:
        await anyio.sleep(limit_s / 4)
        now = client.clock.now()
        stuck = [
            holding
            for holding in holdings.all()
            if not holding.leaving
            and (since := holding.busy_since) is not None
            and now - since > limit_s
        ]
        if stuck and not await _step_out(client, holdings, stuck, limit_s):
            return


async def _step_out(
    client: "Client", holdings: "Holdings", stuck: Sequence[Holding], limit_s: float
) -> bool:
    """Leave and come back; whether it could."""
    reason = f"a record was in hand for more than max_processing {limit_s:g} s"
    _log.warning(
        "handing back %s: %s",
        ", ".join(partition_name(*holding.buffer.at) for holding in stuck),
        reason,
        extra={"event": "consumer.handed_back", "code": None},
    )
    holdings.pause_all()
    with anyio.move_on_after(holdings.options.rebalance_timeout):
        while any(h.busy_since is not None for h in holdings.all() if h not in stuck):
            await holdings.change()
    await holdings.step_out(reason)
    backoff = Backoff(client.random)
    while True:
        try:
            await holdings.step_in()
            return True
        except TailraceError as error:
            if not error.retriable or error.code == "T005":
                holdings.failed(error)
                return False
            holdings.trouble = error.message
            instruments.retried(error.code)
            await anyio.sleep(backoff.next())
