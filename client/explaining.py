"""Asks a broker why something is as it is; not public in this release."""

import anyio

from tailrace.client.client import Client
from tailrace.client.coordinator import find_coordinator
from tailrace.client.retry import Backoff
from tailrace.protocol import shaping
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import ExplainRequest, ExplainResponse
from tailrace.protocol.shapes import Explanation


async def explain(
    client: Client,
    *,
    topic: str | None = None,
    partition: int | None = None,
    offset: int | None = None,
    group: str | None = None,
) -> Explanation:
    """Of a record, a partition, a topic, or of a group alone; tried until ``request_timeout``.

    Raises TopicNotFound T010, PartitionNotFound T011, GroupNotFound T043, InputError T062, and
    what ``client.admin`` raises if no broker answers. Cancelled: nothing has changed.
    """
    client.check()
    request = ExplainRequest(topic, partition, offset, group)
    backoff = Backoff(client.random)
    ends_at = client.clock.now() + client.options.request_timeout
    astray = False
    while True:
        left_s = max(0.001, ends_at - client.clock.now())
        try:
            broker_id = None
            if group is not None and astray:
                broker_id = await find_coordinator(client, group, timeout=left_s)
            response, _ = await client.cluster.leader_request(broker_id, request, timeout=left_s)
        except TailraceError as error:
            pause_s = backoff.next()
            astray = error.code == "T032"
            lasting = not error.retriable or error.code in ("T005", "T034")
            if lasting or client.clock.now() + pause_s >= ends_at:
                raise
            await anyio.sleep(pause_s)
            continue
        assert isinstance(response, ExplainResponse)
        return shaping.explanation(response)
