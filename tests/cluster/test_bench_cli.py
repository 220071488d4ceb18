"""tandem bench at the command line: against a server in this process, as tables, JSON and a page."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from unittest.mock import Mock

import jsonschema
import pytest
import torch
from typer.testing import CliRunner, Result

from cluster.bench.engine import EngineReport
from cluster.bench.report import ServeReport
from cluster.cli.main import build
from cluster.local_state import LocalState, write_state
from tests.cluster.local_cluster import served_in_a_thread

HERE = {"blocks": 512, "max_length": 400}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of whoever runs the tests is found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(build(), ["bench", *arguments])


def report_of(result: Result) -> ServeReport:
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert (body["apiVersion"], body["kind"]) == ("tandem.dev/v1", "ServeReport")
    jsonschema.validate(body["items"][0], ServeReport.model_json_schema())
    return ServeReport.model_validate(body["items"][0])


def test_two_servers_are_measured_in_one_run_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    with served_in_a_thread(**HERE) as ours, served_in_a_thread(**HERE) as theirs:
        found = report_of(
            bench(
                "serve", "single", "rate=200", "--requests", "5", "--prompt", "8", "--answer", "4",
                "--repeat", "2", "--rest", "0s", "--url", ours, "--vs", f"theirs={theirs}",
                "--html", str(file), "-o", "json",
            )
        )  # fmt: skip
    name = ours.removeprefix("http://")
    assert [server.name for server in found.servers] == [name, "theirs"]
    assert len(found.results) == 2 * 2 * 2
    assert sum(result.failed + result.cut for result in found.results) == 0
    assert {ratio.against for ratio in found.ratios} == {"theirs"}
    assert "<!doctype html>" in file.read_text()


def test_without_a_url_the_local_cluster_is_measured() -> None:
    with served_in_a_thread(**HERE) as url:
        write_state(LocalState(pid=os.getpid(), cluster="c", scratch="/", gateways=[url], ready=True))
        found = report_of(
            bench("serve", "batch=2", "--prompt", "4", "--answer", "2", "--repeat", "1", "-o", "json")
        )
    assert [server.name for server in found.servers] == ["tandem"]
    assert (found.results[0].memory or 0) > 2**20, "the process of the record is measured"


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "small.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,30,20\n0.5,40,10\n1.0,400,30\n")
    with served_in_a_thread(**HERE) as url:
        found = report_of(
            bench(
                "replay", "--trace", str(trace), "--speed", "50", "--shrink", "10", "--url", url, "-o", "json"
            )
        )
    (result,) = found.results
    assert (result.test, result.prompt_tokens, result.output_tokens) == ("small", 3 + 4 + 40, 2 + 1 + 3)


def test_tables_go_to_stdout_and_progress_to_stderr() -> None:
    with served_in_a_thread(**HERE) as url:
        result = bench("serve", "prefill=16", "--repeat", "1", "--url", url)
    assert result.exit_code == 0
    assert "prefill tok/s" in result.stdout and "client cores" in result.stdout
    assert "prefill 16" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve"], 3, "tandem up"),
        (["serve", "--url", "http://127.0.0.1:9"], 4, "127.0.0.1:9"),
        (["serve", "--url", "ftp://x"], 2, "URL"),
        (["serve", "triple", "--url", "http://127.0.0.1:9"], 2, "prefill=512"),
        (["serve", "rate=2", "--arrivals", "no", "--url", "http://127.0.0.1:9"], 2, "gamma"),
        (["serve", "--url", "a=http://h", "--vs", "a=http://h"], 2, "--vs NAME=URL"),
        (["serve", "--url", "a=http://h", "--pid", "b=3"], 2, "no server"),
        (["serve", "--url", "a=http://h", "--pid", "x"], 2, "NAME=PID"),
        (["serve", "--slo-ttft", "500", "--url", "a=http://h"], 2, "unit"),
        (["serve", "rate=inf", "--url", "http://127.0.0.1:9"], 2, "rate=2"),
        (["serve", "rate=1e308", "--url", "http://127.0.0.1:9"], 2, "rate=2"),
        (["serve", "rate=2", "--arrivals", "gamma:1e-200", "--url", "http://127.0.0.1:9"], 2, "gamma"),
        (["serve", "--slo-ttft", "9" * 400 + "s", "--url", "a=http://h"], 2, "unit"),
        (["replay", "--trace", "/nowhere.csv", "--speed", "nan", "--url", "http://h"], 2, "above 0"),
        (["replay", "--trace", "/nowhere.csv", "--shrink", "0", "--url", "http://h"], 2, "above 0"),
        (["replay", "--trace", "/nowhere.csv", "--url", "http://h"], 2, "nowhere"),
    ],
)
def test_what_cannot_be_done_ends_with_its_code_and_says_why(
    arguments: list[str], code: int, words: str
) -> None:
    result = bench(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr


def test_a_server_that_fails_every_request_is_no_result() -> None:
    with served_in_a_thread(**HERE) as url:
        result = bench("serve", "prefill=500", "--repeat", "1", "--url", url)
        as_json = bench("serve", "prefill=500", "--repeat", "1", "--url", url, "-o", "json")
    assert result.exit_code == as_json.exit_code == 1
    assert "prefill 500" in result.stderr and "prefill 500" in as_json.stderr
    assert json.loads(as_json.stdout)["kind"] == "ServeReport"


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for file, words in (("missing/x.html", "mkdir -p"), ("folder", "that is a folder")):
        result = bench("serve", "--url", "http://127.0.0.1:9", "--html", str(tmp_path / file))
        assert result.exit_code == 2
        assert words in result.stderr


def test_a_page_that_cannot_be_written_after_all_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=full))
    with served_in_a_thread(**HERE) as url:
        result = bench(
            "serve", "batch=2", "--prompt", "4", "--answer", "2", "--repeat", "1", "--url", url,
            "--html", str(tmp_path / "x.html"), "-o", "json",
        )  # fmt: skip
    assert result.exit_code == 2
    assert json.loads(result.stdout)["kind"] == "ServeReport"
    assert "No space left" in result.stderr


def test_the_engine_is_measured_without_a_cluster(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    result = bench(
        "engine", "batch=2", "--model", str(tiny_model), "--batches", "1,4", "--contexts", "32",
        "--lengths", "16", "--repeat", "1", "--set", "engine.kv_memory=4Mi",
        "--set", f"cache.directory={tmp_path / 'cache'}",
        "--set", "engine.threads=1", "--html", str(file), "-o", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = EngineReport.model_validate(json.loads(result.stdout)["items"][0])
    assert [(point.batch, point.context) for point in found.decode] == [(1, 32), (4, 32)]
    assert [point.tokens for point in found.prefill] == [16]
    assert [(one.test, one.failed, one.output_tokens) for one in found.results] == [("batch 2", 0, 256)]
    assert 0 < found.decode[0].limit < found.decode[1].limit
    assert "<svg" in file.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["kernels", "gpu"])
def test_without_a_gpu_its_benchmarks_say_what_to_do(verb: str) -> None:
    result = bench(verb)
    assert result.exit_code == 2
    assert "NVIDIA GPU" in result.stderr
