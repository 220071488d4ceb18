"""Talks to a cluster's controller over gRPC: all that operators' tools need, without Ray."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from cluster import control_pb2 as pb
from cluster.control_pb2_grpc import ControlStub
from cluster.rpc import carried
from cluster.tls import Tls
from engine.errors import (
    InvalidKey,
    InvalidParameter,
    NotFound,
    RefusedError,
    TandemError,
    Unreachable,
)

T = TypeVar("T")

logger = logging.getLogger("tandem.control")

_ERRORS: dict[grpc.StatusCode, type[TandemError]] = {
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unreachable,
    grpc.StatusCode.UNAUTHENTICATED: InvalidKey,
    grpc.StatusCode.PERMISSION_DENIED: InvalidKey,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidParameter,
    grpc.StatusCode.OUT_OF_RANGE: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.ABORTED: RefusedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusedError,
}


class ControlClient:
    """Blocking calls, each bounded by `timeout` seconds. Raises TandemErrors.

    `address` is host:port; `token` is the cluster's control token; `tls` where the cluster has certificates.
    """

    def __init__(
        self, address: str, token: str | None, *, timeout: float = 10.0, tls: Tls | None = None
    ) -> None:
        self.address = address
        self.timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._tls = tls
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self) -> pb.ClusterStatus:
        return self._call(self._stub.GetStatus, pb.StatusRequest())

    def requests(self, wanted: str = "") -> list[pb.RunningRequest]:
        """What runs; with an id or a client's name, those that it means."""
        return list(self._call(self._stub.GetRequests, pb.RequestsRequest(id=wanted)).requests)

    def migrations(self, request_id: str = "") -> list[pb.Migration]:
        """The last moves, oldest first."""
        return list(
            self._call(self._stub.GetMigrations, pb.MigrationsRequest(request_id=request_id)).migrations
        )

    def timelines(self, wanted: str = "", most: int = 0) -> list[pb.Timeline]:
        """Where the time of requests went, of those that run and those that ended lately; newest first."""
        return list(self._call(self._stub.GetTimelines, pb.TimelinesRequest(id=wanted, most=most)).timelines)

    def scale(
        self,
        pool: str,
        replicas: int | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
        dry_run: bool = False,
    ) -> pb.ScaleReply:
        """Set a pool's target or bounds. Raises NotFound (no such pool) and RefusedError (out of bounds)."""
        request = pb.ScaleRequest(
            pool=pool, replicas=replicas, least=least, most=most, auto=automatic, dry_run=dry_run
        )
        return self._call(self._stub.Scale, request)

    def explain(self, subject: str) -> list[pb.Explanation]:
        """Why a request, a pool or an event's subject came to be as it is. Raises NotFound."""
        return list(self._call(self._stub.Explain, pb.ExplainRequest(subject=subject)).explanations)

    def migrate(
        self, request: str, to: str, *, wait: bool = True, within: float | None = None
    ) -> pb.Migration:
        """Move a request, and wait for the outcome. Raises NotFound, Conflict and RefusedError."""
        return self._call(self._stub.Migrate, pb.MigrateRequest(request=request, to=to, wait=wait), within)

    def rebalance(self, *, dry_run: bool = False, within: float | None = None) -> pb.RebalanceReply:
        """Have crowded instances give a request each to roomy ones, and wait for the outcomes."""
        return self._call(self._stub.Rebalance, pb.RebalanceRequest(dry_run=dry_run), within)

    def cordon(self, instance: str, *, on: bool = True) -> pb.Instance:
        """Place nothing more there, or again. Raises NotFound and RefusedError."""
        return self._call(self._stub.Cordon, pb.CordonRequest(instance=instance, on=on))

    def drain(self, instance: str, deadline: float = 0.0) -> pb.Instance:
        """Begin to empty an instance, for `deadline` seconds. Raises NotFound and RefusedError."""
        return self._call(self._stub.Drain, pb.DrainRequest(instance=instance, deadline=deadline))

    def change_role(self, instance: str, role: str, deadline: float = 0.0) -> pb.Instance:
        """Begin to give an instance another role. Raises NotFound and RefusedError."""
        request = pb.RoleRequest(instance=instance, role=role, deadline=deadline)
        return self._call(self._stub.SetRole, request)

    def afflict(self, instance: str, fault: str) -> pb.Instance:
        """Have an instance's links fail on purpose, such as "delay=20ms damage=0.05"; "" ends that."""
        return self._call(self._stub.Afflict, pb.AfflictRequest(instance=instance, fault=fault))

    def config(self) -> dict[str, Any]:
        """The settings in force, secrets masked."""
        return self.config_and_origins()[0]

    def config_and_origins(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The same, and where each value comes from, by dotted path; {} from a controller of before that."""
        reply = self._call(self._stub.GetConfig, pb.ConfigRequest())
        return json.loads(reply.json), dict(reply.origins)

    def apply(self, settings: Mapping[str, object], *, dry_run: bool = False) -> list[pb.Change]:
        """Bring settings into force, by dotted path; gives what differed.

        Raises ConfigError, and RefusedError for a size that no pool may have.
        """
        request = pb.ApplyRequest(json=json.dumps(settings), dry_run=dry_run)
        return list(self._call(self._stub.Apply, request).changes)

    def restart(self, what: str, *, dry_run: bool = False) -> list[str]:
        """Have instances replaced one after the other: of a pool, one by name, or "all". Raises NotFound."""
        return list(self._call(self._stub.Restart, pb.RestartRequest(what=what, dry_run=dry_run)).instances)

    def end(self) -> pb.ClusterStatus:
        """Have the gateways take no new requests: the cluster is about to end."""
        return self._call(self._stub.Close, pb.CloseRequest())

    def events(self, *, follow: bool = False, after: int = 0) -> Iterator[pb.Event]:
        """Events with an id above `after`, oldest first; with `follow`, without end."""
        timeout = None if follow else self.timeout
        request = pb.EventsRequest(follow=follow, after=after)
        try:
            yield from self._stub.WatchEvents(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._mended(error) from None

    def _call(self, method: Callable[..., T], request: Message, within: float | None = None) -> T:
        begun = time.monotonic()
        try:
            return method(request, timeout=within or self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._mended(error) from None
        finally:
            name = type(request).__name__.removesuffix("Request")
            took = 1000 * (time.monotonic() - begun)
            logger.debug("%s at %s took %.0f ms", name, self.address, took)

    def _connect(self) -> None:
        self._channel = _channel(self.address.removeprefix("http://"), self._tls)
        self._stub = ControlStub(self._channel)

    def _mended(self, error: grpc.RpcError) -> TandemError:
        sent = carried(error.trailing_metadata())
        if sent is not None:
            return sent
        kind = _ERRORS.get(error.code(), TandemError)
        if kind is Unreachable and self._tls is not None:  # a channel keeps its certificate, which may be old
            self._channel.close()
            self._connect()
        details = error.details() or error.code().name.lower()
        return kind(f"nothing answers at {self.address} ({details})" if kind is Unreachable else details)


def _channel(address: str, tls: Tls | None) -> grpc.Channel:
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.channel_credentials(), [*options, *tls.channel_options])
