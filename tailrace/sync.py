"""``tailrace.sync``: the SDK without an event loop; see ``tailrace.client.sync``."""

from tailrace.client.sync import (
    Admin,
    Client,
    Consumer,
    Delivery,
    PartitionStream,
    Producer,
    connect,
)

__all__ = ["Admin", "Client", "Consumer", "Delivery", "PartitionStream", "Producer", "connect"]
