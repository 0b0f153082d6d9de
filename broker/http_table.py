"""Every endpoint of ``/api/v1/``: the one table behind routes and OpenAPI document."""

from tailrace.broker import http_topics
from tailrace.broker.http_endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (*http_topics.ENDPOINTS,)
