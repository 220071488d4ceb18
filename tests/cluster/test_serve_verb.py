"""tandem serve: `up` without a prefill pool, with the flags that people know from other servers."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cluster.cli import serve
from cluster.cli.failures import Exit
from cluster.cli.main import build
from cluster.config import Config
from cluster.ports import free_port
from tests.cluster.test_up import START, TANDEM, Home, Up, home

__all__ = ["home"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that would have been started."""
    found: list[Config] = []
    monkeypatch.setattr(serve, "run", lambda context, config, wait, **more: found.append(config))
    return found


def test_every_flag_is_a_setting(started: list[Config]) -> None:
    flags = (
        "/models/m --host 127.0.0.1 --port 8123 --served-model-name m --max-model-len 512 --dtype float32 "
        "--api-key one --api-key two --max-num-seqs 8 --max-num-batched-tokens 128 --block-size 32 "
        "--replicas 2"
    )
    told = CliRunner().invoke(build(), ["serve", *flags.split()])
    assert told.exit_code == 0, told.output
    (config,) = started
    assert (config.model.path, config.model.name, config.model.max_length) == ("/models/m", "m", 512)
    assert (config.model.dtype, config.gateway.host, config.gateway.port) == ("float32", "127.0.0.1", 8123)
    assert config.gateway.api_keys == ("one", "two")
    engine = config.engine
    assert (engine.max_sequences, engine.token_budget, engine.block_size) == (8, 128, 32)
    assert (config.pools.prefill.replicas, config.pools.decode.replicas) == (0, 2)


def test_without_flags_one_instance_serves_the_embedded_model(started: list[Config]) -> None:
    assert CliRunner().invoke(build(), ["serve"]).exit_code == 0
    assert (started[0].pools.prefill.replicas, started[0].pools.decode.replicas) == (0, 1)
    assert started[0].model.path is None


def test_a_wrong_value_names_its_flag(started: list[Config]) -> None:
    told = CliRunner().invoke(build(), ["serve", "--dtype", "float7"])
    assert told.exit_code == Exit.USAGE
    assert "--dtype: model.dtype: expected one of auto, float32, bfloat16" in told.stderr
    assert not started


def test_one_instance_answers_and_is_taken_apart_into_two_pools(
    home: Home, tiny_model: Path, full: bool
) -> None:
    if not full:
        pytest.skip("a cluster of its own: only with --full")
    port = free_port()
    command = [*TANDEM, "serve", str(tiny_model), "--port", str(port), "--served-model-name", "tiny"]
    more = ["--api-key", "k", "--set", "engine.threads=1", "--set", "engine.kv_memory=4Mi"]
    with (home.folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, *more], cwd=home.folder, env=home.environment, stdout=subprocess.PIPE, stderr=errors,
            text=True, start_new_session=True,
        )  # fmt: skip
    up = Up(home, process, port)
    try:
        up.wait_for("is served at", START)
        before = _ask(port)
        applied = home.run("apply", "--set", "pools.prefill.replicas=1", timeout=START)
        assert applied.returncode == 0, applied.stderr
        pools = {pool["name"]: pool["ready"] for pool in home.items("get", "pools")}
        assert pools == {"prefill": 1, "decode": 1}
        assert _ask(port) == before
    finally:
        up.end(signal.SIGTERM)


def _ask(port: int) -> str:
    body: dict[str, Any] = {
        "model": "tiny",
        "prompt": "one two three " * 8,
        "max_tokens": 40,
        "temperature": 0,
    }
    headers = {"Authorization": "Bearer k"}
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])
