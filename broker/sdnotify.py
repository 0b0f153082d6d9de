"""What systemd is told (sd_notify): one datagram each, to the socket it named.

Without ``NOTIFY_SOCKET`` every call does nothing. A message that cannot be delivered is dropped:
systemd then acts by its own time limits, and says so.
"""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """The socket of the service manager, if there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of an abstract address.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket = _datagram_socket() if path.startswith(("/", "@")) else None
        self.watchdog_s = _watchdog_s(environ)

    def ready(self, status: str) -> None:
        """The broker serves."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """A graceful stop has begun."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def watchdog(self) -> None:
        """The event loop turns."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return  # nobody listens (any more), or its buffer is full: the next one may get through


def _datagram_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    return made


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Half of ``WatchdogSec``, how often to tell; None if it is not watching this process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000
