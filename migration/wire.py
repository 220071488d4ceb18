"""The bytes of what travels: protobuf out, protobuf in, and nothing that came over a socket is trusted.

Everything that is read raises TransferFailed, whatever the bytes. Sizes are bounded before anything is
built from them: a message by its caller (a frame's header), lists and strings here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from engine.errors import TransferFailed
from engine.request import SLO, Request, Sampling
from engine.sequence import Epoch, Phase, Tier
from migration import wire_pb2 as pb
from migration.state import OLDEST, VERSION, ChoiceState, RequestState, needed
from migration.transport import Address

__all__ = [
    "Address",
    "address_from_wire",
    "address_to_wire",
    "epoch_from_wire",
    "epoch_to_wire",
    "parse",
    "request_from_wire",
    "request_to_wire",
    "start_from_wire",
    "start_message",
    "state_from_wire",
    "state_to_wire",
]

MAX_TOKENS = 1 << 22
"""Tokens of a prompt or an output, and blocks of a session."""

MAX_ITEMS = 4096
"""Choices, stop strings, stop tokens and biases of a request."""

MAX_TEXT = 1 << 16
"""Bytes of any string."""

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Enum)


def parse(kind: type[M], data: bytes) -> M:
    """Raises TransferFailed for what is no `kind`."""
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise TransferFailed(f"{len(data)} bytes are no {kind.__name__}: {error}") from error
    return message


def _few(items: Sequence[object], bound: int, what: str) -> None:
    if len(items) > bound:
        raise TransferFailed(f"{len(items)} {what}, at most {bound} are taken")


def _texts(*texts: str) -> None:
    for text in texts:
        if len(text) > MAX_TEXT:
            raise TransferFailed(f"a string of {len(text)} characters, at most {MAX_TEXT} are taken")


def _finite(numbers: Iterable[float]) -> None:
    if not all(map(math.isfinite, numbers)):
        raise TransferFailed("a number is not finite")


def _name(kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        raise TransferFailed(f"unknown {kind.__name__.lower()} {value[:32]!r}") from error


def epoch_to_wire(epoch: Epoch) -> pb.Epoch:
    return pb.Epoch(attempt=epoch.attempt, move=epoch.move)


def epoch_from_wire(message: pb.Epoch) -> Epoch:
    return Epoch(message.attempt, message.move)


def address_to_wire(address: Address) -> pb.Address:
    return pb.Address(
        instance=address.instance,
        host=address.host,
        shm=address.shm,
        tcp=address.tcp,
        nccl=address.nccl,
        nixl=address.nixl,
    )


def address_from_wire(message: pb.Address) -> Address:
    ways = message.shm, message.tcp, message.nccl, message.nixl
    _texts(message.instance, message.host, *ways)
    return Address(message.instance, message.host, *ways)


def _sampling_to_wire(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        n=sampling.n,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=[pb.Bias(token=token, bias=bias) for token, bias in sampling.logit_bias],
        logprobs=sampling.logprobs,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        include_stop=sampling.include_stop,
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens,
        grammar=sampling.grammar,
    )


def _sampling_from_wire(message: pb.Sampling) -> Sampling:
    _few(message.logit_bias, MAX_ITEMS, "biases")
    _few(message.stop, MAX_ITEMS, "stop strings")
    _few(message.stop_token_ids, MAX_ITEMS, "stop tokens")
    _texts(*message.stop, message.grammar)
    penalties = (message.presence_penalty, message.frequency_penalty, message.repetition_penalty)
    _finite((message.temperature, message.top_p, message.min_p, *penalties))
    _finite(entry.bias for entry in message.logit_bias)
    return Sampling(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        seed=message.seed,
        n=message.n,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        repetition_penalty=message.repetition_penalty,
        logit_bias=tuple((entry.token, entry.bias) for entry in message.logit_bias),
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        include_stop=message.include_stop,
        ignore_eos=message.ignore_eos,
        min_tokens=message.min_tokens,
        grammar=message.grammar,
    )


def request_to_wire(request: Request) -> pb.Request:
    return pb.Request(
        id=request.id,
        prompt=request.prompt,
        sampling=_sampling_to_wire(request.sampling),
        arrival=request.arrival,
        tenant=request.tenant,
        priority=request.priority,
        adapter=request.adapter,
        effort=request.effort,
        salt=request.salt,
        trace=request.trace,
        slo_ttft=request.slo.ttft,
        slo_tpot=request.slo.tpot,
    )


def request_from_wire(message: pb.Request) -> Request:
    """Raises TransferFailed for a request out of bounds, without an id, or without sampling."""
    _few(message.prompt, MAX_TOKENS, "prompt tokens")
    _texts(message.id, message.tenant, message.adapter, message.salt, message.trace)
    _finite((message.arrival, message.effort, message.slo_ttft, message.slo_tpot))
    if not message.id or not message.HasField("sampling"):
        raise TransferFailed("a request without an id or without sampling")
    return Request(
        id=message.id,
        prompt=tuple(message.prompt),
        sampling=_sampling_from_wire(message.sampling),
        arrival=message.arrival,
        tenant=message.tenant,
        priority=message.priority,
        adapter=message.adapter,
        effort=message.effort,
        salt=message.salt,
        trace=message.trace,
        slo=SLO(
            ttft=message.slo_ttft if message.HasField("slo_ttft") else None,
            tpot=message.slo_tpot if message.HasField("slo_tpot") else None,
        ),
    )


def state_to_wire(state: RequestState) -> pb.RequestState:
    return pb.RequestState(
        version=state.version,
        request=request_to_wire(state.request),
        epoch=epoch_to_wire(state.epoch),
        home=state.home,
        choices=[
            pb.ChoiceState(
                choice=choice.choice,
                output=choice.output,
                computed=choice.computed,
                phase=choice.phase.value,
                tier=choice.tier.value,
                blocks=choice.blocks,
                cached=choice.cached,
                preemptions=choice.preemptions,
                level=choice.level if state.version >= 2 else None,
                served=choice.served if state.version >= 2 else 0.0,
            )
            for choice in state.choices
        ],
        undrawn=state.undrawn,
    )


def _choice_from_wire(message: pb.ChoiceState, prompt: int) -> ChoiceState:
    _few(message.output, MAX_TOKENS, "output tokens")
    _few(message.blocks, MAX_TOKENS, "blocks")
    if message.computed > prompt + len(message.output):
        raise TransferFailed(f"{message.computed} computed of {prompt + len(message.output)} tokens")
    _finite((message.served,))
    phase = _name(Phase, message.phase)
    if phase in (Phase.PAUSED, Phase.FINISHED):
        raise TransferFailed(f"a choice that goes on {phase.value}")
    return ChoiceState(
        choice=message.choice,
        output=tuple(message.output),
        computed=message.computed,
        phase=phase,
        tier=_name(Tier, message.tier),
        blocks=tuple(message.blocks),
        cached=message.cached,
        preemptions=message.preemptions,
        level=message.level if message.HasField("level") else None,
        served=message.served,
    )


def state_from_wire(message: pb.RequestState) -> RequestState:
    """Raises TransferFailed for another version, or for choices that cannot be the request's."""
    if not OLDEST <= message.version <= VERSION:
        raise TransferFailed(
            f"state of version {message.version}, {OLDEST} to {VERSION} are spoken here: upgrade the older"
        )
    _few(message.choices, MAX_ITEMS, "choices")
    _texts(message.home)
    request = request_from_wire(message.request)
    choices = tuple(_choice_from_wire(choice, len(request.prompt)) for choice in message.choices)
    _few(message.undrawn, MAX_ITEMS, "choices")
    numbers, undrawn = {choice.choice for choice in choices}, set(message.undrawn)
    if len(numbers) < len(choices) or any(number >= request.sampling.n for number in numbers | undrawn):
        numbers |= undrawn
        raise TransferFailed(f"choices {sorted(numbers)} of a request with n = {request.sampling.n}")
    if any(choice.output for choice in choices if choice.choice in undrawn):
        raise TransferFailed("a choice that has drawn a token stands for choices that have not")
    return RequestState(
        request=request,
        epoch=epoch_from_wire(message.epoch),
        home=message.home,
        choices=choices,
        undrawn=tuple(message.undrawn),
        version=message.version,
    )


def start_message(
    request: Request,
    epoch: Epoch,
    home: str,
    outputs: Iterable[tuple[int, Sequence[int]]] = (),
    decode: pb.Address | None = None,
) -> pb.Start:
    """What a gateway sends to an instance, which may be older: in the oldest version that says all of it.

    `outputs`: the tokens so far of each choice of a recovered one.
    """
    choices = tuple(ChoiceState(choice, tuple(tokens)) for choice, tokens in outputs)
    state = RequestState(request, epoch, home, choices, version=needed(request))
    return pb.Start(state=state_to_wire(state), decode=decode)


def start_from_wire(data: bytes) -> tuple[RequestState, Address | None]:
    """The request, and where its decode happens if not at the receiver. Raises TransferFailed."""
    message = parse(pb.Start, data)
    decode = address_from_wire(message.decode) if message.HasField("decode") else None
    return state_from_wire(message.state), decode
