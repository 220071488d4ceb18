"""Talks to a cluster's controller over gRPC: all that operators' tools need, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from cluster import control_pb2 as pb
from cluster.control_pb2_grpc import ControlStub
from cluster.rpc import carried
from engine.errors import (
    InvalidKey,
    InvalidParameter,
    NotFound,
    RefusedError,
    TandemError,
    Unreachable,
)

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

    `address` is host:port; `token` is the cluster's control token.
    """

    def __init__(self, address: str, token: str | None, *, timeout: float = 10.0) -> None:
        self.address = address
        self.timeout = timeout
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.insecure_channel(
            address.removeprefix("http://"), options=(("grpc.enable_http_proxy", 0),)
        )
        self._stub = ControlStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self) -> pb.ClusterStatus:
        try:
            reply: pb.ClusterStatus = self._stub.GetStatus(
                pb.StatusRequest(), timeout=self.timeout, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._mended(error) from None
        return reply

    def scale(self, pool: str, replicas: int, *, dry_run: bool = False) -> pb.ScaleReply:
        """Set a pool's target. Raises NotFound (no such pool) and RefusedError (out of bounds)."""
        request = pb.ScaleRequest(pool=pool, replicas=replicas, dry_run=dry_run)
        try:
            reply: pb.ScaleReply = self._stub.Scale(request, timeout=self.timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._mended(error) from None
        return reply

    def events(self, *, follow: bool = False, after: int = 0) -> Iterator[pb.Event]:
        """Events with an id above `after`, oldest first; with `follow`, without end."""
        timeout = None if follow else self.timeout
        request = pb.EventsRequest(follow=follow, after=after)
        try:
            yield from self._stub.WatchEvents(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._mended(error) from None

    def _mended(self, error: grpc.RpcError) -> TandemError:
        sent = carried(error.trailing_metadata())
        if sent is not None:
            return sent
        kind = _ERRORS.get(error.code(), TandemError)
        details = error.details() or error.code().name.lower()
        return kind(f"nothing answers at {self.address} ({details})" if kind is Unreachable else details)
