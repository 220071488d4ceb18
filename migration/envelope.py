"""The header of a frame between two instances: a message, the session and the epoch that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import TransferFailed
from engine.request import Request
from engine.sequence import START, Epoch
from migration import wire_pb2 as pb
from migration.messages import (
    Abort,
    Commit,
    Committed,
    Contents,
    Copy,
    Hello,
    Message,
    Proof,
    Refused,
    Renew,
    Resend,
    Reserve,
    Reserved,
    Welcome,
)
from migration.state import RequestState
from migration.wire import (
    MAX_TEXT,
    MAX_TOKENS,
    epoch_from_wire,
    epoch_to_wire,
    parse,
    request_from_wire,
    request_to_wire,
    state_from_wire,
    state_to_wire,
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """`request` goes with a RESERVE and `state` with a COMMIT. The handshake has no session."""

    message: Message
    session: str = ""
    epoch: Epoch = START
    request: Request | None = None
    state: RequestState | None = None


def encode(envelope: Envelope) -> bytes:
    """Raises ValueError for a RESERVE without its request or a COMMIT without its state."""
    out = pb.Envelope(session=envelope.session, epoch=epoch_to_wire(envelope.epoch))
    match envelope.message:
        case Hello() as hello:
            out.hello.CopyFrom(
                pb.Hello(
                    oldest=hello.oldest,
                    newest=hello.newest,
                    instance=hello.instance,
                    layout=hello.layout,
                    block_size=hello.block_size,
                    block_nbytes=hello.block_nbytes,
                    weights_digest=hello.weights_digest,
                    nonce=hello.nonce,
                    contents=_contents_to_wire(hello.contents),
                )
            )
        case Proof(mac):
            out.proof.mac = mac
        case Welcome(version, mac):
            out.welcome.CopyFrom(pb.Welcome(version=version, mac=mac))
        case Refused(code, reason, settled):
            out.refused.CopyFrom(pb.Refused(code=code, reason=reason[:MAX_TEXT], settled=settled))
        case Reserve(blocks, live):
            if envelope.request is None:
                raise ValueError("a RESERVE without its request")
            out.reserve.CopyFrom(
                pb.Reserve(request=request_to_wire(envelope.request), blocks=blocks, live=live)
            )
        case Reserved(cached, blocks):
            out.reserved.CopyFrom(pb.Reserved(cached=cached, blocks=blocks))
        case Resend(first):
            out.resend.CopyFrom(pb.Resend(first=first))
        case Copy(first, count):
            out.copy.CopyFrom(pb.Copy(first=first, count=count))
        case Commit(blocks):
            if envelope.state is None:
                raise ValueError("a COMMIT without its state")
            out.commit.CopyFrom(pb.Commit(state=state_to_wire(envelope.state), blocks=blocks))
        case Committed():
            out.committed.SetInParent()
        case Abort(reason):
            out.abort.CopyFrom(pb.Abort(reason=reason[:MAX_TEXT]))
        case Renew():
            out.renew.SetInParent()
    return out.SerializeToString()


def decode(header: bytes) -> Envelope:
    """Raises TransferFailed for anything that `encode` does not write."""
    received = parse(pb.Envelope, header)
    kind = received.WhichOneof("body")
    if kind is None:
        raise TransferFailed("a frame without a message")
    if len(received.session) > MAX_TEXT:
        raise TransferFailed(f"a session name of {len(received.session)} characters")
    envelope = _READ[kind](received)
    return Envelope(
        message=envelope.message,
        session=received.session,
        epoch=epoch_from_wire(received.epoch),
        request=envelope.request,
        state=envelope.state,
    )


def _hello(received: pb.Envelope) -> Envelope:
    hello = received.hello
    return Envelope(
        Hello(
            oldest=hello.oldest,
            newest=hello.newest,
            instance=hello.instance,
            layout=hello.layout,
            block_size=hello.block_size,
            block_nbytes=hello.block_nbytes,
            weights_digest=hello.weights_digest,
            nonce=hello.nonce,
            contents=_contents(hello.contents) if hello.HasField("contents") else None,
        )
    )


def _contents_to_wire(contents: Contents | None) -> pb.Contents | None:
    if contents is None:
        return None
    return pb.Contents(
        layers=contents.layers,
        kv_heads=contents.kv_heads,
        head_dim=contents.head_dim,
        dtype=contents.dtype,
    )


def _contents(received: pb.Contents) -> Contents:
    return Contents(received.layers, received.kv_heads, received.head_dim, received.dtype)


def _refused(received: pb.Envelope) -> Envelope:
    refused = received.refused
    return Envelope(Refused(refused.code[:64], refused.reason[:MAX_TEXT], refused.settled))


def _reserve(received: pb.Envelope) -> Envelope:
    reserve = received.reserve
    message = Reserve(_blocks(reserve.blocks), reserve.live)
    return Envelope(message, request=request_from_wire(reserve.request))


def _commit(received: pb.Envelope) -> Envelope:
    commit = received.commit
    return Envelope(Commit(_blocks(commit.blocks)), state=state_from_wire(commit.state))


def _copy(received: pb.Envelope) -> Envelope:
    copy = received.copy
    _blocks(copy.first + copy.count)
    if not copy.count:
        raise TransferFailed("a COPY of no blocks")
    return Envelope(Copy(copy.first, copy.count))


def _blocks(count: int) -> int:
    if count > MAX_TOKENS:
        raise TransferFailed(f"{count} blocks, at most {MAX_TOKENS} are taken")
    return count


_READ: dict[str, Callable[[pb.Envelope], Envelope]] = {
    "hello": _hello,
    "proof": lambda received: Envelope(Proof(received.proof.mac)),
    "welcome": lambda received: Envelope(Welcome(received.welcome.version, received.welcome.mac)),
    "refused": _refused,
    "reserve": _reserve,
    "reserved": lambda received: Envelope(
        Reserved(_blocks(received.reserved.cached), _blocks(received.reserved.blocks))
    ),
    "resend": lambda received: Envelope(Resend(_blocks(received.resend.first))),
    "copy": _copy,
    "commit": _commit,
    "committed": lambda received: Envelope(Committed()),
    "abort": lambda received: Envelope(Abort(received.abort.reason[:MAX_TEXT])),
    "renew": lambda received: Envelope(Renew()),
}
