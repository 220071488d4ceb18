"""What `tandem bench transfer` measures, and how it says it."""

from __future__ import annotations

import pytest

from cluster.bench import transfer
from cluster.bench.transfer import measure
from cluster.bench.transfer_sections import transfer_sections
from engine.errors import SetupError


def test_transports_are_measured_between_two_processes_and_missing_ones_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = transfer._transport

    def absent(name: str, end: int) -> object:
        if name == "nccl":
            raise SetupError("there is no GPU")
        return there(name, end)

    monkeypatch.setattr(transfer, "_transport", absent)
    report = measure(
        ("shm", "tcp", "grpc", "nccl"),
        1 << 20,
        3,
        2,
        begin=lambda title: lambda done, total: None,
        say=lambda line: None,
    )
    assert [one.transport for one in report.speeds] == ["shm", "tcp", "grpc"]
    assert report.missing == {"nccl": "there is no GPU"}
    for one in report.speeds:
        assert 1e7 < one.bandwidth.low <= one.bandwidth.high < 1e12
        assert 1e-6 < one.seconds.median < 1.0
    (section,) = transfer_sections(report)
    assert [row[:2] for row in section.rows] == [["shm", "1"], ["tcp", "1"], ["grpc", "1"]]
    assert "there is no GPU" in section.note
