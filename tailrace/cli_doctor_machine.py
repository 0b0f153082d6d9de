"""What ``tailrace doctor`` looks at without asking a broker: the machine, its disk, its ports."""

import errno
import os
import pwd
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tailrace.cli import EXTRAS, installed
from tailrace.client.cli_ready import ask_ready, local_http
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_size

if TYPE_CHECKING:
    from tailrace.broker.config import Config

NOFILE_MIN = 4_096
NOFILE_SHELL_MIN = 1_024  # what every system gives a shell; with less, clients fail, too
NOFILE = 65_536  # what the unit file gives
DISK_FREE_MIN = 0.05  # without a configuration, which has storage.min_free
FSYNC_MS_MAX = 20.0
FSYNCS = 20
FSYNCS_SECONDS_MAX = 1.0  # but three are made in any case
TAKEN = "taken"  # by somebody else
ODD_FILE_SYSTEMS = {
    **dict.fromkeys(("tmpfs", "ramfs"), "in memory: gone after a reboot"),
    "overlay": "a container's own layer: gone with the container, mount a volume",
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre"),
        "a network file system: locks and syncs may not hold, take a local disk",
    ),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    value: object
    detail: str
    fix: str = ""


def python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Check("python", ok, version, version, "" if ok else "Install Python 3.11 or newer.")


def extras() -> Check:
    missing = [name for name in EXTRAS if not installed(name)]
    if not missing:
        return Check("extras", True, "server", "server is installed")
    detail = f"missing: {', '.join(missing)}; only clients work, and no configuration is read"
    return Check("extras", False, missing, detail, "pip install 'tailrace[server]'")


# ── ports ────────────────────────────────────────────────────────────────────────────────────


def ports(config: "Config | None") -> Check:
    """A port is fine if it is free, or if a broker of ours already has it."""
    taken: list[tuple[str, str, int]] = []
    refused: list[tuple[str, str, int, str]] = []
    for key, host, port, is_ours in wanted_ports(config):
        reason = why_not_bound(host, port)
        if reason == TAKEN and not is_ours(host, port):
            taken.append((key, host, port))
        elif reason is not None and reason != TAKEN:
            refused.append((key, host, port, reason))
    if not taken and not refused:
        return Check("ports", True, [], "free, or a broker has them")
    addresses = [f"{host}:{port} ({key})" for key, host, port, *_ in (*taken, *refused)]
    details = [f"taken: {', '.join(addresses[: len(taken)])}"] if taken else []
    details += [f"{host}:{port} ({key}): {reason}" for key, host, port, reason in refused]
    fixes = [f"{who_has(port)}, or set {key}." for key, _, port in taken]
    fixes += [f"Set {key} to an address and port that this user may bind." for key, *_ in refused]
    return Check("ports", False, addresses, "; ".join(details), " ".join(fixes))


def wanted_ports(
    config: "Config | None",
) -> Iterator[tuple[str, str, int, Callable[[str, int], bool]]]:
    """The setting, the address, and how to tell whether a broker of ours has it."""
    if config is None:
        yield "listeners.client.bind", "127.0.0.1", 7400, speaks_tailrace
        yield "http.bind", "127.0.0.1", 7480, is_ready
        return
    for one in config.listeners:
        ours = partial(speaks_tailrace, tls=one.tls)
        yield f"listeners.{one.name}.bind", one.bind.host, one.bind.port, ours
    if config.http.bind is not None:
        yield "http.bind", config.http.bind.host, config.http.bind.port, is_ready


def why_not_bound(host: str, port: int) -> str | None:
    """None: it can be; ``TAKEN``; or another reason, such as that the address is not of here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return TAKEN if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return None


def speaks_tailrace(host: str, port: int, *, tls: bool = False) -> bool:
    from tailrace.protocol.connection import ClientConnection

    reach, _ = local_http(f"{host}:{port}")
    machine = ClientConnection("doctor", "tailrace-doctor")
    context = ssl.create_default_context()
    context.check_hostname = False  # whose it is matters here, not whether it can be trusted
    context.verify_mode = ssl.CERT_NONE
    try:
        with closing(socket.create_connection((reach, port), timeout=1)) as plain:
            connection = context.wrap_socket(plain) if tls else plain
            with closing(connection):
                connection.sendall(machine.open())
                return connection.recv(4) == b"\x89TLR"
    except OSError:
        return False


def is_ready(host: str, port: int) -> bool:
    """Whether a broker's HTTP answers there."""
    try:
        ask_ready(*local_http(f"{host}:{port}"), timeout_seconds=1)
    except TailraceError:
        return False
    return True


def who_has(port: int) -> str:
    """What to do about it: by name, where the system tells whose it is."""
    inodes = {f"socket:[{inode}]" for inode in listening(port)}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # another user's, or gone
            if inodes & {os.readlink(entry) for entry in folder.iterdir()}:
                name = (folder.parent / "comm").read_text().strip()
                return f"Stop {name} (pid {folder.parent.name})"
    return f"Find who listens (sudo ss -ltnp sport = {port}) and stop it"


