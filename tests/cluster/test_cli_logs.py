"""tandem logs: the lines of every process of this machine, each with its writer, from the end and onwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import control_pb2 as pb
from cluster.cli.logs import Source, left_by, log_of, processes
from tests.cluster.cli_controller import Controller, run

HEAD = b":job_id:01000000\n:actor_name:Worker\n"
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


@pytest.fixture
def folder(writer: subprocess.Popen[str], controller: Controller, tmp_path: Path) -> Path:
    """Ray's folder of logs, in which the only instance that runs writes its own."""
    controller.instance.pid = writer.pid
    (tmp_path / "log").write_bytes(HEAD + b":actor_name:decode-0\n")
    return tmp_path


def test_an_instance_that_has_written_nothing_is_said_to(folder: Path) -> None:
    result = run("logs", "decode-0")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "note: decode-0: nothing logged yet\n"
    assert run("--quiet", "logs", "decode-0").stderr == ""


def test_an_instance_that_has_ended_is_found_by_its_name_in_rays_folder(folder: Path) -> None:
    for number, name in enumerate(("decode-4", "decode-41", "decode-4")):
        file = folder / f"worker-{number}-01000000-{number}.err"
        file.write_bytes(HEAD + b":actor_name:%b\n%b, line %d\n" % (name.encode(), name.encode(), number))
        os.utime(file, (number, number))
    result = run("logs", "decode-4")
    assert (result.exit_code, result.stdout) == (0, "decode-4 | decode-4, line 2\n")
    assert left_by("decode-41", [folder]) == folder / "worker-1-01000000-1.err"
    assert left_by("decode", [folder]) is None


def test_an_instance_that_ended_elsewhere_is_no_unknown_name(folder: Path, controller: Controller) -> None:
    controller.instance.name = "decode-1"
    result = run("logs", "decode-0")
    assert result.exit_code == 3
    assert "decode-0 has ended, and no log of it is on this machine" in result.stderr
    assert "in Ray's folder" in result.stderr
    assert "no part of the cluster is called 'decode-9'" in run("logs", "decode-9").stderr


def test_one_that_still_starts_is_found_by_its_name_too(
    folder: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.instance.pid = 0
    (folder / "worker-0-01000000-0.err").write_bytes(HEAD + b":actor_name:decode-0\nloading\n")
    monkeypatch.setattr("cluster.cli.logs.log_of", lambda pid: folder / "log" if pid else None)
    result = run("logs", "decode-0")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "decode-0 | loading\n", "")
