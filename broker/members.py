"""The brokers of a cluster, as the metadata store names them (pure).

- ``brokers/{id}`` is written once per registration, with the broker's lease: its revision is the
  *broker epoch*, and it goes when the lease does. A broker that comes back has another epoch, so
  whatever named it by the old one no longer counts (R6, KIP-903).
- ``draining/{id}`` (with the lease) says that a broker is about to stop; ``drains/{id}`` (without)
  that an operator wants to be rid of it. Neither is given leaderships.
- ``directories/{id}`` is the data directory this broker last came with: another one holds nothing
  of what the old one was counted for (R7).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BROKERS = "brokers/"
DRAINING = "draining/"
DRAINS = "drains/"
DIRECTORIES = "directories/"
CONTROLLER_KEY = "controller"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where one listener of a broker is reached."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class Peer:
    """Another broker, and where it is asked."""

    broker_id: str
    where: PeerAddress


@dataclass(frozen=True, slots=True)
class BrokerRecord:
    """One registered broker."""

    broker_id: str
    listeners: Mapping[str, PeerAddress]  # by name, as advertised
    http: str | None
    rack: str | None
    version: str
    since: int  # ms: when its process began to serve
    directory: str  # id of its data directory
    lease: int = 0  # of this registration: no two are equal byte for byte (R16)
    epoch: int = 0  # revision of its key; 0 while it is not stored

    @property
    def key(self) -> str:
        return BROKERS + self.broker_id

    @property
    def where(self) -> str:
        """One of its addresses, for people."""
        return next((f"{one.host}:{one.port}" for one in self.listeners.values()), "?")

    def at(self, listener: str) -> Peer | None:
        """Where others ask it, by one of its listeners; None: it has no such listener."""
        where = self.listeners.get(listener)
        return None if where is None else Peer(self.broker_id, where)

    def to_json(self) -> bytes:
        document = {
            "listeners": {
                name: {"host": one.host, "port": one.port, "tls": one.tls}
                for name, one in self.listeners.items()
            },
            "http": self.http,
            "rack": self.rack,
            "version": self.version,
            "since": self.since,
            "directory": self.directory,
            "lease": self.lease,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, key: str, value: bytes, revision: int) -> "BrokerRecord":
        document: Any = json.loads(value)
        return cls(
            broker_id=key.removeprefix(BROKERS),
            listeners={
                name: PeerAddress(one["host"], one["port"], one["tls"])
                for name, one in document["listeners"].items()
            },
            http=document["http"],
            rack=document["rack"],
            version=document["version"],
            since=document["since"],
            directory=document["directory"],
            lease=document["lease"],
            epoch=revision,
        )


class IdTaken(Exception):
    """A broker with another data directory is registered under the same id."""

    def __init__(self, other: BrokerRecord) -> None:
        super().__init__(other.broker_id)
        self.other = other
