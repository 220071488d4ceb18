"""Log lines: for people, or for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cluster.arrival import ARRIVAL, Arrival
from cluster.config import LogConfig
from cluster.installation import PACKAGES
from cluster.logs import Repeats, configure, of_request
from cluster.timeline import Timeline
from engine.request import Request, Sampling


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Leaves the loggers of this process as they were."""
    ours = [logging.getLogger(name) for name in ("tandem", *PACKAGES)]
    before = [(one.handlers, one.level, one.propagate) for one in ours]
    yield
    for one, (handlers, level, propagate) in zip(ours, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_a_line_of_json_says_who_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"), instance="decode-0")
    logging.getLogger("tandem.instance").info("5 requests, %s", "naïve")
    line = json.loads(capsys.readouterr().err)
    assert line.pop("ts")
    assert line == {
        "level": "info", "logger": "tandem.instance", "msg": "5 requests, naïve", "instance": "decode-0"
    }  # fmt: skip


def test_a_traceback_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("engine.loop").exception("ended")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: broken" in json.loads(line)["traceback"]


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(level="warning"))
    logging.getLogger("migration.link").info("small talk")
    logging.getLogger("migration.link").warning("trouble")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING migration.link: trouble")


def test_a_line_about_a_request_names_its_tenant(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig(format="json"))
    request = Request("r-0", (1, 2), Sampling(max_tokens=1), tenant="acme", trace=f"00-{'a' * 32}-x")
    logging.getLogger("tandem.instance").info("takes it", extra=of_request(request))
    line = json.loads(capsys.readouterr().err)
    assert (line["request_id"], line["tenant"], line["trace_id"]) == ("r-0", "acme", "a" * 32)


@pytest.mark.parametrize(
    ("key", "counted", "shown"), [("acme", None, "acme"), ("acme", "acme", "acme"), ("", "ann", "ann")]
)
def test_a_line_of_the_task_that_answers_names_the_tenant(
    capsys: pytest.CaptureFixture[str], key: str, counted: str | None, shown: str
) -> None:
    """The key's before the request is admitted, then the one that it is counted for."""
    configure(LogConfig(format="json"))
    arrival = Arrival(0.0, state={"request_id": "r-0", "tenant": key})
    if counted is not None:
        arrival.timelines.append(
            Timeline("r-0", tenant=counted, trace="", prompt_tokens=1, began=0.0, now=0.0)
        )
    before = ARRIVAL.set(arrival)
    try:
        logging.getLogger("tandem.gateway").info("answers")
    finally:
        ARRIVAL.reset(before)
    assert json.loads(capsys.readouterr().err)["tenant"] == shown


class Flood:
    """A logger behind `Repeats`, on a clock that the test sets."""

    def __init__(self, most: int = 256) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.logger = logging.Logger("flooded")
        self.repeats = Repeats(10.0, most, lambda: self.now)
        handler = logging.Handler()
        handler.addFilter(self.repeats)
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.logger.addHandler(handler)


def test_an_error_that_repeats_is_counted_and_the_next_one_says_how_often() -> None:
    flood = Flood()
    for flood.now in (0.0, 1.0, 2.0, 9.9, 10.0, 20.0):
        flood.logger.error("the link to %s is gone at 5 %%", "decode-0")
    line = "the link to decode-0 is gone at 5 %"
    assert flood.lines == [line, f"{line} (3 more like it were dropped)", line]


def test_a_flood_hides_nothing_else() -> None:
    """Another message, with other arguments too, another level, another exception; and what is no warning is
    never dropped."""
    flood = Flood()
    for _ in range(100):
        flood.logger.error("failed")
        flood.logger.info("a request has ended")
    flood.logger.warning("failed")
    flood.logger.error("the cause")
    flood.logger.error("failed", exc_info=OSError("the cause"))
    flood.logger.error("failed", exc_info=OSError("again"))
    assert flood.lines.count("a request has ended") == 100
    assert flood.lines[-3:] == ["failed", "the cause", "failed"]
    assert len(flood.lines) == 104


def test_what_is_remembered_of_errors_is_bounded() -> None:
    flood = Flood(most=3)
    for number in range(50):
        flood.logger.error(f"made of its own text: {number}")
    assert len(flood.lines) == 50
    assert len(flood.repeats._seen) == 3


def test_repeats_are_dropped_in_every_process_that_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogConfig())
    for _ in range(3):
        logging.getLogger("engine.loop").error("ended")
    assert len(capsys.readouterr().err.splitlines()) == 1
