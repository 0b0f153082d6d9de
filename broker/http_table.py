"""Every endpoint of ``/api/v1/``: the one table behind routes and OpenAPI document."""

from tailrace.broker import (
    http_cluster,
    http_erasures,
    http_groups,
    http_topics,
)
from tailrace.broker.http_endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *http_cluster.ENDPOINTS,
    *http_topics.ENDPOINTS,
    *http_erasures.ENDPOINTS,
    *http_groups.ENDPOINTS,
)
