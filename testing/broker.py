"""``Broker``: a real broker for tests, started in milliseconds, with data at hand.

``Records`` is what needs nothing but a URL, so it works on any cluster; ``Broker`` adds the process
itself: faults, clock, kill and restart. Synchronous, for tests of any framework.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import tailrace.sync
from tailrace.client.codecs import CodecSpec
from tailrace.client.records import Record, RecordMetadata, TopicPartition
from tailrace.client.shapes import TopicDetail
from tailrace.protocol.errors import TopicExists
from tailrace.testing.faults import Faults
from tailrace.testing.machine import MEMORY_DIR, Machine
from tailrace.testing.process import Process

V = TypeVar("V")
ConfigValue = str | int | float | bool

EVENTS_SHOWN = 20
POLL_S = 0.02
DEFAULTS = {"broker.auto_create": "true", "storage.min_free": "1MiB"}


class Records:
    """Topics and records of the broker at ``url``, for arranging and for asserting."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._clients: list[tailrace.sync.Client] = []
        self._own: tailrace.sync.Client | None = None

    def client(self) -> tailrace.sync.Client:
        """A connected client of its own; closed with the broker."""
        client = tailrace.sync.connect(self.url)
        client.__enter__()
        self._clients.append(client)
        return client

    def name(self, topic: str) -> str:
        """A topic name that nobody else has, for tests that share a broker."""
        return f"{topic}-{secrets.token_hex(4)}"

    def create_topic(self, name: str, partitions: int = 1, **config: ConfigValue) -> None:
        """Create a topic; TopicExists T012 if there is one."""
        self._admin.create_topic(name, partitions=partitions, config=config)

    def seed(
        self,
        topic: str,
        values: Iterable[V | None],
        *,
        keys: Iterable[bytes | None] | None = None,
        partitions: int = 1,
        value: CodecSpec[V] = bytes,  # type: ignore[assignment]  # the default is Codec[bytes]
    ) -> list[RecordMetadata]:
        """Write records, durably and in order; creates the topic if it is missing."""
        with suppress(TopicExists):
            self.create_topic(topic, partitions)
        with self._client.producer(value=value, linger=0.0) as producer:
            columns = list(values)
            return list(
                producer.send_many(topic, columns, keys=None if keys is None else list(keys))
            )

    def records(
        self,
        topic: str,
        *,
        partition: int | None = None,
        value: CodecSpec[V] = bytes,  # type: ignore[assignment]
    ) -> list[Record[bytes, V]]:
        """All records there are now, by partition and offset."""
        detail: TopicDetail = self._admin.describe_topic(topic)
        chosen = range(detail.partitions) if partition is None else [partition]
        with self._client.consumer(
            partitions=[TopicPartition(topic, each) for each in chosen],
            value=value,
            stop_at_end=True,
        ) as consumer:
            found = list(consumer)
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def wait_values(
        self,
        topic: str,
        *,
        count: int,
        timeout: float = 2.0,
        value: CodecSpec[V] = bytes,  # type: ignore[assignment]
    ) -> list[V | None]:
        """The values, once there are ``count`` of them; AssertionError after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while True:
            values = [record.value for record in self.records(topic, value=value)]
            if len(values) >= count:
                return values
            if time.monotonic() >= deadline:
                raise AssertionError(self._too_few(topic, len(values), count, timeout))
            time.sleep(POLL_S)

    def close_clients(self) -> None:
        """Close every client made here."""
        clients, self._clients, self._own = self._clients, [], None
        for client in clients:
            client.close()

    @property
    def _client(self) -> tailrace.sync.Client:
        if self._own is None:
            self._own = self.client()
        return self._own

    @property
    def _admin(self) -> Any:
        return self._client.admin

    def _too_few(self, topic: str, found: int, count: int, timeout: float) -> str:
        lines = [f"{found} of {count} records in {topic!r} after {timeout:g} s"]
        for part in self._admin.describe_topic(topic).partition_list:
            lines.append(
                f"  {topic}[{part.partition}]: log_start {part.log_start}, "
                f"log_end {part.log_end}, high_watermark {part.high_watermark}, {part.status}"
            )
        return "\n".join([*lines, *self._last_events()])

    def _last_events(self) -> list[str]:
        return []


class Broker(Records):
    """A broker that serves from its construction until ``stop``.

    ``data_dir`` None: the log is in memory. ``config`` takes the keys of the configuration file
    ({"topic.partitions": 4}). Errors of the start are raised here.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        config: Mapping[str, ConfigValue] | None = None,
        http: bool = False,
    ) -> None:
        self.data_dir = data_dir
        self.http_url: str | None = None
        self._config = {
            "listeners.client.bind": "127.0.0.1:0",
            "http.bind": "127.0.0.1:0" if http else "",
            "storage.data_dir": str(data_dir.resolve()) if data_dir is not None else MEMORY_DIR,
            **(config or {}),
        }
        self._machine = Machine(None if data_dir is None else str(data_dir.resolve()))
        self._process: Process | None = None
        self._faults = Faults(_FaultyBroker(self, self._machine))
        super().__init__("")
        self.start()

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def faults(self) -> Faults:
        """What can go wrong with this broker, on command."""
        return self._faults

    def start(self) -> None:
        """Serve (again), on the same port; nothing happens if it does already."""
        if self._process is not None and self._process.alive:
            return
        process = Process(self._machine, self._config, DEFAULTS)
        ready = process.start()
        self._process = process
        self.url, self.http_url = ready.url, ready.http
        host, port = ready.addresses["client"]
        self._config["listeners.client.bind"] = f"{host}:{port}"

    def stop(self) -> None:
        """Close the clients made here, then stop gracefully; data stays for ``start``."""
        self.close_clients()
        self._end(crash=False)

    def restart(self, *, keep_data: bool = True, crash: bool = False) -> None:
        """Stop and start, on the same port, clients left as they are.

        ``crash``: like a power cut, at once, what was not synced is lost. ``keep_data=False``:
        start with an empty disk.
        """
        self._end(crash=crash)
        if not keep_data:
            self._machine.wipe()
        self.start()

    def advance(
        self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0
    ) -> None:
        """Move the wall clock and let retention act on it; timeouts are not moved."""
        moved = seconds + 60 * (minutes + 60 * (hours + 24 * days))
        if moved < 0:
            raise ValueError("time only goes forward")
        self._machine.clock.shift_ms += round(moved * 1000)
        self.process.run_janitor()

    def events(self, last: int = EVENTS_SHOWN) -> list[dict[str, object]]:
        """The newest log lines of this broker, oldest first, as JSON has them."""
        return self.process.events(last)

    @property
    def process(self) -> Process:
        """The process that runs now."""
        assert self._process is not None, "the broker is stopped: start() it first"
        return self._process

    def _end(self, *, crash: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if crash:
            process.kill()
            self._machine.lose_unsynced()
        else:
            process.stop()

    def _last_events(self) -> list[str]:
        events = self.events() if self._process is not None else []
        return [f"last {len(events)} events:", *(f"  {event}" for event in events)]


class _FaultyBroker:
    """``FaultTarget``: faults of the machine outlive a restart, those of a process do not."""

    def __init__(self, broker: Broker, machine: Machine) -> None:
        self.rules = machine.rules
        self._broker = broker
        self._machine = machine

    def refuse(self, on: bool) -> None:
        gate = self._machine.gate
        assert gate is not None
        if on:
            self._broker.process.call_sync(gate.shut)
        elif self._broker.process.alive:
            self._broker.process.call(gate.open)

    def drop_all(self) -> None:
        gate = self._machine.gate
        assert gate is not None
        self._broker.process.call_sync(gate.drop_all)

    def fill_disk(self, on: bool) -> None:
        self._broker.process.call_sync(lambda: self._machine.fill(on))
        self._broker.process.run_janitor()  # it is the janitor who looks at the free space

    def slow_disk(self, seconds: float) -> None:
        self._machine.sync_delay_s = seconds

    def pause(self, on: bool) -> None:
        self._broker.process.pause(on)
