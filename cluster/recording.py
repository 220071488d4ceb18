"""Writes down all that the scheduler hears and decides, a JSON object a line, and reads it again.

The file is begun anew by each controller and ends at a bound: it is for the study of decisions, not a log.
On a full disk lines wait in memory for room, and nothing else does.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, fields
from io import FileIO
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.request import SLO
from engine.status import InstanceStatus
from global_scheduler.tape import Cordoned, Decided, Forgotten, Heard, Input, Sent
from global_scheduler.view import Share, Summary

logger = logging.getLogger("tandem.controller")

LONGEST = 1 << 30
"""Bytes after which nothing more is written."""

PENDING = 4 << 20
"""Bytes that may wait for room on the disk."""

_KINDS: dict[str, type[Input]] = {
    kind.__name__.lower(): kind for kind in (Heard, Cordoned, Forgotten, Sent, Decided)
}


class Recorder:
    """A tape for Scheduler.tape. Raises ConfigError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            # Unbuffered: a controller that is killed leaves all but the line that it was at.
            self._file: FileIO | None = path.open("wb", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"scheduler.record: {path} cannot be written: {error.strerror}", param="scheduler.record"
            ) from error
        self._pending = bytearray()
        self._written = 0

    def __call__(self, happened: Input) -> None:
        if self._file is None:
            return
        line = json.dumps({"kind": type(happened).__name__.lower()} | asdict(happened), default=_plain)
        self._pending += line.encode() + b"\n"
        self._write(self._file)
        if self._written > LONGEST:
            logger.warning("the recording of decisions has come to %d bytes and ends", self._written)
            self.close()
        elif len(self._pending) > PENDING:
            logger.warning("the recording of decisions ends: %s cannot be written", self._file.name)
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._write(self._file)
            self._file.close()
            self._file = None

    def _write(self, file: FileIO) -> None:
        """As much of what waits as there is room for."""
        with contextlib.suppress(OSError):
            count = file.write(self._pending)
            del self._pending[:count]
            self._written += count


def read_tape(path: Path) -> Iterator[Input]:
    """What was recorded, in order, but for a last line that was not finished.

    Raises ConfigError for a file that is no recording.
    """
    try:
        with path.open() as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    return
                try:
                    yield _input(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ConfigError(
                        f"{path}:{number}: not a line of a recording of decisions: {error!r}"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def _input(data: dict[str, Any]) -> Input:
    kind = _KINDS[data.pop("kind")]
    if kind is Heard:
        known = {field.name for field in fields(InstanceStatus)}
        data["status"] = InstanceStatus(**{k: v for k, v in data["status"].items() if k in known})
    elif kind is Sent:
        data["shares"] = {name: Share(**share) for name, share in data["shares"].items()}
    elif kind is Decided:
        summary = data["summary"]
        summary["exclude"], summary["prefix"] = frozenset(summary["exclude"]), tuple(summary["prefix"])
        data["summary"] = Summary(**summary | {"slo": SLO(**summary["slo"])})
    return kind(**data)
