"""All requests that call this gateway home: who listens, and what instances that push or claim are told."""

from __future__ import annotations

from typing import Protocol

from cluster import control_pb2 as pb
from cluster.home_link import FOREVER
from cluster.rpc import error_from
from cluster.stream_order import Piece, TokenOrder
from engine.errors import TandemError
from engine.request import Request
from engine.sequence import Epoch
from migration import wire_pb2


class Listener(Protocol):
    """Who drives the request; called in the event loop, must not block."""

    def tokens(self, instance: str, pieces: list[Piece], message: pb.Tokens) -> None: ...

    def moved(self, instance: str, epoch: Epoch) -> None: ...

    def failed(self, instance: str, error: TandemError) -> None: ...


class TokenStreams:
    """Requests by id. What an instance pushes for an unknown one is fenced for ever."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[TokenOrder, Listener]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, request: Request, listener: Listener) -> TokenOrder:
        """Listen to a request."""
        assert request.id not in self._open, f"{request.id} is running"
        order = TokenOrder(request.sampling.n, request.sampling.max_tokens)
        self._open[request.id] = order, listener
        return order

    def close(self, request_id: str) -> None:
        self._open.pop(request_id, None)

    def push(self, batch: pb.TokenBatch) -> pb.PushReply:
        """Hand the batch's tokens to their listeners; the reply names what the instance shall drop."""
        fenced: dict[str, Epoch] = {}
        for message in batch.tokens:
            entry = self._open.get(message.request_id)
            if entry is None:
                fenced[message.request_id] = FOREVER
                continue
            order, listener = entry
            if message.finish_reason in ("cancelled", "failed"):
                self._ended(batch.instance, message, order, listener)
                continue
            pieces, allowed = order.push(message)
            if not allowed:
                fenced[message.request_id] = order.epoch
            if pieces:
                listener.tokens(batch.instance, pieces, message)
        return pb.PushReply(
            fenced=[pb.Fence(request_id=id, epoch=_wire(epoch)) for id, epoch in fenced.items()]
        )

    def claim(self, request: pb.ClaimRequest) -> pb.ClaimReply:
        """Compare-and-set of the owner; a claim on a request that is over is refused."""
        entry = self._open.get(request.request_id)
        if entry is None:
            return pb.ClaimReply(granted=False, epoch=_wire(FOREVER))
        order, listener = entry
        epoch = Epoch(request.epoch.attempt, request.epoch.move)
        known = order.epoch
        granted = order.claim(request.instance, epoch, request.length)
        if granted and order.epoch != known:
            listener.moved(request.instance, epoch)
        return pb.ClaimReply(granted=granted, epoch=_wire(order.epoch))

    def _ended(self, instance: str, message: pb.Tokens, order: TokenOrder, listener: Listener) -> None:
        """An instance gave a request up: of interest only if it is the one that owns it."""
        if Epoch(message.epoch.attempt, message.epoch.move) == order.epoch:
            error = error_from(message.error) if message.error.code else TandemError(message.error.message)
            listener.failed(
                instance, error if error.message else TandemError(f"{instance} dropped the request")
            )


def _wire(epoch: Epoch) -> wire_pb2.Epoch:
    return wire_pb2.Epoch(attempt=epoch.attempt, move=epoch.move)
