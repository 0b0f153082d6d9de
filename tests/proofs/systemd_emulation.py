"""systemd without systemd: runs the service of a unit file by its directives (Linux, root).

What a broker can notice of its service manager is done for real: the notify socket and its
watchdog, user, limits, umask, the file system it sees, signals, times and restarts. A directive
that is not known here is refused, so that the unit file cannot say what nobody has tried.

    service = Service(Unit.read(path), root, journal)      # root: where / of the service is
    service.start(); service.reload(); service.restart(); service.stop()

Left out: the order of units, cgroups (what belongs to a service is found by its INVOCATION_ID),
what needs seccomp or cgroups (RestrictSUIDSGID, ProtectControlGroups), StartLimitIntervalSec.
"""

import array
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

NOTIFY = "/run/systemd/notify"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLL_S = 0.01
SPANS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 0.001, "min": 60.0, "h": 3600.0}
CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
KNOWN = {
    "Unit": {"Description", "After", "Wants", "StartLimitIntervalSec"},
    "Service": {
        *("Type", "NotifyAccess", "ExecStart", "ExecReload", "User", "Group"),
        *("TimeoutStartSec", "TimeoutStopSec", "WatchdogSec", "Restart", "RestartSec"),
        *("RestartPreventExitStatus", "KillMode", "StateDirectory", "StateDirectoryMode"),
        *("LimitNOFILE", "UMask", "NoNewPrivileges", "ProtectSystem", "ProtectHome"),
        *("PrivateTmp", "PrivateDevices", "ProtectKernelTunables", "ProtectControlGroups"),
        *("RestrictSUIDSGID", "ReadWritePaths"),
    },
    "Install": {"WantedBy"},
}


