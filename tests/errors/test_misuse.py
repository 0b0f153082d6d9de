"""T054-T062: calls in the wrong place, and what cannot be read or written.

T050-T053 are provoked by ``tests/client/test_heart.py`` and ``tests/client/test_sync.py``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import tailrace
from tailrace.protocol.errors import DecodeError, EncodeError, TailraceError, UsageError
from tailrace.protocol.shapes import TopicPartition
from tailrace.testing import Broker
from tests.errors.provoking import refused, told, told_by


@pytest.mark.provokes("T054")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_in_another_thread_or_loop(broker: Broker, topic: str, backend: str) -> None:
    errors: list[TailraceError] = []

    def used(call: Callable[[], object]) -> None:
        with pytest.raises(UsageError) as caught:
            call()
        errors.append(caught.value)

    async def main() -> None:
        async with tailrace.connect(broker.url) as client, client.producer() as producer:

            async def elsewhere() -> None:
                used(lambda: producer.enqueue_nowait(topic, b"a"))

            def enqueue() -> None:
                producer.enqueue_nowait(topic, b"a")

            await anyio.to_thread.run_sync(used, enqueue)
            await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=backend))

    anyio.run(main, backend=backend)
    thread, loop = errors
    told(thread, "T054", "Producer was created in another thread than it is used in")
    told(loop, "T054", "Producer was created in another (thread|event loop) than it is used in")


@pytest.mark.provokes("T055")
def test_calls_at_the_wrong_time(broker: Broker, topic: str) -> None:
    client = broker.client()
    producer, consumer = client.producer(), client.consumer(topic)
    with consumer:
        iter(consumer)
        wrong: dict[str, Callable[[], object]] = {
            r"commit\(\) needs a group, this consumer has none": consumer.commit,
            rf"{topic}\[5\] is not assigned to this consumer": lambda: consumer.position(
                TopicPartition(topic, 5)
            ),
        }
        for message, call in wrong.items():
            with pytest.raises(UsageError) as caught:
                call()
            told(caught.value, "T055", message)
    producer.send(topic, b"a")
    client.close()
    with pytest.raises(UsageError) as caught:
        producer.send(topic, b"b")
    told(caught.value, "T055", "(Producer|Client) is closed")


@pytest.mark.provokes("T060")
@pytest.mark.parametrize(
    ("raw", "guess", "value"),
    [
        (b"plain text", "str", "plain text"),
        (b"\x82\xa1a\x01\xa1b\x02", "msgpack", {"a": 1, "b": 2}),
        (b"\xff\x00", "bytes", b"\xff\x00"),
    ],
)
def test_a_record_that_is_not_what_the_codec_reads(
    broker: Broker, topic: str, raw: bytes, guess: str, value: Any
) -> None:
    broker.seed(topic, [raw])
    with broker.client() as client:
        with client.consumer(topic, value="json") as consumer:
            with pytest.raises(DecodeError) as caught:
                next(iter(consumer))
        told(
            caught.value,
            "T060",
            rf"{topic}\[0\]@0 is not json \(starts {raw[:8].hex()}, looks like {guess}\)",
            **{"topic": topic, "partition": 0, "offset": 0, "raw": raw},
        )
        assert caught.value.hint == (
            f"Raw: tailrace cat {topic}:0:0 --decode hex. Set value='{guess}' or "
            "on_decode_error='dead_letter'."
        )
        named: Any = guess  # the first advice is to be taken word for word
        with client.consumer(topic, value=named) as consumer:
            assert next(iter(consumer)).value == value


@pytest.mark.provokes("T061")
def test_a_value_that_the_codec_does_not_take(broker: Broker, topic: str) -> None:
    value: Any = {"n": 1}
    with broker.client().producer() as producer, pytest.raises(EncodeError) as caught:
        producer.send(topic, value)
    told(
        caught.value,
        "T061",
        f"value of type dict for topic '{topic}' cannot be encoded as bytes: bytes are wanted",
        topic=topic,
    )
    with broker.client().producer(value="json") as producer:
        assert producer.send(topic, value).offset == 0


@pytest.mark.provokes("T062")
def test_input_that_cannot_be_read(
    broker: Broker,
    topic: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TAILRACE_URL", broker.url)
    lines = tmp_path / "records"
    lines.write_text('{"value":1}\n{"key":"k"}\n')
    code, error = refused(capsys, "produce", topic, "--ndjson", "-f", str(lines))
    assert code == 1
    told_by(error, "T062", "line 2: .*'value'.*", line=2)
    code, error = refused(capsys, "produce", topic, "-f", str(tmp_path / "nowhere"))
    assert code == 2
    told_by(error, "T082", "tailrace produce: .*/nowhere' does not exist")
