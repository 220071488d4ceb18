"""`tandem k8s leave`: the last minutes of a pod."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from cluster import certificates, control_pb2_grpc, rpc
from cluster import control_pb2 as pb
from cluster.token_stream import HomeService
from cluster.token_streams import TokenStreams
from cluster.worker import Worker
from engine.errors import Unreachable
from k8s import leave

Status = Callable[[], pb.ClusterStatus]

TITLE = f"ray::{Worker.__name__}"
SLEEPER = "import signal, time\nsignal.signal(signal.SIGTERM, {})\nprint('up', flush=True)\ntime.sleep(60)"
DRAINS = SLEEPER.format("lambda *_: exit(7)")
STAYS = SLEEPER.format("signal.SIG_IGN")


def nobody() -> pb.ClusterStatus:
    raise Unreachable("nothing answers")


@contextmanager
def process(program: str, title: str = TITLE) -> Iterator[subprocess.Popen[str]]:
    """A process under that title, which says when it is set up."""
    with subprocess.Popen(
        [title, "-c", program], executable=sys.executable, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None and started.stdout.readline() == "up\n"
        try:
            yield started
        finally:
            started.kill()


class Pod:
    """A pod with no process but those that a test adds, and what the controller of its cluster says."""

    def __init__(self, processes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.status: Status = pb.ClusterStatus
        self._processes = processes
        pod = self

        class Answering:
            def __init__(self, address: str, token: str | None, **_: object) -> None:
                pod.asked.append(address)

            def __enter__(self) -> Answering:
                return self

            def __exit__(self, *_: object) -> None: ...

            def status(self) -> pb.ClusterStatus:
                return pod.status()

        monkeypatch.setattr(leave, "PROCESSES", processes)
        monkeypatch.setattr(leave, "ControlClient", Answering)
        monkeypatch.setattr(leave, "POLL", 0.02)
        monkeypatch.setenv(leave.IN_A_POD, "own-head")

    def add(self, pid: int) -> None:
        (self._processes / str(pid)).symlink_to(f"/proc/{pid}")

    def leaves(self, deadline: float = 30.0) -> list[str]:
        said: list[str] = []
        leave.leave_pool("own-head:1", None, deadline, said.append)
        return said


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    return Pod(tmp_path, monkeypatch)


def one(pid: int, node: str) -> Status:
    return lambda: pb.ClusterStatus(instances=[pb.Instance(name="decode-0", pid=pid, node=node)])


def test_instances_of_this_pod_are_told_to_end_and_waited_for(pod: Pod) -> None:
    with process(DRAINS) as started:
        pod.status = one(started.pid, platform.node())
        said = pod.leaves()
        assert (said, started.wait(10)) == (["decode-0 drains", "decode-0 has ended"], 7)
    assert pod.asked == ["own-head:1"]


def test_instances_of_other_pods_are_left_alone(pod: Pod) -> None:
    with process(DRAINS) as started:
        pod.status = one(started.pid, "another-pod")
        assert pod.leaves(1) == []
        assert started.poll() is None


def test_the_deadline_ends_the_wait(pod: Pod) -> None:
    with process(STAYS) as started:
        pod.status = one(started.pid, platform.node())
        assert pod.leaves(0.1)[-1] == "the deadline is over: decode-0 is still there"


def test_a_controller_that_is_gone_does_not_stop_a_pod_from_leaving(pod: Pod) -> None:
    pod.status = nobody
    (said,) = pod.leaves(1)
    assert "does not say" in said


def test_an_instance_that_has_ended_already_is_no_error(pod: Pod) -> None:
    with process(DRAINS) as started:
        started.send_signal(signal.SIGKILL)
        started.wait(10)
    pod.status = one(started.pid, platform.node())
    assert pod.leaves(1) == ["decode-0 has ended"]


@pytest.mark.parametrize("status", [nobody, pb.ClusterStatus], ids=["gone", "of another cluster"])
@pytest.mark.parametrize("title", [TITLE, f"{TITLE}.lifetime", f"{TITLE}.ready()"])
def test_an_instance_that_no_controller_knows_is_told_to_end_and_waited_for(
    pod: Pod, status: Status, title: str
) -> None:
    pod.status = status
    with process(DRAINS, title) as started:
        pod.add(started.pid)
        assert f"the instance with the process id {started.pid} has ended" in pod.leaves()
        assert started.wait(10) == 7


@pytest.mark.parametrize("title", ["ray::IDLE", f"{TITLE}s", "ray::ServeReplica:tandem:Gateway", "python"])
def test_processes_that_are_no_instance_are_left_alone(pod: Pod, title: str) -> None:
    with process(DRAINS, title) as started:
        pod.add(started.pid)
        assert pod.leaves(1) == []
        assert started.poll() is None


def test_outside_of_a_pod_no_process_is_looked_for(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(leave.IN_A_POD)
    with process(DRAINS) as started:
        pod.add(started.pid)
        assert pod.leaves(1) == []
        assert started.poll() is None


def test_an_instance_that_both_know_is_told_once(pod: Pod) -> None:
    with process(DRAINS) as started:
        pod.add(started.pid)
        pod.status = one(started.pid, platform.node())
        assert len(pod.leaves()) == 2


def test_instances_drain_while_the_controller_is_waited_for(pod: Pod) -> None:
    with process(DRAINS) as started:
        pod.add(started.pid)

        def slow() -> pb.ClusterStatus:
            assert started.wait(10) == 7
            return pb.ClusterStatus()

        pod.status = slow
        assert len(pod.leaves()) == 2


def test_a_process_that_has_ended_meanwhile_is_passed_over(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "1234567").mkdir()
    (tmp_path / "self").symlink_to(f"/proc/{os.getpid()}")
    assert pod.leaves(1) == []


@contextmanager
def gateway(loads: list[int], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A gateway whose load falls from answer to answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = json.dumps({"server_load": loads.pop(0) if len(loads) > 1 else loads[0]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    """Of a server that shows a certificate of another name, of an authority that nobody here knows."""
    certificates.create(tmp_path, [])
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "SETTLE", 0.0)
    monkeypatch.setattr(leave, "POLL", 0.02)


@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(
    ("loads", "last"),
    [([2, 1, 0], "no request is under way"), ([1], "the deadline is over: requests under way are lost")],
)
def test_a_gateway_is_waited_for_until_it_is_idle(
    at_once: None, context: ssl.SSLContext, loads: list[int], last: str, encrypted: bool
) -> None:
    said: list[str] = []
    with gateway(loads, context if encrypted else None) as url:
        leave.leave_gateway(url, "key", 1.0, said.append)
    assert said == [last]


@contextmanager
def homes(under_way: list[int]) -> Iterator[tuple[list[pb.Gateway], list[float]]]:
    """Gateways of this machine that say how many requests are left; and how long they were given."""
    events = asyncio.new_event_loop()
    given: list[float] = []

    async def opened(count: int) -> tuple[grpc.aio.Server, str]:
        async def left(within: float) -> int:
            given.append(within)
            return count

        server = rpc.server("secret")
        control_pb2_grpc.add_HomeServicer_to_server(HomeService(TokenStreams(), leave=left), server)
        address = rpc.listen(server, "127.0.0.1", 0, setting="none")
        await server.start()
        return server, address

    found = [events.run_until_complete(opened(count)) for count in under_way]
    thread = threading.Thread(target=events.run_forever)
    thread.start()
    try:
        here = platform.node()
        yield (
            [pb.Gateway(name=f"gateway-{n}", node=here, home=home) for n, (_, home) in enumerate(found)],
            given,
        )
    finally:
        for server, _ in found:
            asyncio.run_coroutine_threadsafe(server.stop(0), events).result(10)
        events.call_soon_threadsafe(events.stop)
        thread.join()
        events.close()


def test_gateways_of_this_pod_take_nothing_more_and_say_when_they_are_done(at_once: None, pod: Pod) -> None:
    said: list[str] = []
    with homes([0, 2]) as (gateways, given):
        others = [pb.Gateway(name="elsewhere", node="another-pod", home="127.0.0.1:9")]
        pod.status = lambda: pb.ClusterStatus(gateways=gateways + others)
        leave.leave_gateway("http://127.0.0.1:9", None, 30.0, said.append, "own-head:1", "secret")
    assert said == ["gateway-0 has ended its requests", "gateway-1: 2 requests are lost"]
    assert pod.asked == ["own-head:1"]
    assert all(29.0 < within <= 30.0 for within in given)


@pytest.mark.parametrize("home", ["", "127.0.0.1:9"], ids=["no controller", "no answer"])
def test_a_gateway_that_cannot_be_asked_is_looked_at_until_it_is_idle(
    at_once: None, pod: Pod, home: str
) -> None:
    said: list[str] = []
    if home:
        here = [pb.Gateway(name="gateway-0", node=platform.node(), home=home)]
        pod.status = lambda: pb.ClusterStatus(gateways=here)
    else:
        pod.status = nobody
    with gateway([1, 0]) as url:
        leave.leave_gateway(url, "key", 30.0, said.append, "own-head:1", "secret")
    assert len(said) == 2
    assert said[-1] == "no request is under way"
