"""A Ray Serve config is checked without a cluster, keys that Serve ignores included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.serve_schema import faults

SHIPPED = Path(__file__).resolve().parents[2] / "cluster" / "serve_config.yaml"


def shipped() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    return found


def test_the_shipped_config_is_fine() -> None:
    assert list(faults(shipped())) == []


@pytest.mark.parametrize(
    ("deployment", "path", "meant"),
    [
        ({"max_ongoing_reqs": 3}, ("max_ongoing_reqs",), "max_ongoing_requests"),
        ({"autoscaling_config": {"min_replica": 1}}, ("autoscaling_config", "min_replica"), "min_replicas"),
        ({"ray_actor_options": {"num_cpu": 1}}, ("ray_actor_options", "num_cpu"), "num_cpus"),
    ],
)
def test_a_key_that_serve_would_ignore_is_named(
    deployment: dict[str, object], path: tuple[str, ...], meant: str
) -> None:
    config = shipped()
    config["applications"][0]["deployments"] = [{"name": "Gateway", **deployment}]
    expected = f'Ray Serve does not know this key, did you mean "{meant}"?'
    assert list(faults(config)) == [(("applications", "0", "deployments", "0", *path), expected)]


def test_a_value_that_serve_refuses_has_its_path() -> None:
    config = shipped()
    config["http_options"]["port"] = "many"
    assert [path for path, _ in faults(config)] == [("http_options", "port")]
