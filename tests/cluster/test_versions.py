"""A cluster goes from one version of tandem to the next under load: both serve meanwhile, nothing fails."""

from __future__ import annotations

import contextlib
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.installation import PACKAGES, ROOT
from tests.cluster.test_up import START, Home, Up, make_home, spawn_up

OLD, NEW = "7.0.0", "7.1.0"
PROTOCOL, NEWER_PROTOCOL = "    newest: int = VERSION\n", "    newest: int = VERSION + 1\n"
BODY = {
    "model": "tiny", "prompt": "one two three " * 8, "max_tokens": 1500, "temperature": 0, "ignore_eos": True
}  # fmt: skip


def install(folder: Path, version: str) -> None:
    """A copy of tandem that says it is of another version; the newer one also speaks a newer protocol."""
    for name in (*PACKAGES, "simulator"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"tandem_serving-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tandem-serving\nVersion: {version}\n")
    found = next(
        Path(path) for path in _site_packages() if list(Path(path).glob("tandem_serving-*.dist-info"))
    )
    shutil.copy(next(found.glob("tandem_serving-*.dist-info")) / "entry_points.txt", about)
    if version == NEW:
        file = folder / "migration/handshake.py"
        text = file.read_text()
        assert text.count(PROTOCOL) == 1
        file.write_text(text.replace(PROTOCOL, NEWER_PROTOCOL))


def _site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


def put(home: Home, version: str) -> None:
    """What `pip install` does: the next process that starts is of that version."""
    draft = home.folder / "draft"
    draft.symlink_to(home.folder / version)
    draft.replace(home.folder / "current")


@pytest.fixture
def up(tmp_path: Path, tiny_model: Path, full: bool) -> Iterator[Up]:
    if not full:
        pytest.skip("a cluster of its own, and every process of it anew: only with --full")
    home = make_home(tmp_path)
    for version in (OLD, NEW):
        install(tmp_path / version, version)
    put(home, OLD)
    home.environment["PYTHONPATH"] = str(tmp_path / "current")
    running = spawn_up(
        home, "--model", str(tiny_model), "--no-sample", "--set", "model.name=tiny",
        "--set", "engine.threads=1", "--set", "engine.kv_memory=4Mi",
    )  # fmt: skip
    try:
        try:
            running.wait_for("is served at", START)
        except queue.Empty:
            pytest.fail(f"not ready after {START:g} s: {running.log()}")
        yield running
    finally:
        running.end(signal.SIGTERM)


def test_every_instance_goes_to_the_new_version_and_no_request_fails(up: Up) -> None:
    before = wait_for(up.home, OLD)
    url, over = before["gateways"][0]["url"], threading.Event()
    outcomes: list[str] = []

    def ask() -> None:
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not over.is_set():
                answer = client.post(f"{url}/v1/completions", json=BODY)
                whole = answer.status_code == 200
                outcomes.append(answer.json()["choices"][0]["text"] if whole else f"failed: {answer.text}")

    seen: list[set[str]] = []
    looks = threading.Thread(target=look, args=(up.home, seen, over))
    clients = [threading.Thread(target=ask) for _ in range(3)]
    for thread in (looks, *clients):
        thread.start()
    try:
        put(up.home, NEW)
        told = up.home.run("restart", "controller", timeout=START)
        assert told.returncode == 0, told.stderr
        wait_for(up.home, NEW)
    finally:
        over.set()
        for thread in (looks, *clients):
            thread.join(150)
    assert seen[0] == {OLD}
    assert {OLD, NEW} in seen, "both served at once"
    assert not [outcome for outcome in outcomes if outcome.startswith("failed")]
    assert len(set(outcomes)) == 1
    moves = [move for move in up.home.items("get", "migrations") if move["cause"] == "restart"]
    assert any(move["outcome"] == "committed" for move in moves), moves


def look(home: Home, seen: list[set[str]], over: threading.Event) -> None:
    """The versions of the instances that are ready, look by look. The console is away with its controller."""
    state = home.state()
    assert state is not None
    with httpx.Client(base_url=state["admin"], trust_env=False, timeout=5) as client:
        client.headers["authorization"] = f"Bearer {state['admin_token']}"
        while not over.wait(0.05):
            with contextlib.suppress(httpx.TransportError):
                (status,) = client.get("/admin/v1/status").raise_for_status().json()["items"]
                seen.append({one["version"] for one in status["instances"] if one["state"] == "ready"})


def wait_for(home: Home, version: str) -> dict[str, Any]:
    """The status, once every instance is ready and of a version that the controller is of already."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        (status,) = home.items("status")
        assert status["version"] == version
        if all((one["state"], one["version"]) == ("ready", version) for one in status["instances"]):
            return dict(status)
    raise AssertionError((home.folder / "stderr").read_text())
