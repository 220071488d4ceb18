"""What the tests of manifests share: the folder of KubeRay's schemas, and the rendered objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.checks.kinds import Kinds
from tests.k8s import servers
from tests.k8s.servers import Server

SCHEMAS = "TANDEM_KUBERAY_SCHEMAS"


@pytest.fixture(scope="session")
def kuberay() -> Path:
    """The folder of KubeRay's schemas; they are no part of this repository."""
    named = os.environ.get(SCHEMAS)
    if not named:
        pytest.skip(f"{SCHEMAS} names no folder: KubeRay's own schemas are not checked against")
    return Path(named)


@pytest.fixture(scope="session")
def kinds() -> Kinds:
    """All schemas but KubeRay's."""
    return Kinds(None, "1.34")


@pytest.fixture(scope="session")
def all_kinds(kuberay: Path) -> Kinds:
    return Kinds(kuberay, "1.34")


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Server]:
    with servers.fake() as server:
        yield server


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.real(servers.binary(), tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(params=["fake_server", pytest.param("real_server", marks=pytest.mark.apiserver)])
def server(request: pytest.FixtureRequest) -> Server:
    """Every test that asks for it runs against the fake and, where there is one, against the real server."""
    found: Server = request.getfixturevalue(request.param)
    return found
