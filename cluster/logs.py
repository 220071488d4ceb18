"""What our processes write to their standard error: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cluster.arrival import ARRIVAL
from cluster.config import LogConfig
from cluster.installation import PACKAGES
from engine.request import Request


class JsonFormatter(logging.Formatter):
    """ts, level, logger and msg, what the process says of itself, the request at hand, a traceback."""

    def __init__(self, fields: dict[str, str]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **self._fields,
            **_request_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


Kind = tuple[str, int, str, type[BaseException] | None]
"""What makes two records repeats of one another: logger, level, message, exception."""


class Repeats(logging.Filter):
    """Of warnings and errors that repeat, lets one pass in `within` seconds.

    It says how many like it were dropped since the one before. Remembers the latest `most` kinds.
    """

    def __init__(
        self, within: float = 10.0, most: int = 256, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._within = within
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[Kind, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        dropped = self._dropped(record)
        if dropped:
            record.msg, record.args = f"{record.getMessage()} ({dropped} more like it were dropped)", ()
        return dropped is not None

    def _dropped(self, record: logging.LogRecord) -> int | None:
        """How many like it were dropped before it, None if it is to be dropped itself."""
        error = record.exc_info[0] if record.exc_info else None
        kind, now = (record.name, record.levelno, record.getMessage(), error), self._clock()
        with self._lock:
            passed, dropped = self._seen.pop(kind, (float("-inf"), 0))
            if now - passed < self._within:
                self._seen[kind] = passed, dropped + 1
                return None
            if len(self._seen) >= self._most:
                del self._seen[next(iter(self._seen))]
            self._seen[kind] = now, 0
            return dropped


def of_request(request: Request) -> dict[str, str]:
    """The `extra` of a log call that is about a request, outside of the task that answers it."""
    return {"request_id": request.id, "trace_id": request.trace[3:35], "tenant": request.tenant}


def _request_of(record: logging.LogRecord) -> dict[str, str]:
    """The request that a line is about: the one named in the call, else the one that is being answered."""
    arrival = ARRIVAL.get()
    known = {}
    if arrival is not None:
        known = {"request_id": arrival.request_id, "trace_id": arrival.trace, "tenant": arrival.tenant}
    for key in ("request_id", "trace_id", "tenant"):
        value = getattr(record, key, "")
        if value:
            known[key] = value
    return {key: value for key, value in known.items() if value}


def configure(config: LogConfig, **fields: str) -> None:
    """Set up the loggers of tandem's packages in this process; `fields` (instance, pool …) go into each JSON
    line.

    Other libraries' loggers stay as they are.
    """
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repeats())
    handler.setFormatter(JsonFormatter(fields) if config.format == "json" else text)
    for name in ("tandem", *PACKAGES):
        ours = logging.getLogger(name)
        ours.handlers = [handler]
        ours.setLevel(config.level.upper())
        ours.propagate = False
