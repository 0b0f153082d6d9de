"""Every endpoint of ``/api/v1/``: the one table behind routes and OpenAPI document."""

from functools import cache

from tailrace.broker import (
    http_cluster,
    http_erasures,
    http_groups,
    http_records,
    http_tail,
    http_topics,
)
from tailrace.broker.http_endpoint import Context, Endpoint, Reply
from tailrace.broker.http_openapi import JsonSchema, openapi


async def get_openapi(context: Context) -> Reply:
    return Reply(_document(bool(context.config.http.token_file)))


@cache
def _document(token: bool) -> JsonSchema:
    return openapi(ENDPOINTS, token=token)


ENDPOINTS: tuple[Endpoint, ...] = (
    *http_cluster.ENDPOINTS,
    *http_topics.ENDPOINTS,
    *http_records.ENDPOINTS,
    *http_tail.ENDPOINTS,
    *http_erasures.ENDPOINTS,
    *http_groups.ENDPOINTS,
    Endpoint(
        *("GET", "/api/v1/openapi.json", "get_openapi", "This document", get_openapi),
        {200: dict},
    ),
)
