"""``Broker``: a real broker for tests, started in milliseconds, with data at hand.

``Records`` and ``Groups`` are what needs nothing but a URL; here is the process itself: faults,
clock, kill and restart.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tailrace.client.records import ConfigValue
from tailrace.testing.faults import Faults
from tailrace.testing.groups import Groups
from tailrace.testing.machine import MEMORY_DIR, Among, Machine
from tailrace.testing.process import Process

EVENTS_SHOWN = 20
DEFAULTS = {
    "broker.auto_create": "true",
    "group.assign_delay": "0ms",
    "storage.min_free": "1MiB",
}


class Broker(Groups):
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
        self._set_up(data_dir, config or {}, http=http)
        self.start()

    def _set_up(
        self,
        data_dir: Path | None,
        config: Mapping[str, ConfigValue],
        *,
        http: bool,
        among: Among | None = None,
    ) -> None:
        Groups.__init__(self, "")
        self.data_dir = data_dir
        self.http_url: str | None = None
        self._config = {
            "listeners.client.bind": "127.0.0.1:0",
            "http.bind": "127.0.0.1:0" if http else "",
            "storage.data_dir": str(data_dir.resolve()) if data_dir is not None else MEMORY_DIR,
            **config,
        }
        self._machine = Machine(None if data_dir is None else str(data_dir.resolve()), among)
        self._name = "test" if among is None else among.broker_id
        self._process: Process | None = None
        self._faults = Faults(_FaultyBroker(self, self._machine))

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
        process = Process(self._machine, self._config, DEFAULTS, self._name)
        ready = process.start()
        self._process = process
        self.url, self.http_url = ready.url, ready.http
        self._listeners = ready.addresses
        host, port = self.address = ready.addresses["client"]
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
        """Move the wall clock; retention and compaction act on it, timeouts are not moved."""
        moved = seconds + 60 * (minutes + 60 * (hours + 24 * days))
        if moved < 0:
            raise ValueError("time only goes forward")
        self._machine.clock.shift_ms += round(moved * 1000)
        self.process.run_janitor()

    def expire_member(self, group: str, member_id: str) -> None:
        """End a member's session now, as if it had been silent for too long.

        Its id is in ``client.admin.describe_group(group).member_list``; ValueError if it is none.
        GroupNotFound T043. A consumer that lives joins again, under the same id.
        """
        self.process.expire_member(group, member_id)

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
