"""A controller that is made up, for the verbs: they find it by the local cluster's record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from typer.testing import CliRunner, Result

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.cli.main import build
from cluster.local_state import LocalState, write_state

TOKEN = "secret"


@dataclass
class Controller(control_pb2_grpc.ControlServicer):
    """A controller of two pools, whose instances are ready at once unless `stuck`."""

    stuck: bool = False
    broken: bool = False
    targets: dict[str, int] = field(default_factory=lambda: {"prefill": 1, "decode": 2})
    instance: pb.Instance = field(
        default_factory=lambda: pb.Instance(
            name="decode-0", role="decode", state="ready", pid=7,
            status=pb.InstanceStatus(
                instance="decode-0", role="decode", blocks_total=10, blocks_used=5, block_size=16, steps=2**40
            ),
        )
    )  # fmt: skip
    requests: list[pb.RunningRequest] = field(
        default_factory=lambda: [
            pb.RunningRequest(id="mine~1-0", instance="decode-0", phase="decode", prompt_tokens=9, age=1.25)
        ]
    )
    moved: pb.Migration = field(
        default_factory=lambda: pb.Migration(
            id=1, request_id="mine~1-0", source="decode-0", destination="decode-1", cause="operator",
            outcome="committed", stages=2, bytes=4096, downtime=0.0123,
        )
    )  # fmt: skip
    timelines: list[pb.Timeline] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    interlude: list[pb.ClusterStatus | None] = field(default_factory=list)
    """What it says of itself first: nothing, where it is away."""
    asked: list[Any] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=lambda: {"log": {"level": "debug"}})
    origins: dict[str, str] = field(default_factory=dict)
    """As of a controller that tells none."""
    events: list[pb.Event] = field(
        default_factory=lambda: [
            pb.Event(id=number, time=float(number), kind="spawned", subject="decode-0", reason="target")
            for number in range(1, 4)
        ]
    )
    address: str = ""

    def GetStatus(self, request: pb.StatusRequest, context: Any) -> pb.ClusterStatus:
        self.guard(context)
        if self.interlude:
            said = self.interlude.pop(0)
            return said or context.abort(grpc.StatusCode.UNAVAILABLE, "it is being started again")
        ready = dict.fromkeys(self.targets, 0) if self.stuck else self.targets
        return pb.ClusterStatus(
            version="0.1.0",
            model=pb.Model(name="m", dtype="float32", max_length=64),
            pools=[pb.Pool(name=name, target=n, ready=ready[name]) for name, n in self.targets.items()],
            instances=[self.instance],
            gateways=[pb.Gateway(name="gateway-0", url="http://127.0.0.1:8000", pid=8)],
            controller_pid=9,
            uptime=62.0,
            ready=not self.stuck,
        )  # fmt: skip

    def Scale(self, request: pb.ScaleRequest, context: Any) -> pb.ScaleReply:
        self.guard(context)
        if request.HasField("replicas") and request.replicas == 0:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "decode cannot be scaled to 0")
        previous = self.targets[request.pool]
        target = request.replicas if request.HasField("replicas") else previous
        if not request.dry_run:
            self.targets[request.pool] = target
        most = request.most or 64
        return pb.ScaleReply(previous=previous, target=target, least=request.least or 1, most=most)

    def GetRequests(self, request: pb.RequestsRequest, context: Any) -> pb.RequestList:
        self.guard(context)
        found = [one for one in self.requests if not request.id or one.id.startswith(f"{request.id}~")]
        return pb.RequestList(requests=found)

    def GetMigrations(self, request: pb.MigrationsRequest, context: Any) -> pb.MigrationList:
        self.guard(context)
        return pb.MigrationList(migrations=[self.moved])

    def GetConfig(self, request: pb.ConfigRequest, context: Any) -> pb.ConfigReply:
        self.guard(context)
        return pb.ConfigReply(json=json.dumps(self.config), origins=self.origins)

    def GetTimelines(self, request: pb.TimelinesRequest, context: Any) -> pb.TimelineList:
        self.guard(context)
        known = [one for one in self.timelines if not request.id or one.id.startswith(f"{request.id}~")]
        return pb.TimelineList(timelines=known[: request.most or None])

    def Migrate(self, request: pb.MigrateRequest, context: Any) -> pb.Migration:
        self.guard(context)
        if request.request != "mine":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no request {request.request!r} runs")
        return (
            self.moved if request.wait else pb.Migration(request_id="mine~1-0", source="a", destination="b")
        )

    def Rebalance(self, request: pb.RebalanceRequest, context: Any) -> pb.RebalanceReply:
        self.guard(context)
        self.asked.append(request)
        if self.stuck:
            return pb.RebalanceReply(reason="nobody is crowded")
        plan = pb.Migration(
            request_id="mine~1-0", source="decode-0", destination="decode-1", reason="1.0 blocks"
        )
        return pb.RebalanceReply(moves=[plan if request.dry_run else self.moved])

    def Cordon(self, request: pb.CordonRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.instance.cordoned = request.on
        return self.instance

    def Drain(self, request: pb.DrainRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.asked.append(request)
        return pb.Instance(name=request.instance, state="draining")

    def SetRole(self, request: pb.RoleRequest, context: Any) -> pb.Instance:
        self.guard(context)
        self.asked.append(request)
        return pb.Instance(name=request.instance, state="draining", role="decode")

    def Restart(self, request: pb.RestartRequest, context: Any) -> pb.RestartReply:
        self.guard(context)
        return pb.RestartReply(instances=self.replaced)

    def WatchEvents(self, request: pb.EventsRequest, context: Any) -> Iterator[pb.Event]:
        self.guard(context)
        yield from (event for event in self.events if event.id > request.after)

    def guard(self, context: Any) -> None:
        if self.broken:
            context.abort(grpc.StatusCode.INTERNAL, "the controller is confused")
        if ("authorization", f"Bearer {TOKEN}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the control token is missing or wrong")


@contextmanager
def recorded(served: Controller | None = None) -> Iterator[Controller]:
    """Serve one, and write its address into the local cluster's record."""
    served = served or Controller()
    server = grpc.server(ThreadPoolExecutor(2))
    control_pb2_grpc.add_ControlServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    served.address = f"127.0.0.1:{port}"
    write_state(LocalState(pid=1, cluster="x", scratch="/x", control=served.address, token=TOKEN))
    yield served
    server.stop(0).wait()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


def items(result: Result) -> list[dict[str, Any]]:
    body = json.loads(result.stdout)
    assert list(body) == ["apiVersion", "kind", "items"]
    assert body["apiVersion"] == "tandem.dev/v1"
    return list(body["items"])
