"""Where the measured runs and cost tables are, for tests that skip without them."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path

import pytest

WORKLOADS = Path(
    os.environ.get("TANDEM_WORKLOADS") or Path(__file__).resolve().parents[3] / "shared" / "workloads"
)


def shared(name: str) -> Path:
    """A file or folder of the collection of workloads; skips the test where there is none."""
    path = WORKLOADS / name
    if not path.exists():
        pytest.skip(f"{path} is not here: set TANDEM_WORKLOADS to the folder of traces and cost tables")
    return path


def rows(name: str) -> list[dict[str, str]]:
    with gzip.open(shared(name), "rt") as text:
        return list(csv.DictReader(text))
