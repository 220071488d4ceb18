"""Ray's head dies with its GCS, Serve's controller and tandem's, and comes again with its
state from a Redis."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import Config, ControlConfig
from cluster.control_client import ControlClient
from engine.errors import Unreachable
from tests.cluster.conftest import Cluster
from tests.cluster.mortal_head import ABSENCE
from tests.cluster.scripts import script
from tests.cluster.streams import Client, reference
from tests.cluster.two_nodes import TOKEN

logger = logging.getLogger("tandem.tests")
TOKENS = 3000
CLIENTS = 6


class MortalHead:
    """Commands to the script."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, command: str, answer: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == answer


@pytest.fixture
def world(tiny_model: Path) -> Iterator[tuple[Cluster, MortalHead]]:
    redis = os.environ.get("TANDEM_REDIS_SERVER")
    if redis is None:
        pytest.skip("needs a redis-server: name it in TANDEM_REDIS_SERVER")
    with script("tests.cluster.mortal_head", str(tiny_model), redis) as (process, port):
        config = Config(control=ControlConfig(token=TOKEN, port=port))
        with ControlClient(f"127.0.0.1:{port}", TOKEN, timeout=5.0) as control:
            yield Cluster(config, control), MortalHead(process)


def test_streams_go_on_and_new_requests_wait(world: tuple[Cluster, MortalHead]) -> None:
    cluster, head = world
    cluster.until(
        lambda status: len(status.gateways) == 1 and all(pool.ready == pool.target for pool in status.pools)
    )
    whole = reference(cluster, TOKENS)
    url = cluster.url
    before = {one.name: one.pid for one in cluster.status().instances}
    clients = [Client(cluster, f"through-{number}", TOKENS) for number in range(CLIENTS)]
    late: list[str] = []
    waiting = threading.Thread(target=lambda: late.append(reference(cluster, TOKENS)))
    try:
        cluster.until(lambda status: sum(one.status.running for one in status.instances) == CLIENTS)
        head.do("kill", "dead")
        assert all(client.reading() for client in clients)
        with pytest.raises(Unreachable):
            cluster.status()
        waiting.start()
        assert [client.text() for client in clients] == [whole] * CLIENTS
        assert all(client.recoveries == 0 for client in clients)
        assert not late
        begun = time.monotonic()
        head.do("start", "started")
        cluster.until(lambda status: bool(status.gateways), within=ABSENCE)
        back = time.monotonic() - begun
        waiting.join(ABSENCE)
        assert late == [whole]
    finally:
        for client in clients:
            client.close()
        if waiting.ident is not None:
            waiting.join(ABSENCE)
    assert {one.name: one.pid for one in cluster.status().instances} == before
    assert cluster.url == url
    logger.info("the controller answers %.1f s after the head was started again", back)
