"""A machine of its own to install a broker on: this one's files, with changes that go away (root).

An overlay over / is mounted in a folder; commands run in it by ``chroot``, in a network that is
loopback only, with ``systemctl`` and ``journalctl`` that speak to the emulation of systemd. What
pip would fetch from the registry is what this interpreter has; all else is as on a real machine.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import click

from tests.proofs.systemd_emulation import Service, Unit

PROJECT = Path(__file__).parent.parent.parent
UNIT = Path("etc/systemd/system/tailrace.service")
CONTROL = Path("run/systemd/control")
SHIM = """#!{python}
import json, socket, sys
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect("/{control}")
    manager.sendall(json.dumps([{name!r}, *sys.argv[1:]]).encode() + b"\\n")
    answer = json.loads(manager.makefile().readline())
print(answer["text"], end="")
sys.exit(answer["code"])
"""

NETWORK = """
import fcntl, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
print(flush=True)
sys.stdin.read()
"""


# What a ``Machine`` needs, in a mount namespace that ends with it.
TRIAL = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
chroot /mnt/root true
"""


def reason_to_skip() -> str:
    """Why there can be no such machine here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    wanted = ("unshare", "nsenter", "setpriv", "prlimit", "chroot", "useradd", "openssl", "curl")
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-ec", TRIAL],
        capture_output=True,
    )
    return "" if tried.returncode == 0 else "may not mount here"


class Machine:
    """``close`` it; everything that was done to it is gone then."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tailrace-machine-"))
        self.root = self._folder / "root"
        self.journal = self._folder / "journal"
        self.journal.touch()
        mount("-t", "tmpfs", "tmpfs", str(self._folder))
        self.journal.touch()
        self.root.mkdir()
        self._cover(Path("/"))
        self.root.chmod(0o755)
        self._prefixes = sorted({Path(sys.base_prefix), Path(sys.prefix), PROJECT})
        for path in self._prefixes:
            self._open_way(path)
        for name in ("dev", "proc", "run"):
            kind = ("-t", "tmpfs", "tmpfs") if name == "run" else ("--rbind", f"/{name}")
            mount(*kind, str(self.root / name))
        self._network = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._network.stdout is not None
        self._network.stdout.readline()
        self._inside = ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"]
        self._service: Service | None = None
        self._control = socket.socket(socket.AF_UNIX)
        self._closed = False
        (self.root / CONTROL).parent.mkdir(parents=True)
        self._control.bind(str(self.root / CONTROL))
        self._control.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        (self.root / "usr/local/bin/python3").unlink(missing_ok=True)
        python = Path(sys.base_prefix) / "bin/python3"  # what it has installed fits no other
        self.write("/usr/local/bin/python3", f'#!/bin/sh\nexec {python} "$@"\n', 0o755)
        for name in ("systemctl", "journalctl"):
            self.write(
                f"/usr/local/bin/{name}",
                SHIM.format(python=sys.executable, control=CONTROL, name=name),
                0o755,
            )

    def _open_way(self, path: Path) -> None:
        """Users may come to the interpreter, wherever it is installed."""
        inside = self.root / str(path).lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        for parent in inside.relative_to(self.root).parents:
            (self.root / parent).chmod(0o755)
        self._cover(path)

    def _cover(self, path: Path) -> None:
        """Its files are in the machine; what is written to them there stays there."""
        layer = Path(tempfile.mkdtemp(prefix="layer-", dir=self._folder))
        (layer / "upper").mkdir()
        (layer / "work").mkdir()
        layers = f"lowerdir={path},upperdir={layer}/upper,workdir={layer}/work"
        mount("-t", "overlay", "overlay", "-o", layers, str(self.root / str(path).lstrip("/")))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        inside = self.root / path.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)
        inside.chmod(mode)

    def install(self) -> None:
        """What ``pip install 'tailrace[server]'`` in /opt/tailrace leaves behind."""
        (packages,) = (self.root / "opt/tailrace/lib").glob("python*/site-packages")
        found = Path(click.__file__).parent.parent
        (packages / "tailrace.pth").write_text(f"{PROJECT}\n{found}\n")
        self.write(
            "/opt/tailrace/bin/tailrace",
            "#!/opt/tailrace/bin/python3\nfrom tailrace.cli import main\nmain()\n",
            0o755,
        )

    def install_plainly(self) -> None:
        """The command alone, run by this interpreter."""
        self.write(
            "/opt/tailrace/bin/tailrace",
            f'#!/bin/sh\nexec {sys.executable} -P -m tailrace.cli "$@"\n',
            0o755,
        )

    def sh(self, script: str, *, check: bool = True) -> str:
        """What a root's shell on it says to a script; stops at the first error."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("TAILRACE", "PYTHON"))}
        environ |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        shell = ("bash", "-eu", "-o", "pipefail", "-c", script)
        done = subprocess.run(
            [*self._inside, "chroot", str(self.root), *shell],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
        )
        said = done.stdout.decode()
        told = f"{script}\n{said}\n{self.journal.read_text()[-2000:]}"
        assert done.returncode == 0 or not check, told
        return said

    @property
    def service(self) -> Service:
        """Of the unit as it is installed now; one until ``daemon-reload``."""
        if self._service is None:
            unit = self.root / UNIT
            drop_ins = sorted(unit.with_name("tailrace.service.d").glob("*.conf"))
            self._service = Service(
                *(Unit.read(unit, *drop_ins), self.root, self.journal),
                readable=self._prefixes,
                inside=self._inside,
            )
        return self._service

    # ── systemctl, journalctl ────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        while not self._closed:
            try:
                peer, _ = self._control.accept()
            except OSError:
                return
            with peer:
                line = peer.makefile().readline()
                if not line:
                    continue
                code, text = self._answer(*json.loads(line))
                peer.sendall(json.dumps({"code": code, "text": text}).encode() + b"\n")

    def _answer(self, name: str, *arguments: str) -> tuple[int, str]:
        words = [one for one in arguments if one not in ("--now", "tailrace", "--no-pager")]
        if name == "journalctl":
            return 0, self.journal.read_text()
        if words == ["daemon-reload"]:
            if self._service is not None and self._service.state not in ("inactive", "failed"):
                return 0, ""  # holds from the next start on
            self._service = None
            return 0, ""
        service, (verb, *rest) = self.service, words
        calls: dict[str, Callable[[], None]] = {
            **{"start": service.start, "stop": service.stop, "restart": service.restart},
            **{"reload": service.reload, "enable": service.start},
        }
        if verb == "kill":
            os.kill(service.pid, signal_of(rest))
            return 0, ""
        if verb == "status":
            text = f"Active: {service.state}\nMain PID: {service.pid}\nStatus: {service.status}\n"
            return (0 if service.state == "active" else 3), text
        try:
            calls[verb]()
        except AssertionError as error:
            return 1, f"Job for tailrace.service failed: {error}\n"
        return 0, ""

    def close(self) -> None:
        if self._service is not None:
            self._service.stop()
        self._closed = True
        self._control.close()
        self._network.communicate()
        subprocess.run(["umount", "-R", "-l", str(self.root)], check=True)
        subprocess.run(["umount", "-l", str(self._folder)], check=True)
        shutil.rmtree(self._folder)


def signal_of(rest: list[str]) -> int:
    """``-s USR1`` or ``--signal=USR1`` as a number."""
    import signal

    text = rest[-1].rpartition("=")[2]
    return signal.Signals[text if text.startswith("SIG") else f"SIG{text}"]


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
