"""What all tests share: the option --full, thread limits and reproducible property tests."""

from __future__ import annotations

import os

# Before torch and ray are imported: two OpenMP threads on a busy core are many times slower than one,
# and a Ray that a test starts must neither ask for a token nor report its usage.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# gRPC's fork handlers can hang the child in which Ray starts its processes when other threads use gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
from hypothesis import HealthCheck, settings

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: a file's in one, and all that share the Ray cluster in one."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            shared = "ray_cluster" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("ray" if shared else item.nodeid.partition("::")[0]))
