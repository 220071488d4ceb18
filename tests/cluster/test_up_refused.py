"""tandem up where it cannot work: refused with the reason and the remedy, before anything is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.cluster.test_up import Home, home
from tests.cluster.tiny_model import make_tiny_model

__all__ = ["home"]

REFUSALS = [
    (["--model", "/nonexistent/model"], "/nonexistent/model: no such file or folder"),
    (["--model", "broken.gguf"], "broken.gguf"),
    (["--model", "hollow"], "hollow"),
    (["-f", "broken.yaml"], "broken.yaml:1:10: engine.token_budgt: unknown key"),
    (["--set", "cache.directory=stderr/cache"], "the cache folder"),
    (["--set", "engine.kv_memory=4Ti"], "not enough memory: "),
    (["--decode", "0"], "0 replicas are not within min_replicas 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(one) for one, _ in REFUSALS])
def test_a_start_that_cannot_work_is_refused_with_2_before_anything_starts(
    home: Home, arguments: list[str], message: str
) -> None:
    (home.folder / "stderr").touch()
    (home.folder / "broken.gguf").write_bytes(b"GGUF but not quite")
    (make_tiny_model(home.folder / "hollow") / "model.safetensors").unlink()
    (home.folder / "broken.yaml").write_text("engine: {token_budgt: 3}\n")
    result = home.run("up", "--port", "0", *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert home.state() is None


def test_a_taken_port_is_named_with_its_process_and_the_remedy(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = home.run("up", "--port", str(port))
    assert result.returncode == 2
    assert f"127.0.0.1:{port} is taken by process {os.getpid()} (" in result.stderr
    assert "set another gateway.port (--port)" in result.stderr


def test_packages_that_shadow_ours_are_named_at_the_start(home: Home) -> None:
    shadow = home.folder / "shadow"
    (shadow / "model").mkdir(parents=True)
    (shadow / "model/__init__.py").write_text("")
    home.environment["PYTHONPATH"] = str(shadow)
    result = home.run("version")
    assert result.returncode == 2
    assert f"the name model leads to {shadow}/model/__init__.py and not to tandem's" in result.stderr
    assert "take that folder out of PYTHONPATH" in result.stderr


def test_the_decoys_would_be_noticed(home: Home) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import engine"], cwd=home.folder, capture_output=True, text=True
    )
    assert "the decoy engine was imported" in result.stderr
