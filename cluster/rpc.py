"""gRPC servers and channels of the cluster: a shared secret in the metadata, certificates where they are set,
bounded messages, errors as values.

Every server refuses a call without the secret before it reads the message. A TandemError that a servicer
raises travels in the call's trailing metadata and is raised again, of the same class, at the caller.
"""

from __future__ import annotations

import hmac
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError

from cluster import control_pb2 as pb
from cluster.tls import Tls
from engine import errors
from engine.errors import Overloaded, SetupError, TandemError

MESSAGE_LIMIT = 64 * 2**20
"""Bytes of the largest message: a Start with a full context of tokens for many choices is well below it."""

_ERROR = "tandem-error-bin"
_ANYWHERE = re.compile(r"(?:(?<![\w.])0\.0\.0\.0|\[::\])(?=:)")
_LIMITS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
]
_SERVER = [
    *_LIMITS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    # A peer whose machine is gone says nothing; its streams end all the same.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_CHANNEL = [
    *_LIMITS,
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel of its own for each: a shared one would also share another's broken connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.OUT_OF_RANGE,
    503: grpc.StatusCode.UNAVAILABLE,
}

T = TypeVar("T")


def error_message(error: TandemError) -> pb.Error:
    """An error as it travels in a message."""
    return pb.Error(
        code=error.code, message=error.message, param=error.param or "", retry_after=error.retry_after or 0
    )


def error_from(message: pb.Error) -> TandemError:
    """The error of a message, of the class that its code names."""
    named = [cls for cls in _classes(TandemError) if cls.code == message.code]
    error = (named or [TandemError])[-1](message.message, param=message.param or None)
    if message.retry_after:
        error.retry_after = message.retry_after
    return error


def _classes(root: type[TandemError]) -> Iterator[type[TandemError]]:
    """The tree below `root`: a class before those that take its code over."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _classes(child)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: TandemError) -> NoReturn:
    """End a call with an error that the caller gets back whole."""
    status = _STATUS.get(error.status, grpc.StatusCode.INTERNAL)
    await context.abort(status, error.message, ((_ERROR, error_message(error).SerializeToString()),))
    raise AssertionError("context.abort raises")


def carried(metadata: Iterable[tuple[str, str | bytes]] | None) -> TandemError | None:
    """The error that `abort` put into a call's trailing metadata; None too for what is no message."""
    for key, value in metadata or ():
        if key == _ERROR and isinstance(value, bytes):
            with suppress(DecodeError):
                return error_from(pb.Error.FromString(value))
    return None


@contextmanager
def raised() -> Iterator[None]:
    """Around calls: a failed one raises the TandemError it carries, Overloaded if nobody answers."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        sent = carried(error.trailing_metadata())
        if sent is not None:
            raise sent from None
        detail = f"{error.code().name.lower()}: {error.details()}"
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise Overloaded(f"the other end does not answer ({detail})") from error
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise errors.InvalidKey(error.details() or "the control token is wrong") from error
        raise TandemError(f"a call failed ({detail})") from error


class _Guard(grpc.aio.ServerInterceptor):
    """Lets calls in that show the secret, compared in constant time."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the control token is missing or wrong")

        self._refuse = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        for key, value in handler_call_details.invocation_metadata or ():
            if key == "authorization" and hmac.compare_digest(value.encode(), self._expected):
                return await continuation(handler_call_details)
        return self._refuse


class _Showing(grpc.aio.Channel):
    """Shows the secret with every call of a channel.

    An interceptor would too, but passes each message of a stream through a queue and a task of its own.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._shown = (("authorization", f"Bearer {token}"),)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._channel.__aexit__(kind, error, trace)

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return partial(self._channel.unary_unary(*args, **options), metadata=self._shown)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return partial(self._channel.unary_stream(*args, **options), metadata=self._shown)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return partial(self._channel.stream_unary(*args, **options), metadata=self._shown)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return partial(self._channel.stream_stream(*args, **options), metadata=self._shown)


def server(token: str) -> grpc.aio.Server:
    """A server that asks for the secret; add servicers, then `listen`. Raises SetupError without a secret."""
    return grpc.aio.server(interceptors=(_Guard(_known(token)),), options=_SERVER)


def listen(server: grpc.aio.Server, host: str, port: int, *, setting: str, tls: Tls | None = None) -> str:
    """Bind; gives host:port, with the port that was taken for 0. Raises SetupError that names `setting`."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            taken = server.add_insecure_port(address)
        else:
            taken = server.add_secure_port(address, tls.server_credentials())
    except RuntimeError as error:
        raise SetupError(
            f"{host}:{port} cannot be listened on; is it taken? Set {setting}", param=setting
        ) from error
    return f"[{host}]:{taken}" if ":" in host else f"{host}:{taken}"


def reachable(address: str) -> str:
    """An address that others can use: one that stands for all interfaces becomes the machine's own."""
    if _ANYWHERE.search(address) is None:
        return address
    return _ANYWHERE.sub(socket.gethostbyname(socket.gethostname()), address)


def channel(address: str, token: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to host:port that shows the secret with every call. Use it in one event loop only."""
    token = _known(token)
    if tls is None:
        return _Showing(grpc.aio.insecure_channel(address, options=_CHANNEL), token)
    options = [*_CHANNEL, *tls.channel_options]
    return _Showing(grpc.aio.secure_channel(address, tls.channel_credentials(), options), token)


def _known(token: str | None) -> str:
    if not token:
        raise SetupError("no control token: set control.token or start with `tandem up`, which draws one")
    return token
