"""vLLM's load client against the gateway, where TANDEM_VLLM names its command: every answer is whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.local_cluster import served_in_a_thread
from tests.cluster.tiny_model import make_tiny_model

COMMAND = os.environ.get("TANDEM_VLLM", "")
PROMPTS, TOKENS, LIMIT = 12, 16, 300


@pytest.mark.skipif(not COMMAND, reason="TANDEM_VLLM names no vllm command")
@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_every_request_is_answered_with_every_token(backend: str, tmp_path: Path) -> None:
    tokenizer = make_tiny_model(tmp_path / "tiny")
    path = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}[backend]
    with served_in_a_thread(blocks=512, max_length=400) as url:
        ended = subprocess.run(
            [
                *(COMMAND, "bench", "serve", "--backend", backend, "--base-url", url, "--endpoint", path),
                *("--model", "tiny", "--tokenizer", str(tokenizer), "--dataset-name", "random"),
                *("--random-input-len", "24", "--random-output-len", str(TOKENS), "--ignore-eos"),
                *("--num-prompts", str(PROMPTS), "--max-concurrency", "4", "--disable-tqdm"),
                *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"),
            ],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
        )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["completed"] == PROMPTS
    assert result["total_output_tokens"] == PROMPTS * TOKENS
