"""What our processes write to their standard error: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
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


def of_request(request: Request) -> dict[str, str]:
    """The `extra` of a log call that is about a request, outside of the task that answers it."""
    return {"request_id": request.id, "trace_id": request.trace[3:35]}


def _request_of(record: logging.LogRecord) -> dict[str, str]:
    """The request that a line is about: the one named in the call, else the one that is being answered."""
    arrival = ARRIVAL.get()
    known = {} if arrival is None else {"request_id": arrival.request_id, "trace_id": arrival.trace}
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
    handler.setFormatter(JsonFormatter(fields) if config.format == "json" else text)
    for name in ("tandem", *PACKAGES):
        ours = logging.getLogger(name)
        ours.handlers = [handler]
        ours.setLevel(config.level.upper())
        ours.propagate = False
