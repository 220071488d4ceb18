"""The controller's gRPC services: Control for operators, Scheduler for gateways."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.applying import apply, restart
from cluster.config_origins import explained
from cluster.controller import Controller
from cluster.rpc import abort, listen, server
from cluster.settings_change import masked
from cluster.tls import cluster_tls
from engine.errors import InvalidParameter, TandemError

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")


class ControlService(control_pb2_grpc.ControlServicer):
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def GetStatus(self, request: pb.StatusRequest, context: Context) -> pb.ClusterStatus:
        return self._controller.status()

    async def Scale(self, request: pb.ScaleRequest, context: Context) -> pb.ScaleReply:
        try:
            return self._controller.scale(
                request.pool,
                request.replicas if request.HasField("replicas") else None,
                least=request.least if request.HasField("least") else None,
                most=request.most if request.HasField("most") else None,
                automatic=request.auto,
                dry_run=request.dry_run,
            )
        except TandemError as error:
            await abort(context, error)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplanationList:
        try:
            return self._controller.explain(request.subject)
        except TandemError as error:
            await abort(context, error)

    async def GetRequests(self, request: pb.RequestsRequest, context: Context) -> pb.RequestList:
        return await self._controller.operations.requests(request.id)

    async def GetMigrations(self, request: pb.MigrationsRequest, context: Context) -> pb.MigrationList:
        return pb.MigrationList(migrations=self._controller.mover.migrations.listed(request.request_id))

    async def Migrate(self, request: pb.MigrateRequest, context: Context) -> pb.Migration:
        return await answered(context, self._migrate(request))

    async def _migrate(self, request: pb.MigrateRequest) -> pb.Migration:
        return await self._controller.operations.migrate(request.request, request.to, wait=request.wait)

    async def Rebalance(self, request: pb.RebalanceRequest, context: Context) -> pb.RebalanceReply:
        return await answered(context, self._controller.operations.rebalance(dry_run=request.dry_run))

    async def Cordon(self, request: pb.CordonRequest, context: Context) -> pb.Instance:
        return await answered(context, self._controller.operations.cordon(request.instance, on=request.on))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.Instance:
        return await answered(context, self._controller.operations.drain(request.instance, request.deadline))

    async def SetRole(self, request: pb.RoleRequest, context: Context) -> pb.Instance:
        work = self._controller.operations.change_role(request.instance, request.role, request.deadline)
        return await answered(context, work)

    async def Afflict(self, request: pb.AfflictRequest, context: Context) -> pb.Instance:
        return await answered(context, self._controller.operations.afflict(request.instance, request.fault))

    async def GetConfig(self, request: pb.ConfigRequest, context: Context) -> pb.ConfigReply:
        controller = self._controller
        running = controller.sized()
        told = explained(running, controller.deployed, controller.origins, controller.events.after(0))
        origins = {key: origin for key, _, origin in told}
        return pb.ConfigReply(json=json.dumps(masked(running)), origins=origins)

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyReply:
        return await answered(context, self._apply(request))

    async def _apply(self, request: pb.ApplyRequest) -> pb.ApplyReply:
        try:
            settings = json.loads(request.json)
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise InvalidParameter("json: a JSON object of settings by dotted path is expected", param="json")
        return await apply(self._controller, settings, dry_run=request.dry_run)

    async def Restart(self, request: pb.RestartRequest, context: Context) -> pb.RestartReply:
        try:
            return restart(self._controller, request.what, dry_run=request.dry_run)
        except TandemError as error:
            await abort(context, error)

    async def GetTimelines(self, request: pb.TimelinesRequest, context: Context) -> pb.TimelineList:
        return pb.TimelineList(timelines=await self._controller.timelines.find(request.id, request.most))

    async def Close(self, request: pb.CloseRequest, context: Context) -> pb.ClusterStatus:
        return self._controller.end()

    async def WatchEvents(self, request: pb.EventsRequest, context: Context) -> AsyncIterator[pb.Event]:
        events = self._controller.events
        if not request.follow:
            for event in events.after(request.after):
                yield event
            return
        async for event in events.follow(request.after):
            yield event


async def answered(context: Context, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a TandemError ends the call with it."""
    try:
        return await work
    except TandemError as error:
        await abort(context, error)


class SchedulerService(control_pb2_grpc.SchedulerServicer):
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def Place(self, request: pb.PlaceRequest, context: Context) -> pb.Placement:
        return self._controller.place(request)

    async def Join(self, request: pb.Gateway, context: Context) -> pb.ClusterStatus:
        return self._controller.join(request)


async def serve_control(controller: Controller) -> tuple[grpc.aio.Server, str]:
    """Serve both at control.host and control.port; gives the server and its host:port. Raises SetupError."""
    config = controller.config.control
    serving = server(config.token or "")
    control_pb2_grpc.add_ControlServicer_to_server(ControlService(controller), serving)
    control_pb2_grpc.add_SchedulerServicer_to_server(SchedulerService(controller), serving)
    tls = cluster_tls(controller.config.security.cluster_tls)
    address = listen(serving, config.host, config.port, setting="control.port", tls=tls)
    await serving.start()
    return serving, address