def listening(port: int) -> Iterator[str]:
    """The inodes of sockets that listen there (Linux)."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]


# ── limits and disk ──────────────────────────────────────────────────────────────────────────


def nofile(folder: Path) -> Check:
    """Of the broker that runs on that data directory, else of whoever asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    theirs = limit_of_broker(folder)
    if theirs is not None and theirs >= NOFILE_MIN and soft >= NOFILE_SHELL_MIN:
        return Check("nofile", True, theirs, f"{theirs:,} open files for the broker that runs")
    if theirs is None and (soft == resource.RLIM_INFINITY or soft >= NOFILE_MIN):
        return Check("nofile", True, soft, f"{soft:,} open files")
    if theirs is not None and theirs < NOFILE_MIN:
        detail = f"{theirs:,} open files for the broker that runs, {NOFILE_MIN:,} are needed"
        fix = f"Start it with more: LimitNOFILE={NOFILE} in the unit, else ulimit -n {NOFILE}."
        return Check("nofile", False, theirs, detail, fix)
    reach = NOFILE if hard == resource.RLIM_INFINITY else min(NOFILE, hard)
    detail = f"{soft:,} open files here, {NOFILE_MIN:,} are needed"
    if reach >= NOFILE_MIN:
        fix = f"ulimit -n {reach}, in the shell that starts the broker; the unit has LimitNOFILE."
        return Check("nofile", False, soft, detail, fix)
    fix = (
        f"Raise the hard limit: LimitNOFILE={NOFILE} in the unit, docker run --ulimit"
        f" nofile={NOFILE}, or nofile in /etc/security/limits.conf."
    )
    return Check("nofile", False, soft, f"{detail}; the hard limit is {hard:,}", fix)


def limit_of_broker(folder: Path) -> int | None:
    """Open files of the process that has the lock of the directory; None if none is seen."""
    with suppress(OSError, ValueError, IndexError):
        inode = str((folder / "LOCK").stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                limits = Path(f"/proc/{words[4]}/limits").read_text()
                (row,) = [one for one in limits.splitlines() if one.startswith("Max open files")]
                return int(row.split()[3])
    return None


def disk_free(config: "Config | None", folder: Path) -> Check:
    """Room for ``folder``, the data directory, and whether a broker can use it at all."""
    place = nearest(folder)
    stat = os.statvfs(place)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    kind = file_system(place)
    detail = f"{format_size(free)} of {format_size(total)} free at {place} ({kind})"
    if kind in ODD_FILE_SYSTEMS:
        detail += f"; {ODD_FILE_SYSTEMS[kind]}"
    needed, limit = total * DISK_FREE_MIN, "storage.min_free"
    if config is not None:
        needed = config.storage.min_free.bytes_of(total)
        limit += f" {config.values['storage.min_free'].text}"
    fix = ""
    if free < needed:
        fix = f"Free space, or shorten a retention: below {limit} writes are refused."
    elif not usable(place) and (folder == place or chosen(config)):
        detail += f"; {user(os.geteuid())} cannot write there"
        owner = user(place.stat().st_uid)
        fix = f"Run doctor as the broker's user (sudo -u {owner} tailrace doctor), or chown it."
        if folder != place:
            fix = f"Make {folder} and give it to the broker's user, with mode 0700."
    elif usable(folder) and (folder / "suspect").exists():
        detail += "; marked suspect: the disk failed a sync"
        fix = "Look for errors of the disk (dmesg), then start the broker: it checks everything."
    return Check("disk_free", not fix, free, detail, fix)


def fsync(folder: Path) -> Check:
    """The median of a few syncs: what every durable send waits for at least."""
    place = nearest(folder)
    where = str(place)
    if not usable(place):
        place = Path(tempfile.gettempdir())
        where = f"{place}, as {where} is not writable"
    taken: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryFile(dir=place) as file:
        while len(taken) < FSYNCS:
            os.write(file.fileno(), b"x" * 4096)
            before = time.perf_counter()
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - before) * 1_000)
            if len(taken) >= 3 and time.perf_counter() - began > FSYNCS_SECONDS_MAX:
                break
    median = sorted(taken)[len(taken) // 2]
    ok = median <= FSYNC_MS_MAX
    detail = f"{median:.2f} ms median at {where}"
    fix = "Put storage.data_dir on a faster disk: every durable send waits for one sync."
    return Check("fsync_ms", ok, round(median, 3), detail, "" if ok else fix)


def nearest(folder: Path) -> Path:
    """The folder, or the closest parent that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def usable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def chosen(config: "Config | None") -> bool:
    """Whether somebody set the data directory: the default one may never be meant."""
    return config is not None and config.values["storage.data_dir"].source != "default"


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def file_system(folder: Path) -> str:
    """Its kind, such as ``ext4``; ``?`` where the system does not tell."""
    path, best, kind = str(folder.resolve()), "", "?"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place, _, rest = line.partition(" - ")
            mounted = place.split()[4].replace("\\040", " ")
            inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
            if inside and len(mounted) >= len(best):
                best, kind = mounted, rest.split()[0]
    return kind
