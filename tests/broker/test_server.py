"""A broker from start to stop, on real sockets and files."""

from pathlib import Path

import pytest
import trio

from tailrace.protocol.batch import decode_columns, parse_header
from tests.broker.harness import connected, run, serving


def test_what_was_produced_is_fetched(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            first = await client.produce(topic_id, [b"a", b"b"])
            second = await client.produce(topic_id, [b"c"])
            assert (first.error, first.base_offset, second.base_offset) == (None, 0, 2)
            answer, body = await client.fetch(topic_id)
            [result] = answer.results
            assert (result.high_watermark, result.log_end, result.length) == (3, 3, len(body))
            header = parse_header(body)
            assert decode_columns(body[: header.size_bytes], header).values == [b"a", b"b"]

    run(main)
