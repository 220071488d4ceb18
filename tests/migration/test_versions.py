"""Two versions of the software talk: the older is read, and gets what it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import TransferFailed
from engine.request import SLO, Request, Sampling
from engine.sequence import Epoch, Phase
from migration import incoming
from migration.envelope import Envelope, decode, encode
from migration.handshake import Identity, agree
from migration.messages import Commit, Hello, Reserve
from migration.state import VERSION, ChoiceState, RequestState
from migration.wire import start_from_wire, start_message
from tests.engine.toy import alone, prompt, request
from tests.migration.pair import Engine, pair
from tests.migration.test_handshake import ONE, OTHER

# What version 1 wrote for the three below, recorded from the last commit that spoke no other.
RECORDED = {
    "HELLO": bytes.fromhex(
        "12001a63080110011a036f6c64223832206c61796572732c20626c6f636b73206f6620313620746f6b656e732c203320"
        "4b56206865616473206f662036342c20666c6f617433322810308080033a066469676573744210303132333435363738"
        "39616263646566"
    ),
    "RESERVE": bytes.fromhex(
        "0a01731204080110023a87010a80010a017212040102ac021a46080911000000000000e03f180321000000000000f03f"
        "3007380249000000000000d03f51000000000000f03f5a0b080511000000000000f8bf60026a03656e64720104880101"
        "2100000000000029402a017430ffffffffffffffffff013a016141000000000000f03f4a017351000000000000e03f10"
        "031801"
    ),
    "COMMIT": bytes.fromhex(
        "0a017312040801100252b9010ab40108011280010a017212040102ac021a46080911000000000000e03f180321000000"
        "000000f03f3007380249000000000000d03f51000000000000f03f5a0b080511000000000000f8bf60026a03656e6472"
        "01048801012100000000000029402a017430ffffffffffffffffff013a016141000000000000f03f4a01735100000000"
        "0000e03f1a04080110022204686f6d652a1e12020708180422066465636f64652a066465766963653202000138014002"
        "3201011002"
    ),
}

SAMPLING = Sampling(
    max_tokens=9,
    temperature=0.5,
    top_k=3,
    seed=7,
    n=2,
    frequency_penalty=0.25,
    logit_bias=((5, -1.5),),
    logprobs=2,
    stop=("end",),
    stop_token_ids=(4,),
    min_tokens=1,
)
ASKED = Request(
    "r",
    (1, 2, 300),
    SAMPLING,
    arrival=12.5,
    tenant="t",
    priority=-1,
    adapter="a",
    salt="s",
    slo=SLO(0.5, None),
)
CHOICE = ChoiceState(0, (7, 8), 4, Phase.DECODE, blocks=(0, 1), cached=1, preemptions=2)
STATE = RequestState(ASKED, Epoch(1, 2), "home", (CHOICE,), (1,), version=1)
LAYOUT = "2 layers, blocks of 16 tokens, 3 KV heads of 64, float32"
MEANT = {
    "HELLO": Envelope(Hello(1, 1, "old", LAYOUT, 16, 49152, "digest", b"0123456789abcdef")),
    "RESERVE": Envelope(Reserve(3, True), "s", Epoch(1, 2), ASKED),
    "COMMIT": Envelope(Commit(2), "s", Epoch(1, 2), state=STATE),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_version_1_wrote_is_read_as_it_was_meant(name: str) -> None:
    assert decode(RECORDED[name]) == MEANT[name]


@pytest.mark.parametrize("name", MEANT)
def test_to_one_of_version_1_the_same_bytes_are_written(name: str) -> None:
    assert encode(MEANT[name]) == RECORDED[name]


def test_what_version_1_does_not_know_is_left_out_for_it() -> None:
    known = replace(STATE, choices=(replace(CHOICE, level=3, served=0.5),))
    assert encode(replace(MEANT["COMMIT"], state=known)) == RECORDED["COMMIT"]
    newer = replace(MEANT["COMMIT"], state=replace(known, version=2))
    assert decode(encode(newer)) == newer


def test_a_state_of_a_version_to_come_is_refused_by_name() -> None:
    later = replace(MEANT["COMMIT"], state=replace(STATE, version=VERSION + 1))
    with pytest.raises(TransferFailed, match=f"version {VERSION + 1}.*upgrade"):
        decode(encode(later))


def test_with_one_that_knows_later_versions_too_the_newest_of_ours_is_spoken() -> None:
    later = replace(OTHER, newest=VERSION + 5).hello()
    assert agree(ONE, later).version == VERSION


class Older(Engine):
    """As it was before version 2."""

    def identity(self, **changes: object) -> Identity:
        return replace(super().identity(**changes), newest=1, contents=None)


@contextmanager
def one_is_older(which: str) -> Iterator[Any]:
    def made(name: str, *arguments: Any, **options: Any) -> Engine:
        return (Older if name == which else Engine)(name, *arguments, **options)

    with pair(made=made) as both:
        yield both


@pytest.mark.parametrize("which", ["p", "d"])
def test_a_request_moves_between_two_versions_in_the_older_ones_words(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = []
    restore = incoming.restore

    def seen(state: RequestState, *arguments: Any) -> Any:
        versions.append(state.version)
        return restore(state, *arguments)

    monkeypatch.setattr(incoming, "restore", seen)
    with one_is_older(which) as both:
        one = request("r", prompt(21), 12)
        both.start(one)
        assert both.home.output(one) == alone(one)
        both.rest()
        assert both.sender.handed == 1
    assert versions == [1]


def test_between_two_of_today_the_newest_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=rf"\[{VERSION}\] == \[1\]"):
        test_a_request_moves_between_two_versions_in_the_older_ones_words("nobody", monkeypatch)


@pytest.mark.parametrize(("which", "handed"), [("p", 0), ("d", 0), ("nobody", 1)])
def test_a_request_with_a_grammar_stays_with_who_can_follow_it(which: str, handed: int) -> None:
    with one_is_older(which) as both:
        plain = request("r", prompt(21), 12)
        one = replace(plain, sampling=replace(plain.sampling, grammar="start: /a+/"))
        both.start(one)
        assert both.home.output(one) == alone(plain)
        both.rest()
        assert both.sender.handed == handed


def test_a_start_is_written_in_the_oldest_version_that_says_all_of_it() -> None:
    bound = replace(ASKED, sampling=replace(SAMPLING, grammar="start: /a+/"))
    for asked, version in ((ASKED, 1), (bound, 3)):
        message = start_message(asked, Epoch(), "home")
        assert message.state.version == version
        assert start_from_wire(message.SerializeToString())[0].request == asked
