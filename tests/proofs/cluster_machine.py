"""A real cluster for the proofs: broker processes and etcd, on loopback or a namespace each.

With ``namespaces`` every broker and every member of etcd has a network namespace of its own on one
bridge, which lives in the namespace of the clients; needs root, ``ip`` and ``nft``. ``cut`` drops
packets at their receiver, silently, as a broken switch would. Everything is ended by its pid and
removed at the end.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tailrace.bench.processes import free_ports, variables
from tailrace.protocol.batch_header import MAGIC, parse_header
from tests.etcd_process import BINARY

READY_SECONDS_MAX = 60.0
HUB = "trhub"  # the namespace with the bridge; clients live there
SUBNET = "10.77.0"
HUB_ADDRESS = f"{SUBNET}.254"


def run(*command: str) -> None:
    """Run to its end; CalledProcessError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass(eq=False)
class Host:
    """One machine: a process that can be killed, stopped and started again."""

    name: str
    address: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    namespace: str | None = None
    tells_ready: bool = False  # one line of JSON on stdout, once it serves
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start, and wait until it says that it is ready."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start, and do not wait."""
        assert self.process is None, f"{self.name} runs"
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*inside, *self.command],
                stdout=subprocess.PIPE if self.tells_ready else log,
                stderr=log,
                text=True,
                env={**os.environ, **self.environ},
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        if not self.tells_ready:
            return
        assert self.process is not None
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS_MAX)
        line = self.process.stdout.readline() if readable else ""
        if not line:
            raise RuntimeError(f"{self.name} did not start; see {self.log}")
        json.loads(line)

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT: to one that runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, also to one that is stopped."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)
        finally:
            if process.stdout is not None:
                process.stdout.close()


@dataclass(eq=False)
class Machine:
    """All hosts of a cluster."""

    brokers: dict[str, Host]
    etcd: dict[str, Host]
    data: dict[str, Path]
    url: str
    http: dict[str, str]
    namespaces: bool

    def cut(self, victim: str, peers: Iterable[str], *, ways: str = "both") -> None:
        """Drop what comes to ``victim`` from ``peers`` ("in"), goes to them ("out"), or "both"."""
        assert self.namespaces, "needs namespaces"
        for peer in peers:
            address = self.host(peer).address if peer != HUB else HUB_ADDRESS
            if ways in ("in", "both"):
                self._nft(victim, "add", "rule", "inet", "cut", "i", "ip", "saddr", address, "drop")
            if ways in ("out", "both"):
                self._nft(victim, "add", "rule", "inet", "cut", "o", "ip", "daddr", address, "drop")

    def heal(self, victim: str) -> None:
        """Nothing is dropped at this host any more."""
        self._nft(victim, "flush", "table", "inet", "cut")

    def host(self, name: str) -> Host:
        return self.brokers.get(name) or self.etcd[name]

    def _nft(self, name: str, *command: str) -> None:
        run("ip", "netns", "exec", f"tr{name}", "nft", *command)

    def command(self, *arguments: str) -> list[str]:
        """A client's command, where clients are."""
        inside = ["ip", "netns", "exec", HUB] if self.namespaces else []
        return [*inside, *arguments]


@contextmanager
def machine(
    folder: Path,
    *,
    brokers: int = 3,
    members: int = 1,
    namespaces: bool = False,
    settings: Mapping[str, str] | None = None,
    data: Mapping[str, Path] | None = None,  # by broker; else below ``folder``
) -> Iterator[Machine]:
    """A cluster that serves. ``settings``: {"cluster.session_timeout": "3s"}, of every broker."""
    names = [f"n{number + 1}" for number in range(brokers)]
    stores = [f"e{number + 1}" for number in range(members)]
    hosts = [*names, *stores]
    if namespaces:
        addresses = {name: f"{SUBNET}.{at + 1}" for at, name in enumerate(hosts)}
        ports = dict.fromkeys(hosts, (7400, 7480, 2380))
    else:
        addresses = dict.fromkeys(hosts, "127.0.0.1")
        found = free_ports(3 * len(hosts))
        ports = {
            name: (found[3 * at], found[3 * at + 1], found[3 * at + 2])
            for at, name in enumerate(hosts)
        }
    etcd = _etcd(folder, stores, addresses, ports, namespaces=namespaces)
    urls = ",".join(f"http://{addresses[name]}:{ports[name][0]}" for name in stores)
    made = {
        name: Host(
            *(name, addresses[name]),
            [sys.executable, "-m", "tailrace.cli", "-O", "json", "serve"],
            _environ(
                {
                    "broker.id": name,
                    "listeners.client.bind": f"{addresses[name]}:{ports[name][0]}",
                    "http.bind": f"{addresses[name]}:{ports[name][1]}",
                    "storage.data_dir": str((data or {}).get(name, folder / name)),
                    "cluster.metadata": "etcd",
                    "cluster.etcd": urls,
                    "security.allow_insecure": "true",
                    **(settings or {}),
                }
            ),
            folder / f"{name}.log",
            f"tr{name}" if namespaces else None,
            tells_ready=True,
        )
        for name in names
    }
    found_data = {name: (data or {}).get(name, folder / name) for name in names}
    url = "tailrace://" + ",".join(f"{addresses[name]}:{ports[name][0]}" for name in names)
    http = {name: f"http://{addresses[name]}:{ports[name][1]}" for name in names}
    if namespaces:
        _lay_cables({name: addresses[name] for name in hosts})
    try:
        for host in etcd.values():
            host.start()
        for host in made.values():
            host.launch()
        for host in made.values():
            host.wait_ready()
        yield Machine(made, etcd, found_data, url, http, namespaces)
    finally:
        for host in (*made.values(), *etcd.values()):
            host.kill()
        if namespaces:
            _remove_cables(hosts)


