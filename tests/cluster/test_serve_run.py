"""`serve run cluster.app:build`, as the docs print it: starts Ray, serves, and ends at Ctrl-C with all of it.

Starts a Ray of its own; part of the full tier.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import psutil
import pytest

from cluster.local_ray import MARKER, end_processes, folder_name, processes, wait_until
from cluster.ports import free_port
from tests.cluster.test_serve_deploy import START

BIN = Path(sys.executable).parent
ENDED = 60.0
"""Seconds that everything may take to be gone."""


def test_what_the_docs_print_serves_and_ends_with_ctrl_c(
    tiny_model: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--full"):
        pytest.skip("a Ray of its own: only with --full")
    cluster = uuid.uuid4().hex[:12]
    folder = Path("/tmp") / folder_name(cluster)
    folder.mkdir()
    port, control, admin = free_port(), free_port(), free_port()
    environment = os.environ | {
        MARKER: cluster, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    settings = [
        f"gateway.port={port}", f"control.port={control}", "control.token=test", f"model.path={tiny_model}",
        "model.name=tiny", "engine.kv_memory=4Mi", "engine.threads=1", "pools.decode.replicas=1",
        f"admin.port={admin}", "admin.token=test-admin",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        serving = subprocess.Popen(
            [BIN / "serve", "run", "cluster.app:build", *settings],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        assert wait_until(lambda: serving.poll() is not None or _ready(url), START), _tail(folder)
        assert serving.poll() is None, _tail(folder)
        body = {"model": "tiny", "prompt": "one two three", "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0, _tail(folder)
        origins = _origins(f"http://127.0.0.1:{admin}")
        assert (origins["gateway.port"], origins["engine.threads"]) == (
            "args: gateway.port",
            "args: engine.threads",
        )
        assert origins["control.beat"] == "default"
        serving.send_signal(signal.SIGINT)
        serving.wait(ENDED)
        psutil.wait_procs(processes(cluster), timeout=ENDED)
        assert [process.name() for process in processes(cluster)] == []
    finally:
        end_processes(processes(cluster), grace=0.5)
        shutil.rmtree(folder, ignore_errors=True)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _origins(admin: str) -> dict[str, str]:
    """Where each setting comes from, as operators are told."""
    headers = {"authorization": "Bearer test-admin"}
    answer = httpx.get(f"{admin}/admin/v1/config", headers=headers, timeout=5, trust_env=False)
    return {one["key"]: one["origin"] for one in answer.json()["items"]}


def _tail(folder: Path) -> str:
    return (folder / "log").read_text(errors="replace")[-3000:]