class Unit:
    """A unit file: the last value of each key, lists where keys may come again."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, list[str]] = {}
        section = ""
        for line in text.splitlines():
            if not line or line[0] in "#;":
                continue
            if line.startswith("["):
                section = line.strip("[]")
                continue
            key, _, value = line.partition("=")
            assert key in KNOWN[section], f"[{section}] {key} is not emulated"
            self.values.setdefault(key, []).append(value)

    @classmethod
    def read(cls, *paths: Path) -> "Unit":
        """The unit, and drop-ins behind it."""
        return cls("\n".join(path.read_text() for path in paths))

    def get(self, key: str, default: str = "") -> str:
        return self.values.get(key, [default])[-1]

    def words(self, key: str) -> list[str]:
        return [word for value in self.values.get(key, []) for word in value.split()]

    def is_on(self, key: str) -> bool:
        return self.get(key) in ("true", "yes", "on", "1", "strict", "full")

    def seconds(self, key: str, default: float) -> float:
        text = self.get(key)
        if text == "infinity":
            return float("inf")
        found = re.fullmatch(r"([0-9.]+)\s*([a-z]*)", text)
        return float(found[1]) * SPANS[found[2]] if found else default


@dataclass
class Service:
    """One service; ``state`` is ``inactive activating active deactivating failed auto-restart``."""

    unit: Unit
    root: Path
    journal: Path
    readable: Sequence[Path] = ()  # what a service may see although it lies in a home
    inside: Sequence[str] = ()  # a command that leads into the machine's network
    state: str = "inactive"
    status: str = ""
    result: str = ""  # "exit 7", "signal SIGABRT", "watchdog", "timeout"
    pid: int = 0
    starts: int = 0
    _process: "subprocess.Popen[bytes] | None" = None
    _thread: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _fed_at: float = 0.0
    _invocation: str = ""

    # ── what systemctl does ──────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Return when the service is active; AssertionError if it does not get there."""
        if self.state in ("active", "activating"):
            return
        self._stopping.clear()
        self.result = ""
        self.state = "activating"
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()
        limit = time.monotonic() + min(60.0, self.unit.seconds("TimeoutStartSec", 90.0))
        while self.state != "active":
            ended = self.state in ("failed", "inactive", "auto-restart")
            assert not ended, f"failed: {self.result}"  # it may be tried again all the same
            assert time.monotonic() < limit, "did not become ready"
            time.sleep(POLL_S)

    def stop(self) -> None:
        """SIGTERM, TimeoutStopSec, SIGKILL."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self) -> None:
        """ExecReload."""
        subprocess.run(
            shlex.split(self.unit.get("ExecReload").replace("$MAINPID", str(self.pid))), check=True
        )

    def wait(self, *states: str, seconds: float = 60.0) -> None:
        """Until it is in one of these states."""
        limit = time.monotonic() + seconds
        while self.state not in states:
            assert time.monotonic() < limit, f"{self.state}, {self.result}"
            time.sleep(POLL_S)

    # ── the supervisor ───────────────────────────────────────────────────────────────────────

    def _supervise(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            address = self.root / NOTIFY.lstrip("/")
            address.parent.mkdir(parents=True, exist_ok=True)
            address.unlink(missing_ok=True)
            notify.bind(str(address))
            address.chmod(0o777)
            notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            notify.setblocking(False)
            while True:
                self._run_once(notify)
                if self._stopping.is_set() or not self._comes_again():
                    return
                self.state = "auto-restart"
                if self._stopping.wait(self.unit.seconds("RestartSec", 0.1)):
                    self.state = "inactive"
                    return
                self.state = "activating"

    def _run_once(self, notify: socket.socket) -> None:
        """One life of the main process, to its end."""
        self.starts += 1
        self._invocation = uuid.uuid4().hex
        with self.journal.open("ab") as out:
            self._process = subprocess.Popen(
                self._command(),
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.pid = self._process.pid
        self._fed_at = time.monotonic()
        watchdog_s = self.unit.seconds("WatchdogSec", float("inf"))
        killed_at, why = float("inf"), ""
        while self._process.poll() is None:
            self._listen(notify)
            now = time.monotonic()
            if now - self._fed_at > watchdog_s and not why and self.state == "active":
                why = "watchdog"
                killed_at = now + self.unit.seconds("TimeoutStopSec", 90.0)
                self._process.send_signal(signal.SIGABRT)
            elif self._stopping.is_set() and killed_at == float("inf"):
                self.state = "deactivating"
                killed_at = now + self.unit.seconds("TimeoutStopSec", 90.0)
                self._process.send_signal(signal.SIGTERM)
            elif now > killed_at:
                why = why or "timeout"
                self._process.kill()
            time.sleep(POLL_S)
        self._listen(notify)
        self._kill_the_rest()
        code = self._process.returncode
        ended = f"exit {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        self.result = why or ended
        clean = not why and (code == 0 or -code in CLEAN_SIGNALS)
        self.state = "inactive" if clean else "failed"

    def _comes_again(self) -> bool:
        prevented = [f"exit {code}" for code in self.unit.words("RestartPreventExitStatus")]
        if self.result in prevented:
            return False
        return {"always": True, "on-failure": self.state == "failed"}.get(
            self.unit.get("Restart", "no"), False
        )

    def _listen(self, notify: socket.socket) -> None:
        """Everything that was told meanwhile."""
        while True:
            try:
                data, extra, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            sender = array.array("i", extra[0][2])[0] if extra else 0
            if self.unit.get("NotifyAccess") == "main" and sender != self.pid:
                continue
            for line in data.decode().splitlines():
                self._told(line)

    def _told(self, line: str) -> None:
        name, _, value = line.partition("=")
        if name == "READY" and self.state == "activating":
            self.state = "active"
            self._fed_at = time.monotonic()
        elif name == "STATUS":
            self.status = value
        elif name == "WATCHDOG":
            self._fed_at = time.monotonic()
        elif name == "STOPPING":
            self.state = "deactivating"

    def _kill_the_rest(self) -> None:
        """What the main process has left behind (KillMode=mixed: by SIGKILL)."""
        mark = f"INVOCATION_ID={self._invocation}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue

    # ── what the main process is born with ───────────────────────────────────────────────────

    def _environ(self) -> dict[str, str]:
        user = pwd_entry(self.root, self.unit.get("User", "root"))
        watchdog_s = self.unit.seconds("WatchdogSec", 0.0)
        return {
            **{"PATH": PATH, "LANG": "C.UTF-8", "INVOCATION_ID": self._invocation},
            **{"USER": user.pw_name, "LOGNAME": user.pw_name, "HOME": user.pw_dir},
            **{"NOTIFY_SOCKET": NOTIFY, "SHELL": user.pw_shell},
            **({"WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else {}),
        }

    def _command(self) -> list[str]:
        """A shell in a mount namespace of its own, which becomes the main process."""
        unit, user = self.unit, pwd_entry(self.root, self.unit.get("User", "root"))
        state = [f"/var/lib/{name}" for name in unit.words("StateDirectory")]
        lines = ["set -e", f"cd {shlex.quote(str(self.root))}"]
        for path in state:
            mode = unit.get("StateDirectoryMode", "0755")
            owner = f"-o {user.pw_uid} -g {user.pw_gid} -m {mode}"
            lines.append(f"[ -d .{path} ] || install -d {owner} .{path}")
        lines += ["mount --rbind /proc proc", "mount --rbind /sys sys"]
        for path in (*state, *unit.words("ReadWritePaths"), "/run"):
            lines.append(f"mount --bind .{path} .{path}")
        lines += self._devices()
        if unit.get("ProtectSystem") == "strict":
            lines.append("mount -o remount,bind,ro .")
        if unit.is_on("PrivateTmp"):
            lines += [f"mount -t tmpfs -o mode=1777 tmpfs {path}" for path in ("tmp", "var/tmp")]
        if unit.is_on("ProtectHome"):
            lines += [f"mount -t tmpfs -o mode=0755 tmpfs {path}" for path in ("home", "root")]
        for seen in self.readable:
            quoted = shlex.quote(f".{seen}")
            lines.append(f"[ -d {quoted} ] || mkdir -p {quoted}")
            lines.append(f"mount --bind {shlex.quote(str(seen))} {quoted}")
            lines.append(f"mount -o remount,bind,ro {quoted}")
        if unit.is_on("ProtectKernelTunables"):
            lines += ["mount --bind proc/sys proc/sys", "mount -o remount,bind,ro proc/sys"]
        limit = unit.get("LimitNOFILE")
        most = soft_limit(int(limit)) if limit else None
        command = [
            *(["prlimit", f"--nofile={most}:{most}"] if most else []),
            *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"),
            *(["--no-new-privs"] if unit.is_on("NoNewPrivileges") else []),
            *shlex.split(unit.get("ExecStart")),
        ]
        lines += [
            f"umask {unit.get('UMask', '0022')}",
            *(["export WATCHDOG_PID=$$"] if unit.get("WatchdogSec") else []),
            f"exec chroot . sh -c 'cd / && exec \"$@\"' sh {shlex.join(command)}",
        ]
        private = ("unshare", "--mount", "--propagation", "private")
        return [*self.inside, *private, "sh", "-c", "\n".join(lines)]

    def _devices(self) -> list[str]:
        if not self.unit.is_on("PrivateDevices"):
            return ["mount --rbind /dev dev"]
        lines = ["mount -t tmpfs -o mode=0755 tmpfs dev", "mkdir -p dev/shm", "chmod 1777 dev/shm"]
        for name in DEVICES:
            lines += [f"touch dev/{name}", f"mount --bind /dev/{name} dev/{name}"]
        return lines


def soft_limit(wanted: int) -> int:
    """As near as this machine lets us come."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def pwd_entry(root: Path, name: str) -> pwd.struct_passwd:
    """The user as the machine at ``root`` knows him."""
    for line in (root / "etc/passwd").read_text().splitlines():
        words = line.split(":")
        if words[0] == name:
            return pwd.struct_passwd([*words[:2], int(words[2]), int(words[3]), *words[4:]])
    raise AssertionError(f"no user {name} (status 217)")