def _environ(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as variables of a process."""
    return {**variables(settings), "PYTHONUNBUFFERED": "1"}


def _etcd(
    folder: Path,
    names: Sequence[str],
    addresses: Mapping[str, str],
    ports: Mapping[str, tuple[int, int, int]],
    *,
    namespaces: bool,
) -> dict[str, Host]:
    peers = {name: f"http://{addresses[name]}:{ports[name][2]}" for name in names}
    together = ",".join(f"{name}={url}" for name, url in peers.items())
    made: dict[str, Host] = {}
    for name in names:
        url = f"http://{addresses[name]}:{ports[name][0]}"
        options = [
            *(f"--name={name}", f"--data-dir={folder / name}", "--logger=zap"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            *(f"--listen-peer-urls={peers[name]}", f"--initial-cluster={together}"),
            *(f"--initial-advertise-peer-urls={peers[name]}", "--initial-cluster-state=new"),
        ]
        made[name] = Host(
            *(name, addresses[name], [BINARY or "etcd", *options]),
            *({"ETCD_UNSUPPORTED_ARCH": os.uname().machine}, folder / f"{name}.log"),
            f"tr{name}" if namespaces else None,
        )
    return made


def _lay_cables(addresses: Mapping[str, str]) -> None:
    """A namespace and a cable to the bridge for each host, and a table for what is cut."""
    _remove_cables(list(addresses))
    run("ip", "netns", "add", HUB)
    inside = ("ip", "-n", HUB)
    run(*inside, "link", "set", "lo", "up")
    run(*inside, "link", "add", "bridge", "type", "bridge")
    run(*inside, "addr", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
    run(*inside, "link", "set", "bridge", "up")
    for name, address in addresses.items():
        space = f"tr{name}"
        run("ip", "netns", "add", space)
        run(
            *("ip", "link", "add", f"v{name}", "netns", HUB, "type", "veth"),
            *("peer", "name", "eth0", "netns", space),
        )
        run(*inside, "link", "set", f"v{name}", "master", "bridge", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        nft = ("ip", "netns", "exec", space, "nft")
        run(*nft, "add", "table", "inet", "cut")
        for chain, hook in (("i", "input"), ("o", "output")):
            rule = f"{{ type filter hook {hook} priority 0 ; }}"
            run(*nft, "add", "chain", "inet", "cut", chain, rule)


def _remove_cables(names: Sequence[str]) -> None:
    for space in (*(f"tr{name}" for name in names), HUB):
        subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


# ── what is on the disks ─────────────────────────────────────────────────────────────────────


def log_bytes(partition: Path) -> bytes:
    """All batches of a partition's log, back to back, without what lies ahead of its end."""
    found: list[bytes] = []
    for segment in sorted(partition.glob("*.log")):
        data, position = segment.read_bytes(), 0
        while data[position + 4 : position + 6] == MAGIC.to_bytes(2, "big"):
            size = parse_header(data, position).size_bytes
            found.append(data[position : position + size])
            position += size
    return b"".join(found)


def diverging(machine: Machine) -> list[str]:
    """Partitions whose replicas are not equal, byte by byte, up to the end of the shortest."""
    wrong: list[str] = []
    partitions = {path.name for data in machine.data.values() for path in data.glob("topics/*-*")}
    for name in sorted(partitions):
        copies = {
            broker: log_bytes(data / "topics" / name)
            for broker, data in machine.data.items()
            if (data / "topics" / name).is_dir()
        }
        shortest = min(map(len, copies.values()))
        if len({copy[:shortest] for copy in copies.values()}) > 1:
            lengths = {broker: len(copy) for broker, copy in copies.items()}
            wrong.append(f"{name}: {lengths} bytes, and not equal up to {shortest}")
    return wrong


def wait_until(check: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask ``check`` until it says yes; AssertionError after so long."""
    ends_at = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < ends_at, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
