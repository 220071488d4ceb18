"""Log lines: for people, or for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cluster.config import LogConfig
from cluster.installation import PACKAGES
from cluster.logs import configure


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
