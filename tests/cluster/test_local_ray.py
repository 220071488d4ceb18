"""Ray's daemon has 30 s to come up, which may be too few on a machine that is busy for a moment."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from cluster.lean_ray import lean
from cluster.local_ray import MARKER, Scratch, start_ray
from engine.errors import SetupError

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed"


def failing(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> list[dict[str, object]]:
    """ray.init raises these, one call after the other."""
    calls: list[dict[str, object]] = []

    def init(**settings: object) -> None:
        calls.append(settings)
        if (error := errors[len(calls) - 1]) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_a_daemon_that_was_too_slow_is_started_again_and_nothing_of_the_first_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = failing(monkeypatch, Exception(SLOW), None)
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={MARKER: "made-up"},
        stdin=subprocess.DEVNULL,
    )
    start_ray(Scratch("made-up", tmp_path), None)
    assert len(calls) == 2
    assert not psutil.pid_exists(left.pid)
    left.wait(10)


def test_twice_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, Exception(SLOW), Exception(SLOW))
    with pytest.raises(SetupError, match=r"did not come up in 30 s, twice, at a load of .* cores"):
        start_ray(Scratch("made-up", tmp_path), None)


def test_anything_else_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = failing(monkeypatch, ConnectionError("no route"))
    with pytest.raises(SetupError, match=r"Ray at 10\.0\.0\.1:6379 cannot be joined: no route"):
        start_ray(Scratch("made-up", tmp_path), "10.0.0.1:6379")
    assert len(calls) == 1


def test_what_a_local_cluster_has_no_use_for_is_left_out_of_its_own_ray_alone() -> None:
    """And Ray is as it was afterwards, also when it did not start."""
    from ray._private import node, parameter

    before = parameter.RayParams, node.Node.start_api_server
    with suppress(ConnectionError), lean():
        made = parameter.RayParams()
        assert (made.no_monitor, made.include_log_monitor) == (True, False)
        assert node.Node.start_api_server is not before[1]
        raise ConnectionError
    assert (parameter.RayParams, node.Node.start_api_server) == before
    assert not parameter.RayParams().no_monitor


def test_a_ray_that_is_made_otherwise_starts_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import node, parameter

    monkeypatch.setattr(parameter, "RayParams", lambda address: address)
    monkeypatch.setattr(node.Node, "start_api_server", lambda self, port: port)
    with lean():
        assert parameter.RayParams("one") == "one"
        assert node.Node.start_api_server(None, 7) == 7
    monkeypatch.delattr(parameter, "RayParams")
    with lean():
        assert not hasattr(parameter, "RayParams")
