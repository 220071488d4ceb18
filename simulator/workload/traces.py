"""Readers of request traces: one function for all formats, told apart by what the file says it holds.

    arrival_s,prompt_tokens,output_tokens[,tenant][,adapter][,hash_ids]        CSV of this project
    TIMESTAMP,ContextTokens,GeneratedTokens                                    Azure LLM inference traces
    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type       BurstGPT
    {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": []}   Mooncake, a JSON object a line

Each may be compressed with gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import ConfigError
from simulator.workload.arrivals import Arrival

Row = Mapping[str, str]


def read_trace(path: str | os.PathLike[str]) -> list[Arrival]:
    """All requests of a trace in the order of their arrival, the first at 0 or later.

    Times on a calendar or a machine's clock are counted from the first request. Requests without a
    prompt or an answer (failed ones, in BurstGPT) are left out. Raises ConfigError for a file that
    cannot be read, with the line at fault.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as a trace: {error}") from error
    try:
        arrivals = list(_json_lines(text, file) if text.lstrip()[:1] == "{" else _table(text, file))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from error
    arrivals.sort(key=lambda arrival: arrival.at)
    return arrivals


def runs(text: str) -> tuple[int, ...]:
    """Inclusive runs, as `0;28-31` for 0, 28, 29, 30, 31."""
    numbers: list[int] = []
    for run in filter(None, text.split(";")):
        first, _, last = run.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def _json_lines(text: str, file: Path) -> Iterator[Arrival]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            yield Arrival(
                at=float(entry["timestamp"]) / 1000.0,
                prompt_tokens=int(entry["input_length"]),
                output_tokens=int(entry["output_length"]),
                prefix=tuple(int(one) for one in entry.get("hash_ids", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}:{number}: not a line of a Mooncake trace: {error!r}") from error


def _table(text: str, file: Path) -> Iterator[Arrival]:
    rows = csv.DictReader(io.StringIO(text))
    columns = set(rows.fieldnames or ())
    read = next((read for needed, read in _FORMATS if needed <= columns), None)
    if read is None:
        known = "; ".join(", ".join(sorted(needed)) for needed, _ in _FORMATS)
        raise ConfigError(f"{file}:1: no known trace has the columns {sorted(columns)}; known are: {known}")
    start: float | None = None
    for row in rows:
        try:
            at, prompt, output = read(row)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{file}:{rows.line_num}: {error}") from error
        if prompt < 1 or output < 1:
            continue
        if start is None:
            start = 0.0 if "arrival_s" in columns else at
        yield Arrival(
            at - start,
            prompt,
            output,
            tenant=row.get("tenant") or "",
            adapter=row.get("adapter") or "",
            prefix=runs(row.get("hash_ids") or ""),
        )


def _own(row: Row) -> tuple[float, int, int]:
    return float(row["arrival_s"]), int(row["prompt_tokens"]), int(row["output_tokens"])


def _azure(row: Row) -> tuple[float, int, int]:
    day, _, fraction = row["TIMESTAMP"].partition(".")
    time = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    return time + float(f"0.{fraction or 0}"), int(row["ContextTokens"]), int(row["GeneratedTokens"])


def _burstgpt(row: Row) -> tuple[float, int, int]:
    return float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"])


_FORMATS: tuple[tuple[frozenset[str], Callable[[Row], tuple[float, int, int]]], ...] = (
    (frozenset({"arrival_s", "prompt_tokens", "output_tokens"}), _own),
    (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), _azure),
    (frozenset({"Timestamp", "Request tokens", "Response tokens"}), _burstgpt),
)
