"""The flags of tandem up: what they make of a config before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli import up
from cluster.cli.failures import Exit
from cluster.config import Config
from tests.cluster.cli_controller import run

PRODUCTION = """
pools:
  prefill: {replicas: 8, min_replicas: 4, resources: {prefill: 1}}
  decode: {replicas: 16, min_replicas: 8, resources: {decode: 1}}
gateway: {resources: {gateway: 1}, replicas: 1}
control: {resources: {controller: 1}}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that would have been started."""
    found: list[Config] = []
    monkeypatch.setattr(up, "run", lambda context, config, wait, **more: found.append(config))
    return found


def sizes(config: Config) -> tuple[int, int]:
    return config.pools.prefill.replicas, config.pools.decode.replicas


@pytest.mark.parametrize(
    ("instances", "shares"),
    [(1, (0, 1)), (2, (1, 1)), (3, (1, 2)), (4, (1, 3)), (5, (1, 4)), (6, (2, 4)), (64, (21, 43))],
)
def test_local_shares_instances_out_among_the_pools(
    started: list[Config], instances: int, shares: tuple[int, int]
) -> None:
    told = run("up", "--local", str(instances))
    assert told.exit_code == 0, told.output
    assert sizes(started[0]) == shares


def test_local_is_the_default_size_at_three(started: list[Config]) -> None:
    run("up", "--local", "3")
    assert started[0] == Config()


def test_local_takes_a_file_that_is_for_a_cluster(started: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "tandem.yaml"
    file.write_text(PRODUCTION)
    told = run("up", "-f", str(file), "--local", "3")
    assert told.exit_code == 0, told.output
    (config,) = started
    assert sizes(config) == (1, 2)
    asked = (config.pools.prefill, config.pools.decode, config.gateway, config.control)
    assert [dict(part.resources) for part in asked] == [{}] * 4, "no node of this machine offers them"
    assert config.gateway.replicas == 1, "the rest is the file's"


@pytest.mark.parametrize(
    "rival", [("--prefill", "1"), ("--decode", "1"), ("--address", "auto")], ids=lambda given: given[0]
)
def test_local_goes_without_what_says_otherwise(started: list[Config], rival: tuple[str, str]) -> None:
    told = run("up", "--local", "2", *rival)
    assert told.exit_code == Exit.USAGE
    assert told.stderr == f"error: --local goes without {rival[0]}\n"
    assert not started


@pytest.mark.parametrize("instances", ["0", "-1", "two"])
def test_local_is_a_number_of_instances(started: list[Config], instances: str) -> None:
    assert run("up", "--local", instances).exit_code == Exit.USAGE
    assert not started


def test_more_than_a_pool_may_have_is_said_of_local(started: list[Config]) -> None:
    told = run("up", "--local", "300")
    assert told.exit_code == Exit.USAGE
    assert "--local: pools.decode" in told.stderr
