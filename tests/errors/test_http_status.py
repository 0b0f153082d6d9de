"""The HTTP status of every code of the catalogue, as the contract lists them."""

import pytest

from tailrace.broker.http_errors import as_request_error, headers_of, status_of
from tailrace.protocol.catalogue import CATALOGUE
from tailrace.protocol.errors import CLASSES, ConnectError, StorageFull

LISTED = {
    400: "T013 T022 T061 T062 T080 T081 T082 T083",
    401: "T006",
    404: "T010 T011 T043",
    409: "T012 T044",
    413: "T021",
    416: "T041",
    503: "T030 T031 T033 T100",
    504: "T020 T034",
}
# What a request itself caused, or may be tried again, is no fault of the broker either.
MORE = {"T086": 400, "T123": 503}
STATUSES = {code: status for status, codes in LISTED.items() for code in codes.split()} | MORE


def test_what_a_handler_finds_malformed_is_told_as_input() -> None:
    error = as_request_error(ConnectError("T121", "malformed frame: too much", reason="too much"))
    assert (error.code, error.message, status_of(error)) == ("T062", "too much", 400)


def test_the_list_names_codes_that_exist() -> None:
    assert STATUSES.keys() <= CLASSES.keys() <= CATALOGUE.keys()


@pytest.mark.parametrize("code", CLASSES)
def test_status_is_the_listed_one_and_every_other_is_500(code: str) -> None:
    error = CLASSES[code](code, "m")
    status = status_of(error)
    assert status == STATUSES.get(code, 500)
    assert ("retry-after" in headers_of(error, status)) == (status == 503)


@pytest.mark.parametrize(("seconds", "header"), [(0.1, "1"), (5.0, "5"), (10.2, "11")])
def test_a_full_disk_says_when_to_come_back(seconds: float, header: str) -> None:
    full = StorageFull("T031", "m", retry_after=seconds)
    assert headers_of(full, 503)["retry-after"] == header
