"""What travels to the cluster as arguments of the Serve application, whose names may have dots."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cluster.config import Config, load
from cluster.config_yaml import leaves, read_document
from engine.errors import ConfigError
from k8s.checks.manifest import Manifest
from k8s.checks.serve import application
from k8s.render import objects
from k8s.serve_settings import in_cluster
from k8s.yaml_text import dump_all

TENANTS = {
    "security.tenants.requests": {"acme.eu": 600, "*": 60},
    "security.tenants.priority": {"a.b.c": 2},
    "engine.tenant_weights": {"acme.eu": 2.5, "plain": 1.0},
    "pools.decode.resources": {"zone.eu": 1.0, "decode": 0.5},
}


def service(config: Config) -> dict[str, Any]:
    return next(each for each in objects(config) if each["kind"] == "RayService")


def arguments(config: Config) -> dict[str, Any]:
    """As the Serve application is given them: through the YAML inside the YAML."""
    (text,) = yaml.safe_load_all(dump_all([service(config)]))
    found: dict[str, Any] = yaml.safe_load(text["spec"]["serveConfigV2"])["applications"][0]["args"]
    return found


def test_names_with_dots_reach_the_application() -> None:
    config = load(None, TENANTS)
    assert config.security.tenants.requests == {"acme.eu": 600, "*": 60}
    found = arguments(config)
    assert {key: found[key] for key in TENANTS} == TENANTS
    assert load(None, found) == in_cluster(config)


def test_the_same_names_one_by_one_would_be_refused() -> None:
    apart = {".".join(path): value for path, value in leaves(dict(arguments(load(None, TENANTS))))}
    assert "security.tenants.requests.acme.eu" in apart
    with pytest.raises(ConfigError, match=r"security\.tenants\.requests\.acme"):
        load(None, apart)


def test_the_manifests_are_checked_with_the_same_settings() -> None:
    config = load(None, TENANTS)
    document = read_document(dump_all([service(config)]), "rayservice.yaml")
    assert application(Manifest(document)) == in_cluster(config)


def test_whole_amounts_are_written_without_a_fraction() -> None:
    found = arguments(load(None, TENANTS))
    assert repr(found["engine.tenant_weights"]) == "{'acme.eu': 2.5, 'plain': 1}"
