"""What is written is read again as it was, and what comes over a socket can do no more than be refused."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import TransferFailed
from engine.request import SLO, Request, Sampling
from engine.sequence import Epoch, Phase, Tier
from engine.sequence import Sequence as LiveSequence
from migration import wire_pb2 as pb
from migration.envelope import Envelope, decode, encode
from migration.messages import (
    Abort,
    Commit,
    Committed,
    Contents,
    Copy,
    Hello,
    Proof,
    Refused,
    Renew,
    Resend,
    Reserve,
    Reserved,
    Welcome,
)
from migration.state import OLDEST, VERSION, ChoiceState, RequestState, capture, restore
from migration.transport import Address
from migration.wire import (
    address_from_wire,
    address_to_wire,
    request_from_wire,
    request_to_wire,
    start_from_wire,
    start_message,
    state_from_wire,
    state_to_wire,
)

small = st.integers(0, 2**32 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=20)
tokens = st.lists(small, max_size=20).map(tuple)

samplings = st.builds(
    Sampling,
    max_tokens=small,
    temperature=numbers,
    top_k=small,
    top_p=numbers,
    min_p=numbers,
    seed=st.integers(0, 2**64 - 1),
    n=st.integers(1, 8),
    presence_penalty=numbers,
    frequency_penalty=numbers,
    repetition_penalty=numbers,
    logit_bias=st.lists(st.tuples(small, numbers), max_size=5).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    stop=st.lists(words, max_size=4).map(tuple),
    stop_token_ids=tokens,
    include_stop=st.booleans(),
    ignore_eos=st.booleans(),
    min_tokens=small,
    grammar=words,
)
requests = st.builds(
    Request,
    id=st.text(min_size=1, max_size=20),
    prompt=tokens,
    sampling=samplings,
    arrival=numbers,
    tenant=words,
    priority=st.integers(-(2**31), 2**31 - 1),
    adapter=words,
    effort=numbers,
    salt=words,
    trace=words,
    slo=st.builds(SLO, ttft=st.none() | numbers, tpot=st.none() | numbers),
)
epochs = st.builds(Epoch, small, small)


@st.composite
def states(draw: st.DrawFn) -> RequestState:
    request = draw(requests)
    numbers_ = st.floats(allow_nan=False, allow_infinity=False)
    numbers = draw(st.lists(st.integers(0, request.sampling.n - 1), unique=True))
    choices = []
    for number in numbers:
        output = draw(tokens)
        choices.append(
            ChoiceState(
                choice=number,
                output=output,
                computed=draw(st.integers(0, len(request.prompt) + len(output))),
                phase=draw(st.sampled_from([Phase.WAITING, Phase.PREFILL, Phase.DECODE])),
                tier=draw(st.sampled_from(Tier)),
                blocks=draw(tokens),
                cached=draw(small),
                preemptions=draw(small),
                level=draw(st.none() | small),
                served=draw(numbers_),
            )
        )
    drawn = {choice.choice for choice in choices if choice.output}
    undrawn = tuple(number for number in range(request.sampling.n) if number not in drawn)
    undrawn = draw(st.sampled_from([(), undrawn]))
    return RequestState(request, draw(epochs), draw(words), tuple(choices), undrawn)


hellos = st.builds(
    Hello,
    oldest=small,
    newest=small,
    instance=words,
    layout=words,
    block_size=small,
    block_nbytes=st.integers(0, 2**64 - 1),
    weights_digest=words,
    nonce=st.binary(max_size=20),
    contents=st.none() | st.builds(Contents, small, small, small, words),
)
counts = st.integers(1, 2**21)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    message: Any = draw(
        st.one_of(
            hellos,
            st.builds(Proof, st.binary(max_size=40)),
            st.builds(Welcome, small, st.binary(max_size=40)),
            st.builds(Refused, words, words, st.booleans()),
            st.builds(Reserve, counts, st.booleans()),
            st.builds(Reserved, counts, counts),
            st.builds(Resend, counts),
            st.builds(Copy, counts, counts),
            st.builds(Commit, counts),
            st.just(Committed()),
            st.builds(Abort, words),
            st.just(Renew()),
        )
    )
    request = draw(requests) if isinstance(message, Reserve) else None
    state = draw(states()) if isinstance(message, Commit) else None
    return Envelope(message, draw(words), draw(epochs), request, state)


@given(envelopes())
def test_an_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert decode(encode(envelope)) == envelope


@given(requests)
def test_a_request_is_read_as_it_was_written(request: Request) -> None:
    assert request_from_wire(request_to_wire(request)) == request


@given(states(), st.none() | st.builds(Address, *[words] * 6))
def test_a_start_is_read_as_it_was_written(state: RequestState, decode_at: Address | None) -> None:
    address = None if decode_at is None else address_to_wire(decode_at)
    message = pb.Start(state=state_to_wire(state), decode=address)
    assert start_from_wire(message.SerializeToString()) == (state, decode_at)


def test_a_start_message_carries_the_tokens_so_far_of_a_recovered_request() -> None:
    request = Request("r", (1, 2, 3), Sampling(max_tokens=9, n=3))
    message = start_message(request, Epoch(1, 0), "home", ((0, (7, 8)), (2, ())))
    state, decode_at = start_from_wire(message.SerializeToString())
    assert [(one.choice, one.output) for one in restore(state)] == [(0, [7, 8]), (2, [])]
    assert (state.epoch, state.home, decode_at) == (Epoch(1, 0), "home", None)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    for read in (decode, start_from_wire):
        with contextlib.suppress(TransferFailed):
            read(data)


@given(envelopes(), st.data())
def test_a_damaged_message_is_refused_or_read_as_another(envelope: Envelope, data: st.DataObject) -> None:
    whole = bytearray(encode(envelope))
    if not whole:
        return
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(TransferFailed):
        assert isinstance(decode(bytes(whole)), Envelope)


def changed(**changes: Any) -> pb.RequestState:
    state = RequestState(
        Request("r", (1, 2), Sampling(max_tokens=4, n=2)), choices=(ChoiceState(0, (3,), 2, Phase.DECODE),)
    )
    message = state_to_wire(state)
    for path, value in changes.items():
        *owners, name = path.split("__")
        target: Any = message
        for owner in owners:
            target = target.choices[0] if owner == "choice" else getattr(target, owner)
        if isinstance(value, list):
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    return message


@pytest.mark.parametrize(
    "changes",
    [
        {"version": VERSION + 1},
        {"version": OLDEST - 1},
        {"choice__served": math.nan},
        {"request__id": ""},
        {"request__arrival": math.nan},
        {"request__sampling__temperature": math.inf},
        {"request__tenant": "x" * (1 << 17)},
        {"choice__phase": "paused"},
        {"choice__phase": "asleep"},
        {"choice__tier": "tape"},
        {"choice__computed": 4},
        {"choice__choice": 2},
        {"undrawn": [2]},
        {"undrawn": [0]},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    assert state_from_wire(changed()).choices[0].output == (3,)
    with pytest.raises(TransferFailed):
        state_from_wire(changed(**changes))


def test_a_choice_that_comes_twice_is_refused() -> None:
    message = changed()
    message.choices.append(message.choices[0])
    with pytest.raises(TransferFailed):
        state_from_wire(message)


def test_an_address_is_read_as_it_was_written() -> None:
    address = Address("d", "boot/net", "tandem-1", "10.0.0.1:5")
    assert address_from_wire(address_to_wire(address)) == address


# The schema is whole: a field that is added to a noun must be added here and there too.


def fields(kind: Any) -> set[str]:
    return {one.name for one in dataclasses.fields(kind)}


def wire(message: Any) -> set[str]:
    return {one.name for one in message.DESCRIPTOR.fields}


STAYS = {"scores"}
"""What a client has been sent already; see cluster/takeover.py for whom it is kept."""


def test_every_field_of_a_sequence_travels() -> None:
    per_request = {"request", "epoch", "home"}
    assert fields(LiveSequence) - STAYS == per_request | fields(ChoiceState)
    assert fields(RequestState) == per_request | {"choices", "undrawn", "version"}


def test_every_field_of_the_schema_has_its_place_on_the_wire() -> None:
    assert wire(pb.ChoiceState) == fields(ChoiceState)
    assert wire(pb.RequestState) == fields(RequestState)
    assert wire(pb.Sampling) == fields(Sampling)
    assert wire(pb.Request) == fields(Request) - {"slo"} | {"slo_ttft", "slo_tpot"}
    assert wire(pb.Address) == fields(Address)


@given(states())
def test_what_is_captured_is_restored(state: RequestState) -> None:
    blocks = sorted({block for choice in state.choices for block in choice.blocks})
    if not state.choices:
        return
    index = {block: block for block in blocks}
    live = [
        LiveSequence(
            state.request,
            choice.choice,
            list(choice.output),
            choice.computed,
            choice.phase,
            choice.tier,
            list(choice.blocks),
            state.epoch,
            state.home,
            choice.cached,
            choice.preemptions,
            choice.level,
            choice.served,
        )
        for choice in state.choices
    ]
    captured = capture(live, index, state.undrawn)
    assert captured == state
    assert restore(captured, range(2**32)) == live


@pytest.mark.parametrize(
    ("output", "computed", "phase"),
    [([5], 4, Phase.DECODE), ([5], 2, Phase.PREFILL), ([], 2, Phase.PREFILL), ([], 0, Phase.WAITING)],
)
def test_a_paused_sequence_goes_on_where_it_was(output: list[int], computed: int, phase: Phase) -> None:
    request = Request("r", (1, 2, 3, 4), Sampling(max_tokens=4))
    sequence = LiveSequence(request, 0, output, computed, Phase.PAUSED)
    assert capture([sequence], {}).choices[0].phase is phase


def test_a_restored_sequence_takes_the_epoch_that_was_claimed() -> None:
    state = RequestState(Request("r", (1,), Sampling(max_tokens=4)), Epoch(1, 2), choices=(ChoiceState(0),))
    assert restore(state, epoch=Epoch(1, 3))[0].epoch == Epoch(1, 3)
