"""Ctrl-C of `tandem up` while an answer is being written: the answer comes to its end first."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.cluster.test_up import START, make_home, spawn_up

LENGTH = 3000


def test_ctrl_c_waits_for_the_answers_that_are_being_written(
    tmp_path: Path, tiny_model: Path, full: bool
) -> None:
    if not full:
        pytest.skip("a cluster of its own: only with --full")
    running = spawn_up(
        make_home(tmp_path), "--model", str(tiny_model), "--no-sample", "--set", "model.name=tiny",
        "--set", "engine.threads=1", "--set", "engine.kv_memory=16Mi",
    )  # fmt: skip
    begun, events = threading.Event(), list[str]()
    body = {
        "model": "tiny", "prompt": "one two", "max_tokens": LENGTH, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip

    def read() -> None:
        url = f"http://127.0.0.1:{running.port}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    events.append(line.removeprefix("data: "))
                    begun.set()

    try:
        running.wait_for("is served at", START)
        client = threading.Thread(target=read)
        client.start()
        assert begun.wait(60), running.log()
        had = len(events)
        assert running.end(signal.SIGINT) == 130
        client.join(60)
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)
    assert had < LENGTH / 2, "it had ended before anybody pressed a key"
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == LENGTH
    assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"
