"""Test brokers' log lines: kept for the broker, and nothing else of a process's logging changes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.testing import Broker
from tailrace.testing.events import EventLog, install, remove

LOGGER = logging.getLogger("tailrace.broker")


@pytest.fixture(scope="module")
def kept() -> Iterator[EventLog]:
    """As of a broker that more than one test uses: it was there before the test began."""
    log = EventLog()
    install(log)
    yield log
    remove(log)


def test_caplog_gets_each_line_of_a_broker_that_tests_share_once(
    kept: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("tailrace.broker.thing").warning("low on disk")
    assert caplog.messages == ["low on disk"]


def test_lines_below_the_level_of_the_test_are_kept_and_not_passed_on(
    kept: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    kept.thread = logging.makeLogRecord({}).thread
    logging.getLogger("tailrace.broker.thing").info("rolled")
    assert [line["message"] for line in kept.last(1)] == ["rolled"]
    assert caplog.messages == []


def test_a_level_that_the_test_sets_holds_for_a_broker_that_was_there_before(
    kept: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        logging.getLogger("tailrace.broker.thing").info("rolled")
    assert caplog.messages == ["rolled"]


def test_a_broker_that_could_not_start_leaves_logging_as_it_was(tmp_path: Path) -> None:
    before = LOGGER.level, LOGGER.propagate, LOGGER.parent, list(LOGGER.handlers)
    with Broker(data_dir=tmp_path):
        with pytest.raises(BrokerError, match="T090"):
            Broker(data_dir=tmp_path).__enter__()
    assert (LOGGER.level, LOGGER.propagate, LOGGER.parent, list(LOGGER.handlers)) == before
