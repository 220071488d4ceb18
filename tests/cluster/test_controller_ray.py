"""The controller on a real Ray: instances come, go, die and are found again, and requests don't notice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest

from cluster import control_pb2 as pb
from cluster.controller import Memo
from cluster.instance import assemble
from cluster.instance_handle import InstanceHandle, existing, spawn
from cluster.local_ray import wait_until
from cluster.worker import Worker
from engine.errors import InstanceDied, NotFound, RefusedError
from tests.cluster.conftest import START, Cluster

PROMPT = "The quick brown fox jumps over the lazy dog. " * 4


def complete(cluster: Cluster, prompt: str = PROMPT, tokens: int = 8) -> str:
    body = {
        "model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True
    }  # fmt: skip
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=60, verify=False, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == tokens
    return str(answer.json()["choices"][0]["text"])


class Load:
    """Clients that ask the same thing over and over; `outcomes` are the answers, and should be one."""

    def __init__(self, cluster: Cluster, tokens: int) -> None:
        self.outcomes: set[str] = set()
        self.answers = 0
        self.answered = threading.Condition()
        self._cluster = cluster
        self._tokens = tokens
        self._stopping = threading.Event()

    def work(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = complete(self._cluster, tokens=self._tokens)
            except Exception as error:
                answer = repr(error)
            with self.answered:
                self.outcomes.add(answer)
                self.answers += 1
                self.answered.notify_all()

    def more(self, count: int) -> None:
        """Wait for so many further answers."""
        with self.answered:
            goal = self.answers + count
            assert self.answered.wait_for(lambda: self.answers >= goal, 60)

    def stop(self) -> None:
        self._stopping.set()


@contextmanager
def load(cluster: Cluster, full: bool, tokens: int = 40) -> Iterator[Load]:
    """With reduced counts of two clients: more would keep the machine from starting instances meanwhile."""
    load = Load(cluster, tokens)
    threads = [threading.Thread(target=load.work) for _ in range(4 if full else 2)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop()
        for thread in threads:
            thread.join(60)


def controller_process() -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if "ServeReplica:tandem:Controller" in " ".join(process.cmdline()):
            return process
    raise AssertionError("no controller runs")


def handed_over(cluster: Cluster) -> int:
    return sum(one.status.handoffs for one in cluster.status().instances)


def test_a_prompt_is_read_by_one_pool_and_answered_by_the_other(cluster: Cluster) -> None:
    before, failed = (
        handed_over(cluster),
        sum(one.status.handoffs_failed for one in cluster.status().instances),
    )
    assert complete(cluster) == complete(cluster)
    cluster.until(lambda status: sum(one.status.handoffs for one in status.instances) == before + 2)
    assert sum(one.status.handoffs_failed for one in cluster.status().instances) == failed


def test_a_status_tells_operators_what_each_instance_is(cluster: Cluster) -> None:
    (one,) = cluster.ready("prefill")
    assert psutil.pid_exists(one.pid)
    assert (one.role, one.device, one.model.name) == ("prefill", "cpu", "tiny")
    blocks = one.status
    assert blocks.blocks_total == blocks.blocks_free + blocks.blocks_used + blocks.blocks_cached
    assert cluster.status().ready


def test_scaling_up_and_down_under_load_loses_nothing(cluster: Cluster, full: bool) -> None:
    expected = complete(cluster, tokens=40)
    after = cluster.last_event()
    with load(cluster, full) as clients:
        cluster.control.scale("decode", 3)
        cluster.event("ready", after, "decode")
        clients.more(8)
        cluster.control.scale("decode", 1)
        cluster.until(lambda status: len(status.instances) == 2)
        clients.more(4)
    assert clients.outcomes == {expected}
    kinds = [event.kind for event in cluster.control.events(after=after)]
    assert kinds.count("drained") == 2
    assert "died" not in kinds


def stream(cluster: Cluster, tokens: int) -> Iterator[str | int]:
    """The decode instance, then pieces of text as they come, and last how often the request was recovered."""
    body = {
        "model": "tiny", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True,
    }  # fmt: skip
    url, headers = f"{cluster.url}/v1/completions", {"x-tandem-debug": "1"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        yield answer.headers["x-tandem-decode-instance"]
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            if line.startswith(": tandem "):
                yield json.loads(line.removeprefix(": tandem "))["recoveries"]


@pytest.fixture(scope="module")
def whole(session_cluster: Cluster) -> str:
    """What `stream` says in 1,500 tokens when nothing happens."""
    _, *pieces, recoveries = stream(session_cluster, 1500)
    assert recoveries == 0
    return "".join(map(str, pieces))


def test_a_killed_decode_instance_is_replaced_and_its_requests_go_on(
    cluster: Cluster, full: bool, whole: str
) -> None:
    expected = complete(cluster, tokens=200)
    after = cluster.last_event()
    with load(cluster, full, tokens=200) as clients:
        running = stream(cluster, 1500)
        name = next(running)
        pieces = [next(running) for _ in range(30)]
        os.kill(next(one for one in cluster.ready("decode") if one.name == name).pid, signal.SIGKILL)
        died = cluster.event("died", after, str(name))
        cluster.event("ready", after, "decode")
        pieces += running
        clients.more(4)
    assert clients.outcomes == {expected}
    assert pieces.pop() == 1
    assert "".join(map(str, pieces)) == whole
    assert "its worker process has died" in died.reason


def test_a_stream_goes_on_within_two_seconds_of_the_death_of_its_instance(
    cluster: Cluster, whole: str
) -> None:
    running = stream(cluster, 1500)
    name = next(running)
    pieces = [next(running) for _ in range(30)]
    victim = next(one for one in cluster.ready("decode") if one.name == name)
    os.kill(victim.pid, signal.SIGKILL)
    last, longest = time.monotonic(), 0.0
    for piece in running:
        pieces.append(piece)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert pieces.pop() == 1
    assert "".join(map(str, pieces)) == whole
    assert longest < 2.0


def test_a_stopped_decode_instance_is_taken_for_hung_and_its_streams_go_on(
    cluster: Cluster, whole: str
) -> None:
    after = cluster.last_event()
    running = stream(cluster, 1500)
    name = next(running)
    pieces = [next(running) for _ in range(30)]
    victim = next(one for one in cluster.ready("decode") if one.name == name)
    os.kill(victim.pid, signal.SIGSTOP)
    pieces += running
    assert pieces.pop() == 1
    assert "".join(map(str, pieces)) == whole
    assert "no beat for" in cluster.event("hung", after, victim.name).reason
    cluster.event("ready", after, "decode")
    psutil.wait_procs([psutil.Process(victim.pid)] if psutil.pid_exists(victim.pid) else [], timeout=10)
    assert not psutil.pid_exists(victim.pid)


def test_a_killed_prefill_instance_is_replaced_and_decode_instances_stand_in(
    cluster: Cluster, full: bool
) -> None:
    expected = complete(cluster, tokens=40)
    after = cluster.last_event()
    with load(cluster, full) as clients:
        clients.more(2)
        victim = cluster.ready("prefill")[0]
        os.kill(victim.pid, signal.SIGKILL)
        cluster.event("died", after, victim.name)
        clients.more(4)
        cluster.event("ready", after, "prefill")
    assert clients.outcomes == {expected}


def test_an_instance_that_gets_sigterm_drains_ends_and_is_replaced(cluster: Cluster, full: bool) -> None:
    expected = complete(cluster, tokens=40)
    after = cluster.last_event()
    with load(cluster, full) as clients:
        victim = cluster.ready("decode")[0]
        process = psutil.Process(victim.pid)
        os.kill(victim.pid, signal.SIGTERM)
        # The controller hears of the draining, or only of the end where that came at once.
        assert "SIGTERM" in cluster.event("draining|died", after, victim.name).reason
        cluster.event("ready", after, "decode")
        psutil.wait_procs([process], timeout=30)
        assert not process.is_running()
    assert clients.outcomes == {expected}


def test_a_new_controller_adopts_the_instances_while_requests_run(cluster: Cluster, full: bool) -> None:
    expected = complete(cluster, tokens=40)
    before = {one.name: one.pid for one in cluster.status().instances}
    with load(cluster, full) as clients:
        clients.more(2)
        process = controller_process()
        process.kill()
        psutil.wait_procs([process], timeout=10)
        cluster.until(lambda status: status.ready, START)
        clients.more(4)
        after = {one.name: one.pid for one in cluster.status().instances}
    assert after == before
    assert clients.outcomes == {expected}
    assert "adopted" in {event.kind for event in cluster.control.events()}


def test_an_instance_without_a_controller_ends_by_itself(cluster: Cluster) -> None:
    control = cluster.config.control.model_copy(update={"orphan_timeout": 1.0})
    config = cluster.config.model_copy(update={"control": control})
    memo = Memo(generation=1).to_bytes()

    async def orphan() -> None:
        handle = spawn(
            Worker,
            "decode-77",
            *(assemble, config.model_dump_json(), "decode-77", "decode", memo, 1, 1),
            resources={},
        )
        process = psutil.Process(pb.Instance.FromString(await handle.ready(60)).pid)
        with pytest.raises(InstanceDied, match="no controller has been heard of for 1 s"):
            await handle.lifetime()
        psutil.wait_procs([process], timeout=10)
        assert not process.is_running()
        # Ray's own list follows the death of the process.
        assert await asyncio.to_thread(wait_until, lambda: "decode-77" not in existing(), 10)

    asyncio.run(orphan())


def test_refusals_say_what_to_do(cluster: Cluster) -> None:
    with pytest.raises(RefusedError, match="--min 0 as well"):
        cluster.control.scale("decode", 0)
    with pytest.raises(NotFound, match="did you mean decode"):
        cluster.control.scale("decoder", 1)


def test_a_handle_on_a_dead_instance_says_so(cluster: Cluster) -> None:
    async def ask() -> None:
        await InstanceHandle("decode-99").status()

    with pytest.raises(InstanceDied, match="decode-99 is gone"):
        asyncio.run(ask())
