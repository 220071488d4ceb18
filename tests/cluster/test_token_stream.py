"""From the engine to the gateway: every token arrives with its text, whatever happens to the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.home_link import FOREVER, HomeLink
from cluster.stream_text import ChoiceText
from cluster.token_stream import HomeService, TokenPusher
from cluster.token_streams import TokenStreams
from engine.request import Request, Sampling
from engine.sequence import Epoch, FinishReason, Sequence
from migration.wire import epoch_to_wire
from tests.cluster.doubles import EOS, ByteDetokenizer, until
from tests.cluster.local_cluster import TOKEN
from tests.cluster.pushing import Core, Home, emitted, pushing, run, sequence


def test_tokens_arrive_in_order_with_their_text() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("naïve")
            for index in range(len(of.output)):
                pusher.push([emitted(of, index, home.address)])
            await home.until(lambda: len(home.tokens) == 6)
            assert (home.tokens, home.text) == (of.output, "naïve")

    run(test)


def test_a_step_is_one_message_for_all_its_requests() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            sequences = [Sequence(Request(f"r{i}", (1,), Sampling(5)), output=[65 + i]) for i in range(9)]
            pusher.push([emitted(of, 0, home.address) for of in sequences])
            await home.until(lambda: len(home.tokens) == 9)
            assert len(home.batches) == 1

    run(test)


def test_a_stop_string_ends_the_choice_in_the_engine() -> None:
    async def test() -> None:
        home, core = Home(), Core()
        async with pushing(home, core) as pusher:
            of = sequence("one stop two", stop=("stop",))
            for index in range(len(of.output)):
                pusher.push([emitted(of, index, home.address)])
            await home.until(lambda: len(home.tokens) == 8)
            last = home.batches[-1].tokens[-1]
            assert (home.text, last.finish_reason, last.stop_string) == ("one ", "stop", "stop")
            assert core.finished == [("r", 0, 8)]

    run(test)


def test_text_held_back_comes_with_the_last_token() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("a st", stop=("stop",))
            for index in range(4):
                end = FinishReason.LENGTH if index == 3 else None
                pusher.push([emitted(of, index, home.address, finish=end)])
            await home.until(lambda: len(home.tokens) == 4)
            assert home.text == "a st"

    run(test)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_sequence_that_moved_here_goes_on_with_the_same_text(at: int) -> None:
    """Half a character or half a stop string lies before the move."""

    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("stéy", stop=("stop",))
            for index in range(at, len(of.output)):
                pusher.push([emitted(of, index, home.address)])
            await home.until(lambda: len(home.tokens) == len(of.output) - at)
            before = ChoiceText(of.request.sampling, ByteDetokenizer()).replay(of.output[:at])
            assert before + home.text == "stéy"

    run(test)


def test_a_text_that_ended_before_it_moved_ends_here_too() -> None:
    async def test() -> None:
        home, core = Home(), Core()
        async with pushing(home, core) as pusher:
            of = sequence("a stop b", stop=("stop",))
            pusher.push([emitted(of, 7, home.address)])
            await home.until(lambda: len(home.tokens) == 1)
            message = home.batches[0].tokens[0]
            assert (message.index, message.finish_reason, message.stop_string) == (5, "stop", "stop")
            assert core.finished == [("r", 0, 6)]

    run(test)


def test_a_new_attempt_does_not_inherit_an_old_end() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            old = sequence("stop", stop=("stop",))
            for index in range(4):
                pusher.push([emitted(old, index, home.address)])
            new = sequence("x stop", stop=("stop",))
            for index in range(6):
                pusher.push([emitted(new, index, home.address, epoch=Epoch(1, 0))])
            await home.until(lambda: len(home.tokens) == 10)
            assert home.text == "x "

    run(test)


def test_forgotten_text_is_built_anew() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core(), idle=0.0) as pusher:
            one, two = sequence("é" * 5), sequence("ü" * 5)
            two.request = Request("other", (1,), two.request.sampling)
            for index in range(10):
                pusher.push([emitted(one, index, home.address)])
                pusher.push([emitted(two, index, home.address)])
            await home.until(lambda: len(home.tokens) == 20)
            assert sorted(home.text) == sorted("é" * 5 + "ü" * 5)

    run(test)


def test_a_stop_token_is_named_and_is_no_text() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("ab", stop_token_ids=(98,))
            pusher.push([emitted(of, 0, home.address)])
            pusher.push([emitted(of, 1, home.address, finish=FinishReason.STOP, stop_token=98)])
            await home.until(lambda: len(home.tokens) == 2)
            assert (home.text, home.batches[-1].tokens[-1].stop_token) == ("a", 98)

    run(test)


def test_the_models_own_end_is_not_named() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("")
            of.output = [EOS]
            pusher.push([emitted(of, 0, home.address, finish=FinishReason.STOP)])
            await home.until(lambda: len(home.tokens) == 1)
            message = home.batches[0].tokens[0]
            assert (home.text, message.HasField("stop_token")) == ("", False)

    run(test)


def test_what_a_broken_connection_lost_is_sent_again() -> None:
    async def test() -> None:
        home = Home()
        home.silent = True
        async with pushing(home, Core()) as pusher:
            of = sequence("abc")
            pusher.push([emitted(of, 0, home.address)])
            await home.until(lambda: len(home.tokens) == 1)
            await home.server.stop(0)
            pusher.push([emitted(of, 1, home.address)])
            again = Home()
            await again.open(int(home.address.rpartition(":")[2]))
            await again.until(lambda: 98 in again.tokens)
            assert again.tokens == [97, 98]
            await again.server.stop(0)

    run(test)


def test_an_answered_batch_is_not_sent_again() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("abc")
            pusher.push([emitted(of, 0, home.address)])
            await home.until(lambda: len(home.tokens) == 1)
            link = pusher._links[home.address]
            await until(lambda: not link._unanswered)
            await home.server.stop(0)
            again = Home()
            await again.open(int(home.address.rpartition(":")[2]))
            pusher.push([emitted(of, 1, home.address)])
            await again.until(lambda: 98 in again.tokens)
            assert again.tokens == [98]
            await again.server.stop(0)

    run(test)


class Answers(HomeService):
    """The real service, on streams that fence what they are told to; records what it answers."""

    def __init__(self) -> None:
        super().__init__(TokenStreams())
        self.tokens = 0
        self.fence: list[pb.Fence] = []
        self.given: list[pb.PushReply] = []
        self.dropped: list[str] = []
        self._streams.push = self._push  # type: ignore[method-assign]

    def _push(self, batch: pb.TokenBatch) -> pb.PushReply:
        self.tokens += len(batch.tokens)
        return pb.PushReply(fenced=self.fence)

    async def Push(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.PushReply]:
        async for reply in super().Push(request_iterator, context):
            self.given.append(reply)
            yield reply


async def send_one_by_one(service: Answers, count: int, *, end: bool) -> HomeLink:
    """So many tokens in a batch each; gives the link, which then has no batch without its answer."""
    server = rpc.server(TOKEN)
    control_pb2_grpc.add_HomeServicer_to_server(service, server)
    address = rpc.listen(server, "127.0.0.1", 0, setting="none")
    await server.start()
    pusher = TokenPusher("here", lambda _: ByteDetokenizer(), lambda to: rpc.channel(to, TOKEN))
    core, of = Core(), sequence("x" * count)
    core.living["r"] = [of]
    pusher.start(core.call)
    for index in range(count):
        last = FinishReason.LENGTH if end and index == count - 1 else None
        pusher.push([emitted(of, index, address, finish=last)])
        await until(lambda sent=index + 1: service.tokens == sent)
    link = pusher._links[address]
    await until(lambda: not link._unanswered)
    await pusher.close()
    await server.stop(0)
    service.dropped = core.cancelled
    return link


@pytest.mark.parametrize("end", [True, False])
def test_one_answer_stands_for_many_batches(end: bool) -> None:
    """Without an end, an empty batch asks for the last answer when nothing more comes."""

    async def test() -> None:
        service = Answers()
        await send_one_by_one(service, 20, end=end)
        # A machine that stands still for a second has some asked for between.
        assert 20 <= sum(reply.batches for reply in service.given) <= 20 + len(service.given)
        assert len(service.given) <= 10

    run(test)


def test_a_fence_does_not_wait_for_a_batch_that_asks() -> None:
    async def test() -> None:
        service = Answers()
        service.fence = [pb.Fence(request_id="r", epoch=epoch_to_wire(FOREVER))]
        await send_one_by_one(service, 1, end=False)
        assert (service.given[0].batches, service.dropped) == (1, ["r"])

    run(test)


@pytest.mark.parametrize(
    ("living", "owner", "dropped"),
    [((0, 0), (0, 1), True), ((0, 1), (0, 1), False), ((1, 0), (0, 1), False), ((0, 0), FOREVER, True)],
)
def test_a_fenced_request_is_dropped_unless_it_is_newer_here(
    living: tuple[int, int], owner: tuple[int, int], dropped: bool
) -> None:
    async def test() -> None:
        home, core = Home(), Core()
        home.fence = [pb.Fence(request_id="r", epoch=epoch_to_wire(Epoch(*owner)))]
        of = sequence("abc")
        of.epoch = Epoch(*living)
        core.living["r"] = [of]
        async with pushing(home, core) as pusher:
            pusher.push([emitted(of, 0, home.address)])
            await home.until(lambda: len(home.tokens) == 1)
        assert core.cancelled == (["r"] if dropped else [])

    run(test)


def test_a_home_that_stays_away_loses_its_requests_after_the_lease() -> None:
    async def test() -> None:
        core = Core()
        of, other = sequence("abc"), sequence("abc")
        of.home, other.home = "127.0.0.1:9", "127.0.0.1:10"
        core.living |= {"r": [of], "of another home": [other]}
        pusher = TokenPusher(
            "here", lambda _: ByteDetokenizer(), lambda to: rpc.channel(to, TOKEN), lease=0.05
        )
        pusher.start(core.call)
        pusher.push([emitted(of, 0, "127.0.0.1:9")])
        await until(lambda: core.cancelled)
        assert core.cancelled == ["r"]
        await pusher.close()

    run(test)


def test_a_home_that_comes_back_is_told_what_was_dropped_meanwhile() -> None:
    """It would wait for tokens that nobody draws."""

    async def test() -> None:
        home, core = Home(), Core()
        await home.open()
        await home.server.stop(0)
        of = sequence("abc")
        of.home, of.epoch = home.address, Epoch(1, 2)
        core.living["r"] = [of]
        pusher = TokenPusher(
            "here", lambda _: ByteDetokenizer(), lambda to: rpc.channel(to, TOKEN), lease=0.5
        )
        pusher.start(core.call)
        pusher.push([emitted(of, 0, home.address)])
        await until(lambda: core.cancelled)
        del core.living["r"]
        again = Home()
        await again.open(int(home.address.rpartition(":")[2]))
        await again.until(lambda: bool(again.batches))
        (told,) = again.batches[0].tokens
        assert (told.request_id, told.finish_reason, told.error.code) == ("r", "cancelled", "overloaded")
        assert (told.epoch.attempt, told.epoch.move) == (1, 2)
        await pusher.close()
        await again.server.stop(0)

    run(test)


def test_the_texts_of_choices_that_went_elsewhere_are_not_kept() -> None:
    """Nobody says so when one moves, is cancelled, or ends with a stop string."""

    async def test() -> None:
        home, core = Home(), Core()
        async with pushing(home, core, idle=0.0) as pusher:
            others = [Sequence(Request(f"r{i}", (1,), Sampling(5)), output=[97, 98]) for i in range(50)]
            for of in others:
                pusher.push([emitted(of, 0, home.address)])
            stays = sequence("xyz")
            for index in range(3):
                pusher.push([emitted(stays, index, home.address)])
            await home.until(lambda: len(home.tokens) == 53)
            assert list(pusher._texts) == [(stays.key, stays.epoch)]
            assert home.text == "a" * 50 + "xyz"

    run(test)


def test_unanswered_batches_are_bounded() -> None:
    async def test() -> None:
        home = Home()
        home.silent = True
        async with pushing(home, Core()) as pusher:
            of = sequence("x" * 500)
            for index in range(64):
                pusher.push([emitted(of, index, home.address)])
                await home.until(lambda sent=index + 1: len(home.tokens) == sent)
            link = pusher._links[home.address]
            for index in range(64, 69):
                pusher.push([emitted(of, index, home.address)])
            await until(lambda: len(link._pending) == 5)
            assert len(link._unanswered) == 64

    run(test)


def test_a_push_after_the_end_harms_nobody() -> None:
    async def test() -> None:
        home = Home()
        async with pushing(home, Core()) as pusher:
            of = sequence("abc")
            await pusher.close()
            pusher.push([emitted(of, 0, home.address)])
            assert home.batches == []

    run(test)


def test_pushes_for_an_unknown_request_are_fenced_for_ever() -> None:
    batch = pb.TokenBatch(instance="a", tokens=[pb.Tokens(request_id="who", tokens=[1], text=["x"])])
    (fence,) = TokenStreams().push(batch).fenced
    assert (fence.request_id, fence.epoch) == ("who", epoch_to_wire(FOREVER))


def test_a_claim_on_a_request_that_is_over_is_refused() -> None:
    claim = pb.ClaimRequest(request_id="who", instance="a", epoch=epoch_to_wire(Epoch(0, 1)))
    assert not TokenStreams().claim(claim).granted


def test_whoever_does_not_know_the_secret_is_turned_away() -> None:
    async def test() -> None:
        server = rpc.server(TOKEN)
        control_pb2_grpc.add_HomeServicer_to_server(HomeService(TokenStreams()), server)
        address = rpc.listen(server, "127.0.0.1", 0, setting="none")
        await server.start()
        async with rpc.channel(address, "wrong") as channel:
            with pytest.raises(Exception, match="token"):
                await control_pb2_grpc.HomeStub(channel).Claim(pb.ClaimRequest(request_id="r"))
        await server.stop(0)

    run(test)


OUTPUTS = st.text("ab🦊é", min_size=1, max_size=8).map(lambda text: list(text.encode()))
STOPS = st.lists(st.text("abé", min_size=1, max_size=3), max_size=2).map(tuple)


@given(output=OUTPUTS, stops=STOPS, at=st.integers(0, 40), least=st.integers(0, 6))
def test_text_is_a_function_of_the_tokens(
    output: list[int], stops: tuple[str, ...], at: int, least: int
) -> None:
    """One that reads all tokens and one that replays the first of them give the same pieces."""
    sampling = Sampling(max_tokens=99, stop=stops, min_tokens=least)
    whole = ChoiceText(sampling, ByteDetokenizer())
    pieces = [whole.token(token) for token in output]
    split = min(at, len(output))
    moved = ChoiceText(sampling, ByteDetokenizer())
    moved.replay(output[:split])
    assert [moved.token(token) for token in output[split:]] == pieces[split:]
    assert moved.stopped == whole.stopped
