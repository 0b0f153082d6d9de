"""Log lines: their shape, what is escaped, and how a flood is held back."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from tailrace.broker.logs import LogHandler, as_json, as_text, configure, set_level


class Clock:
    """Monotonic seconds, by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    """A logger whose lines can be read."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.handler = LogHandler(self.stream, broker="n1", render=as_json, clock=self.clock)
        self.logger = logging.Logger("tailrace.test")
        self.logger.addHandler(self.handler)

    def lines(self) -> list[dict[str, object]]:
        found = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        self.stream.truncate(self.stream.seek(0))
        return found


@pytest.fixture
def log() -> Iterator[Log]:
    made = Log()
    yield made
    made.handler.close()


def test_line_has_the_fields_of_the_contract(log: Log) -> None:
    log.logger.warning("%s free", "3 B", extra={"event": "disk.low", "code": "T031", "free": 3})
    (line,) = log.lines()
    assert isinstance(line.pop("time"), int)
    assert line == {
        **{"level": "warning", "event": "disk.low", "code": "T031"},
        **{"message": "3 B free", "broker": "n1", "free": 3},
    }


def test_code_is_null_where_there_is_none(log: Log) -> None:
    log.logger.info("hello")
    (line,) = log.lines()
    assert line["code"] is None
    assert line["event"] == "log"


def test_fields_do_not_replace_those_of_the_line(log: Log) -> None:
    log.logger.info("true", extra={"event": "e", "broker": "forged", "level": "forged"})
    (line,) = log.lines()
    assert (line["broker"], line["level"]) == ("n1", "info")


def test_traceback_is_a_field(log: Log) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        log.logger.exception("failed")
    (line,) = log.lines()
    assert str(line["traceback"]).endswith("ValueError: boom\n")


HOSTILE = 'x\n{"level":"forged"}\x1b[2J\u202e\x85'


@pytest.mark.parametrize("render", [as_json, as_text])
def test_client_text_can_neither_split_a_line_nor_reach_the_terminal(render: object) -> None:
    record = logging.makeLogRecord({"msg": HOSTILE, "event": "e", "client": HOSTILE})
    text = as_json(record, "n1") if render is as_json else as_text(record, "n1")
    assert text.isprintable()


def test_text_reads_as_one_line() -> None:
    extra = {"event": "disk.low", "code": "T031", "free": 3, "why": "a b", "none": ""}
    record = logging.makeLogRecord({"msg": "low", "created": 0.5, "levelname": "WARNING", **extra})
    said = '1970-01-01 00:00:00.500 WARNING disk.low T031: low free=3 why="a b" none=""'
    assert as_text(record, "n1") == said


def test_text_does_not_say_twice_what_the_message_says() -> None:
    extra = {
        "event": "topic.created",
        "topic": "hello",
        "part": "hell",
        "count": 1,
        "took": 0.12345,
    }
    record = logging.makeLogRecord({"msg": "created topic hello: 1", "created": 0, **extra})
    assert as_text(record, "n1").endswith("created topic hello: 1 part=hell count=1 took=0.123")
    assert json.loads(as_json(record, "n1"))["topic"] == "hello"


def test_text_shows_a_traceback_below() -> None:
    try:
        raise ValueError("bo\x1bom")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.makeLogRecord({"msg": "failed", "exc_info": info})
    lines = as_text(record, "n1").splitlines()
    assert lines[0].endswith("failed")
    assert lines[-1] == "    ValueError: bo\\x1bom"


def test_after_five_alike_the_rest_is_one_line_with_its_number(log: Log) -> None:
    for number in range(12):
        log.logger.warning("slow %d", number, extra={"event": "request.slow"})
    assert [line["message"] for line in log.lines()] == [f"slow {n}" for n in range(5)]
    log.clock.now += 10
    log.handler.flush_suppressed()
    (line,) = log.lines()
    assert (line["message"], line["suppressed"]) == ("slow 11", 7)
    log.logger.warning("slow again", extra={"event": "request.slow"})
    assert [line["message"] for line in log.lines()] == ["slow again"]


def test_held_back_lines_are_told_before_the_next_line_after_the_window(log: Log) -> None:
    for _ in range(7):
        log.logger.warning("slow", extra={"event": "request.slow"})
    log.clock.now += 10.5
    log.lines()
    log.logger.info("other", extra={"event": "other"})
    assert [line.get("suppressed") for line in log.lines()] == [2, None]


def test_held_back_lines_are_told_on_close(log: Log) -> None:
    for _ in range(6):
        log.logger.warning("slow", extra={"event": "request.slow"})
    log.lines()
    log.handler.close()
    assert [line["suppressed"] for line in log.lines()] == [1]


def test_different_events_levels_and_codes_are_not_alike(log: Log) -> None:
    for _ in range(5):
        log.logger.warning("x", extra={"event": "a"})
        log.logger.error("x", extra={"event": "a"})
        log.logger.warning("x", extra={"event": "a", "code": "T031"})
        log.logger.warning("x", extra={"event": "b"})
    assert len(log.lines()) == 20


def test_without_event_texts_are_alike_but_for_digits(log: Log) -> None:
    for number in range(9):
        log.logger.warning(f"connection {number} broke")
    log.logger.warning("something else")
    assert len(log.lines()) == 6


def test_memory_for_kinds_of_lines_is_bounded(log: Log) -> None:
    for number in range(3_000):
        log.logger.warning("x", extra={"event": f"event-{number}"})
    assert len(log.lines()) == 3_000
    for _ in range(6):
        log.logger.warning("x", extra={"event": "last"})
    assert len(log.lines()) == 5


def test_broken_stderr_does_not_break_the_broker(log: Log) -> None:
    log.stream.close()
    log.logger.warning("nobody reads this")


@pytest.fixture
def clean_root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = list(root.handlers), logging.getLogger("tailrace").level
    yield root
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
        handler.close()
    logging.getLogger("tailrace").setLevel(level)


def test_configure_replaces_its_own_handler_and_sets_the_level(clean_root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(level="info", format="json", broker="n1", stream=first)
    configure(level="warning", format="auto", broker="n1", stream=second)
    logger = logging.getLogger("tailrace.broker.test")
    logger.info("below the level")
    logger.warning("above")
    set_level("debug")
    logger.debug("now")
    logging.getLogger("elsewhere").info("not ours, below warning")
    assert first.getvalue() == ""
    messages = [json.loads(line)["message"] for line in second.getvalue().splitlines()]
    assert messages == ["above", "now"]
