"""What all tests share: the option --full, thread limits and reproducible property tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Before torch and ray are imported: two OpenMP threads on a busy core are many times slower than one,
# and a Ray that a test starts must neither ask for a token nor report its usage.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# gRPC's fork handlers can hang the child in which Ray starts its processes when other threads use gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# The cluster that tests share stays until all have run: at Serve's own 0.1 s it would take a tenth of a core.
os.environ.setdefault("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")

import pytest
from hypothesis import HealthCheck, settings

OWN_CLUSTERS = (
    "test_chaos_node",
    "test_operating",
    "test_security_locked",
    "test_serve_deploy",
    "test_up",
    "test_versions",
)
"""Files of tests/cluster that start clusters of their own."""

SHARED_CLUSTER = ("test_bench_mirror", "test_browser", "test_conformance")
"""Those of tests of the cluster that all of a run share, besides test_*_ray.py."""

LONG, LAST = 2, 3
"""The turns of tests that start no cluster: long files before the rest, so that none is left alone."""

settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("full", settings.get_profile("default"), max_examples=1000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run every test with its full counts")
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.getoption("--full") else "default")


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether to use full counts; a test without it runs the same in both tiers."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this run's own, in which the embedded model is packed once, whoever comes first."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache-of-this-run"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts clusters comes first: beside it there is always something for another process to do."""
    items.sort(key=lambda item: _turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes: a file's in one, and those of all that start clusters in one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "clusters" if _turn(nodeid) < LONG else nodeid.partition("::")[0]

    return ByFile(config, log)


def _turn(nodeid: str) -> int:
    file = Path(nodeid.partition("::")[0])
    if file.parent.name in ("papers", "simulator"):
        return LONG
    if file.parent.name != "cluster":
        return LAST
    if file.stem in OWN_CLUSTERS:
        return 0
    return 1 if file.stem in SHARED_CLUSTER or file.stem.endswith("_ray") else LAST
