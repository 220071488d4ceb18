"""tandem logs: the lines of every process of this machine, each with its writer, from the end and onwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import control_pb2 as pb
from cluster.cli.logs import Source, log_of, processes

WRITER = "import sys\nfor line in sys.stdin: sys.stderr.write(line); sys.stderr.flush()"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to its log what it is told, line by line."""
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        yield process
        process.kill()
    assert process.stdin is None or process.stdin.closed


def test_the_log_of_a_process_is_where_its_standard_error_goes(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert log_of(writer.pid) == tmp_path / "log"


def test_a_process_that_is_not_here_has_no_log() -> None:
    assert log_of(0) is None
    assert log_of(2**22 + 1) is None
    assert log_of(os.getpid()) is None or log_of(os.getpid()).is_file()  # type: ignore[union-attr]


def test_lines_are_read_once_and_only_when_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"one\ntwo\nthr")
    source = Source("decode-0", file)
    assert list(source.lines()) == ["one", "two"]
    assert list(source.lines()) == []
    with file.open("ab") as more:
        more.write(b"ee\n\xff\n")
    assert list(source.lines()) == ["three", "�"]


def test_what_ray_writes_for_itself_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b":job_id:01000000\none\n:actor_name:Instance\na :job_id: in a line\n")
    assert list(Source("decode-0", file).lines()) == ["one", "a :job_id: in a line"]


def test_long_logs_are_read_block_by_block(tmp_path: Path) -> None:
    file = tmp_path / "log"
    lines = [f"line {number} {'x' * 100}" for number in range(3000)]
    file.write_text("\n".join(lines) + "\n")
    assert list(Source("x", file).lines()) == lines


def test_every_part_of_the_cluster_is_named() -> None:
    status = pb.ClusterStatus(
        controller_pid=1,
        gateways=[pb.Gateway(name="gateway-a", pid=2)],
        instances=[pb.Instance(name="decode-0", pid=3)],
    )
    assert processes(status) == {"controller": 1, "gateway-a": 2, "decode-0": 3}
