"""URLs and arguments of ``connect``."""

import ssl
from typing import Any

import pytest

from tailrace.client.options import Address, ClientOptions, parse_url, resolve
from tailrace.protocol.errors import ConfigError, InvalidName

DEFAULTS: dict[str, Any] = {
    "client_id": None,
    "tls": None,
    "connect_timeout": 5.0,
    "request_timeout": 10.0,
    "max_outage": None,
    "close_timeout": 10.0,
}


def options(url: str | list[str] | None, **given: Any) -> ClientOptions:
    return resolve(url, **DEFAULTS | given)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("tailrace://localhost", [("localhost", 7400)]),
        (
            "tailrace://a:1,b,[::1]:3,[fe80::1]/",
            [("a", 1), ("b", 7400), ("::1", 3), ("fe80::1", 7400)],
        ),
        ("host:17400", [("host", 17_400)]),
    ],
)
def test_addresses_of_a_url(url: str, addresses: list[tuple[str, int]]) -> None:
    assert list(parse_url(url).addresses) == [Address(*address) for address in addresses]


def test_an_address_reads_as_it_is_written() -> None:
    assert [str(a) for a in parse_url("tailrace://a:1,[::1]:2").addresses] == ["a:1", "[::1]:2"]


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "tailrace://",
        "tailrace://a:0",
        "tailrace://a:65536",
        "tailrace://a:x",
        "tailrace://a:",
        "tailrace://a,,b",
        "tailrace://[::g]:1",
        "tailrace://user@host",
        "tailrace://a/b",
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    if url == "tailrace://a:":
        assert parse_url(url).addresses == (Address("a", 7400),)
        return
    with pytest.raises(ConfigError, match=r"T082: tailrace.connect\(\): url="):
        parse_url(url)


def test_an_unknown_option_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        options("tailrace://a?request_timeot=3")
    assert str(caught.value) == (
        "T080: tailrace://a?request_timeot=3: request_timeot unknown. Did you mean request_timeout?"
    )


def test_options_of_the_url_count_unless_an_argument_says_otherwise() -> None:
    url = "tailrace://a?request_timeout=3&client_id=me&max_outage=60&connect_timeout=1.5"
    found = options(url, connect_timeout=2.0)
    assert (found.request_timeout, found.client_id, found.max_outage) == (3.0, "me", 60.0)
    assert found.connect_timeout == 2.0


@pytest.mark.parametrize("given", [{"request_timeout": 0}, {"max_outage": -1}, {"tls": False}])
def test_arguments_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="T082"):
        options("tailraces://a", **given)


@pytest.mark.parametrize("query", ["request_timeout=soon", "tls=maybe", "max_outage=nan"])
def test_url_options_that_cannot_be(query: str) -> None:
    with pytest.raises(ConfigError, match="T082"):
        options(f"tailrace://a?{query}")


def test_tls_is_as_the_scheme_says_unless_given() -> None:
    context = ssl.create_default_context()
    assert options("tailrace://a").tls is None
    assert isinstance(options("tailraces://a").tls, ssl.SSLContext)
    assert isinstance(options("tailrace://a?tls=true").tls, ssl.SSLContext)
    assert options("tailraces://a", tls=context).tls is context
    with pytest.raises(ConfigError, match="of one scheme"):
        options(["tailrace://a", "tailraces://b"])


def test_a_client_id_must_be_readable() -> None:
    with pytest.raises(InvalidName, match="T013"):
        options(None, client_id="a\nb")
