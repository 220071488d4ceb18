"""The recording of decisions on a disk that is full."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from cluster import recording
from cluster.recording import Recorder, read_tape
from global_scheduler.tape import Forgotten


def happened(count: int) -> list[Forgotten]:
    return [Forgotten(f"decode-{number}") for number in range(count)]


def test_what_finds_no_room_is_written_when_there_is_some_again(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "tape")
    before, meanwhile, after = happened(9)[:3], happened(9)[3:6], happened(9)[6:]
    for one in before:
        record(one)
    size = (tmp_path / "tape").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for half a line more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        for one in meanwhile:
            record(one)
        assert (tmp_path / "tape").stat().st_size == size + 10
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # The last whole line is read: that the next one is torn is no error.
    assert list(read_tape(tmp_path / "tape")) == before
    for one in after:
        record(one)
    record.close()
    assert list(read_tape(tmp_path / "tape")) == happened(9)


def test_it_ends_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PENDING", 200)
    record = Recorder(Path("/dev/full"))
    for one in happened(20):
        record(one)
    assert record._file is None
