"""The field's load clients against `tandem up`, where variables name their commands: every answer is whole.

TANDEM_GUIDELLM   guidellm 0.8, as in `guidellm run`
TANDEM_AIPERF     aiperf 0.13, as in `aiperf profile`
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.test_up import START, make_home, spawn_up
from tests.cluster.tiny_model import make_tiny_model

GUIDELLM = os.environ.get("TANDEM_GUIDELLM", "")
AIPERF = os.environ.get("TANDEM_AIPERF", "")
REQUESTS, STREAMS, PROMPT, TOKENS = 12, 4, 24, 16
PATIENCE = 300.0
OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Not for aiperf, which takes a folder for the name of a repository then."""


@dataclass(frozen=True)
class Served:
    url: str
    model: Path

    def finished(self) -> tuple[float, float]:
        """Requests and output tokens that the gateway has counted."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return total(text, "vllm:request_success_total"), total(text, "vllm:generation_tokens_total")


def total(text: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + "{"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model from two pools of one instance each."""
    home = make_home(tmp_path_factory.mktemp("home"))
    model = make_tiny_model(home.folder / "tiny")
    running = spawn_up(
        home, "--model", str(model), "--local", "2", "--no-sample", "--set", "engine.kv_memory=16Mi"
    )
    try:
        running.wait_for("is served at", START)
        yield Served(f"http://127.0.0.1:{running.port}", model)
        assert running.end(signal.SIGINT) == 130
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def asked(command: list[str], folder: Path, **environment: str) -> None:
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]


@pytest.mark.skipif(not GUIDELLM, reason="TANDEM_GUIDELLM names no guidellm command")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm_is_answered_with_every_token(path: str, served: Served, tmp_path: Path) -> None:
    before = served.finished()
    backend = f"kind=openai_http,target={served.url},model=tiny,request_format={path}"
    asked(
        [
            *(GUIDELLM, "run", "--backend", backend),
            *("--profile", f"kind=concurrent,streams={STREAMS}"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={served.model}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={TOKENS}"),
            *("--output", f"kind=json,path={tmp_path / 'result.json'}"),
        ],
        tmp_path,
        **OFFLINE,
    )
    (benchmark,) = json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    requests: dict[str, list[Any]] = benchmark["requests"]
    assert len(requests["successful"]) == REQUESTS and not requests["errored"]
    assert [one["output_metrics"]["text_tokens"] for one in requests["successful"]] == [TOKENS] * REQUESTS
    after = served.finished()
    assert after[0] - before[0] >= REQUESTS and after[1] - before[1] >= REQUESTS * TOKENS


@pytest.mark.skipif(not AIPERF, reason="TANDEM_AIPERF names no aiperf command")
@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_aiperf_is_answered_with_every_token(kind: str, served: Served, tmp_path: Path) -> None:
    asked(
        [
            *(AIPERF, "profile", "--model", "tiny", "--url", served.url, "--endpoint-type", kind),
            *("--streaming", "--concurrency", str(STREAMS), "--request-count", str(REQUESTS)),
            *("--tokenizer", str(served.model), "--synthetic-input-tokens-mean", str(PROMPT)),
            *("--output-tokens-mean", str(TOKENS), "--extra-inputs", "ignore_eos:true"),
            *("--use-server-token-count", "--ui", "none", "--artifact-dir", str(tmp_path / "found")),
        ],
        tmp_path,
    )
    result = json.loads(next((tmp_path / "found").rglob("profile_export_aiperf.json")).read_text())
    assert result["request_count"]["avg"] == REQUESTS
    assert not result.get("error_summary")
    length = result["output_sequence_length"]
    assert (length["min"], length["max"]) == (TOKENS, TOKENS)
