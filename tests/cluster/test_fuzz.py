"""Whatever comes to the home and control ports is answered with an error of theirs, and they go on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.rpc import carried, channel, error_from
from cluster.stream_order import Piece, TokenOrder
from cluster.token_streams import TokenStreams
from engine.errors import TandemError
from engine.request import Request, Sampling
from engine.sequence import Epoch
from migration import wire_pb2
from tests.cluster.test_control import serving
from tests.engine.mutants import mutate
from tests.migration.bounds import takes_at_most

FACTOR = 200
"""Bytes of Python objects that a byte of a message may become."""

REQUESTS = [Request(f"r{n}", (1, 2), Sampling(max_tokens=6, n=n)) for n in (1, 2)]

numbers = st.integers(0, 9) | st.sampled_from([2**31, 2**32 - 1])
epochs = st.builds(wire_pb2.Epoch, attempt=st.integers(0, 2), move=st.integers(0, 3))
names = st.sampled_from(["r1", "r2", "r3", ""])
reasons = st.sampled_from(["", "", "", "stop", "length", "cancelled", "failed", "nonsense"])
tokens = st.builds(
    pb.Tokens,
    request_id=names,
    choice=numbers,
    epoch=epochs,
    index=numbers,
    tokens=st.lists(numbers, max_size=8),
    text=st.lists(st.text(max_size=3), max_size=9),
    logprobs=st.lists(st.builds(pb.Logprob, logprob=st.floats()), max_size=9),
    finish_reason=reasons,
    stop_string=st.none() | st.text(max_size=3),
    error=st.none() | st.builds(pb.Error, code=st.text(max_size=12), message=st.text(max_size=5)),
)
batches = st.builds(pb.TokenBatch, instance=names, tokens=st.lists(tokens, max_size=4))
claims = st.builds(
    pb.ClaimRequest,
    request_id=names,
    instance=names,
    epoch=epochs,
    length=st.dictionaries(numbers, numbers, max_size=4),
)


class Reader:
    """Checks what reaches a client: each choice in order, without a gap, once, and nothing after its end."""

    def __init__(self, request: Request) -> None:
        self.lengths = [0] * request.sampling.n
        self.over = [False] * request.sampling.n
        self.errors: list[TandemError] = []

    def tokens(self, instance: str, pieces: list[Piece], message: pb.Tokens) -> None:
        for piece in pieces:
            assert not self.over[piece.choice]
            assert piece.index == self.lengths[piece.choice]
            self.lengths[piece.choice] += piece.token is not None
            self.over[piece.choice] = bool(piece.finish)

    def moved(self, instance: str, epoch: Epoch) -> None: ...

    def failed(self, instance: str, error: TandemError) -> None:
        self.errors.append(error)


@given(st.lists(batches | claims, max_size=10))
def test_a_home_takes_any_pushes_and_claims_and_its_streams_stay_whole(everything: list[Any]) -> None:
    streams = TokenStreams()
    orders = [streams.open(request, Reader(request)) for request in REQUESTS]
    size = sum(message.ByteSize() for message in everything)
    with takes_at_most(FACTOR * size):
        for message in everything:
            if isinstance(message, pb.TokenBatch):
                streams.push(message)
            else:
                streams.claim(message)
    for request, order in zip(REQUESTS, orders, strict=True):
        waiting = [len(choice.waiting) for choice in order._choices]
        assert max(waiting) <= request.sampling.max_tokens + 1


@given(st.binary(max_size=200) | tokens.map(lambda one: one.SerializeToString()))
def test_an_error_in_a_trailer_is_read_or_taken_for_none(data: bytes) -> None:
    error = carried((("tandem-error-bin", data),))
    assert error is None or isinstance(error, TandemError)


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 2**31 - 1))
def test_an_error_of_any_code_is_one_of_ours(code: str, message: str, retry: int) -> None:
    assert isinstance(error_from(pb.Error(code=code, message=message, retry_after=retry)), TandemError)


def methods() -> list[str]:
    """Of the control port, all but those that are meant to end the cluster or to stream for ever."""
    services = [pb.DESCRIPTOR.services_by_name[name] for name in ("Control", "Scheduler")]
    return [
        f"/{service.full_name}/{method.name}"
        for service in services
        for method in service.methods
        if method.name not in ("Close", "WatchEvents", "Restart")
    ]


def test_the_control_port_answers_whatever_comes_and_goes_on(full: bool) -> None:
    rng = random.Random(4)
    bodies = [rng.randbytes(rng.randrange(1, 60)) for _ in range(100 if full else 6)]

    async def test() -> None:
        async with serving() as (_, address), channel(address, "secret") as line:
            calls = [
                line.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)(body, timeout=2)
                for path in methods()
                for body in bodies
            ]
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(answer, BaseException):
                    assert isinstance(answer, grpc.aio.AioRpcError), answer
                    # UNKNOWN is an exception at the server: gRPC's own, when it cannot read the message.
                    unread = "DecodeError" in (answer.details() or "")
                    assert unread or answer.code() is not grpc.StatusCode.UNKNOWN, answer.details()
            await control_pb2_grpc.ControlStub(line).GetStatus(pb.StatusRequest(), timeout=5)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_tokens_that_never_fit_are_not_kept() -> None:
    order = TokenOrder(1, 6)
    assert order.push(pb.Tokens(request_id="r", index=1, tokens=[7] * 1000)) == ([], True)
    assert len(order._choices[0].waiting) <= 6


def test_a_home_that_keeps_what_never_fits_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, TokenOrder, "push", "choice.next <= piece.index <= self._most", "True")
    with pytest.raises(AssertionError):
        test_tokens_that_never_fit_are_not_kept()
