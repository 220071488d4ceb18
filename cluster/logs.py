"""What our processes write to their standard error: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from cluster.config import LogConfig
from cluster.installation import PACKAGES


class JsonFormatter(logging.Formatter):
    """ts, level, logger and msg, then what the process says of itself, then the traceback if there is one."""

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
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


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
