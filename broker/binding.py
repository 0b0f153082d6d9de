"""Where a broker listens, and what it says of that when it serves."""

from collections.abc import MutableMapping
from dataclasses import dataclass

from tailrace.broker.config import Config
from tailrace.broker.kinds import Address
from tailrace.broker.node import Node
from tailrace.broker.security import Certificate
from tailrace.broker.world import Listener, ServerNet
from tailrace.protocol import texts_config
from tailrace.storage.directory import DataDirectory


@dataclass(frozen=True, slots=True)
class Ready:
    """A broker that serves."""

    url: str  # of its first listener, as clients take it
    addresses: dict[str, tuple[str, int]]  # by listener: what clients are told
    http: str | None
    broker_id: str
    cluster_id: str
    data_dir: str


async def bind(
    net: ServerNet,
    config: Config,
    certificate: Certificate | None,
    addresses: MutableMapping[str, tuple[str, int]],
) -> dict[str, Listener]:
    """Bind every listener; ConfigError T082 if one cannot be.

    ``addresses`` gets what clients and brokers are told, by listener.
    """
    tls = None if certificate is None else certificate.context
    bound: dict[str, Listener] = {}
    for one in config.listeners:
        try:
            opened = await net.listen(*one.bind, tls=tls if one.tls else None)
        except OSError as error:
            for other in bound.values():
                other.close()
            raise texts_config.settings_contradict(
                f"listeners.{one.name}.bind",
                origin=config.values[f"listeners.{one.name}.bind"].origin,
                problem=f"{one.bind} cannot be bound: {error.strerror or error}",
                hint=f"Stop what listens there, or set listeners.{one.name}.bind"
                f"{' (tailrace dev: --port)' if one.name == 'client' else ''}.",
            ) from error
        bound[one.name] = opened
        told = one.advertise or Address(opened.host, 0)
        addresses[one.name] = (told.host, told.port or opened.port)
    return bound


def ready_of(node: Node, directory: DataDirectory) -> Ready:
    """What a broker that serves says."""
    first = next(one for one in node.config.listeners if one.name == "client")
    scheme = "tailraces" if first.tls else "tailrace"
    return Ready(
        url=f"{scheme}://{Address(*node.addresses[first.name])}",
        addresses=dict(node.addresses),
        http=node.http,
        broker_id=node.broker_id,
        cluster_id=node.cluster_id,
        data_dir=directory.path,
    )
