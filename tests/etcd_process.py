"""Real etcd for tests: one member or several, on free ports of 127.0.0.1, ended by their ids.

The binary is the one named by $TAILRACE_TEST_ETCD, else ``etcd`` on PATH.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tailrace.bench.processes import free_ports

BINARY = os.environ.get("TAILRACE_TEST_ETCD") or shutil.which("etcd") or ""
SECONDS_MAX = 60.0
# Nobody else can lead: it may see within 0.2 s, and not after one, that it has to.
ALONE = ("--heartbeat-interval=20", "--election-timeout=200")
needs_etcd = pytest.mark.skipif(
    not BINARY and not os.environ.get("CI"),
    reason="needs etcd: apt-get install etcd-server, and stop the service",
)


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
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            environ = {"PATH": os.environ["PATH"], "ETCD_UNSUPPORTED_ARCH": os.uname().machine}
            self.process = subprocess.Popen(
                [BINARY or "etcd", *self.options], stdout=log, stderr=log, env=environ
            )

    def kill(self) -> None:
        """SIGKILL, and gone when this returns; nothing if it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(SECONDS_MAX)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

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
    folder: Path, members: int = 1, *options: str, tls: Tls | None = None
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
