"""A real broker inside your tests.

``Broker`` runs in a thread of its own, on a free port, with its log in memory; the pytest plugin
gives it as the fixture ``tailrace_broker``. ``Cluster`` is several of them that replicate, as the
fixture ``tailrace_cluster``. ``simulate`` runs broker, clients and your code on virtual time, by
seed. Importing this package imports neither trio nor the server.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailrace.testing.broker import Broker
    from tailrace.testing.cluster import Cluster
    from tailrace.testing.faults import Faults
    from tailrace.testing.virtual import Simulation, simulate

__all__ = ["Broker", "Cluster", "Faults", "Simulation", "simulate"]

_HOMES = {
    "Broker": "tailrace.testing.broker",
    "Cluster": "tailrace.testing.cluster",
    "Faults": "tailrace.testing.faults",
    "Simulation": "tailrace.testing.virtual",
    "simulate": "tailrace.testing.virtual",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
