"""Exactly once: whatever way tokens come in, the client gets each once, in order, from who may speak."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cluster import control_pb2 as pb
from cluster.stream_order import Ownership, Piece, TokenOrder
from engine.sequence import Epoch
from migration.wire_pb2 import Epoch as WireEpoch


def tokens(
    index: int, *ids: int, epoch: tuple[int, int] = (0, 0), choice: int = 0, finish: str = ""
) -> pb.Tokens:
    return pb.Tokens(
        request_id="r",
        choice=choice,
        epoch=WireEpoch(attempt=epoch[0], move=epoch[1]),
        index=index,
        tokens=ids,
        text=[chr(97 + token % 26) for token in ids],
        finish_reason=finish,
    )


def given(order: TokenOrder, *messages: pb.Tokens) -> list[int | None]:
    return [piece.token for message in messages for piece in order.push(message)[0]]


def test_tokens_come_out_in_the_order_of_their_index() -> None:
    assert given(TokenOrder(1, 9), tokens(1, 11), tokens(2, 12), tokens(0, 10)) == [10, 11, 12]


def test_a_repeat_is_dropped() -> None:
    assert given(TokenOrder(1, 9), tokens(0, 10), tokens(0, 10), tokens(0, 10, 11)) == [10, 11]


def test_choices_do_not_wait_for_each_other() -> None:
    assert given(TokenOrder(2, 9), tokens(1, 11, choice=0), tokens(0, 20, choice=1)) == [20]


def test_nothing_follows_the_end_of_a_choice() -> None:
    assert given(TokenOrder(1, 9), tokens(0, 10, finish="stop"), tokens(1, 11)) == [10]


def test_the_end_goes_with_the_last_token() -> None:
    pieces, _ = TokenOrder(1, 9).push(tokens(0, 10, 11, finish="length"))
    assert [piece.finish for piece in pieces] == ["", "length"]


def test_an_older_attempt_is_fenced() -> None:
    order = TokenOrder(1, 9)
    given(order, tokens(0, 10))
    order.fence(Epoch(1, 0))
    assert order.push(tokens(1, 99)) == ([], False)


def test_a_new_attempt_goes_on_at_the_index_that_was_reached() -> None:
    order = TokenOrder(1, 9)
    given(order, tokens(0, 10), tokens(2, 98))
    order.fence(Epoch(1, 0))
    assert given(order, tokens(1, 11, 12, epoch=(1, 0))) == [11, 12]


def test_what_waited_out_of_order_does_not_outlive_its_attempt() -> None:
    order = TokenOrder(1, 9)
    given(order, tokens(1, 99))
    order.fence(Epoch(1, 0))
    assert given(order, tokens(0, 10, epoch=(1, 0))) == [10]


def test_the_source_may_still_deliver_what_the_claim_took_over() -> None:
    order = TokenOrder(1, 9)
    assert order.claim("b", Epoch(0, 1), {0: 2})
    given(order, tokens(2, 12, epoch=(0, 1)))
    assert given(order, tokens(0, 10, 11)) == [10, 11, 12]


def test_the_source_is_fenced_beyond_what_the_claim_took_over() -> None:
    order = TokenOrder(1, 9)
    order.claim("b", Epoch(0, 1), {0: 1})
    pieces, allowed = order.push(tokens(0, 10, 99))
    assert ([piece.token for piece in pieces], allowed) == ([10], False)


def test_each_move_is_bounded_by_the_next_one() -> None:
    order = TokenOrder(1, 9)
    order.claim("b", Epoch(0, 1), {0: 1})
    order.claim("c", Epoch(0, 2), {0: 3})
    assert order.push(tokens(1, 99)) == ([], False)
    assert given(order, tokens(0, 10), tokens(1, 11, 12, epoch=(0, 1))) == [10, 11, 12]


def test_a_choice_that_had_finished_before_the_claim_may_still_arrive() -> None:
    order = TokenOrder(2, 9)
    order.claim("b", Epoch(0, 1), {1: 4})
    assert given(order, tokens(0, 10, 11, finish="stop")) == [10, 11]


def test_a_claim_is_granted_once() -> None:
    order = TokenOrder(1, 9)
    assert order.claim("b", Epoch(0, 1), {0: 1})
    assert not order.claim("c", Epoch(0, 1), {0: 1})


def test_a_claim_repeated_by_its_owner_is_granted_again() -> None:
    order = TokenOrder(1, 9)
    assert order.claim("b", Epoch(0, 1), {0: 1})
    assert order.claim("b", Epoch(0, 1), {0: 1})


@pytest.mark.parametrize("epoch", [(0, 0), (0, 7), (2, 0)])
def test_a_claim_of_another_attempt_is_refused(epoch: tuple[int, int]) -> None:
    order = TokenOrder(1, 9)
    order.fence(Epoch(1, 0))
    assert not order.claim("b", Epoch(*epoch), {})


def test_an_epoch_that_nobody_claimed_may_not_speak() -> None:
    order = TokenOrder(1, 9)
    assert order.push(tokens(0, 10, epoch=(0, 1))) == ([], False)


def test_what_waits_out_of_order_is_bounded_by_the_length_of_the_answer() -> None:
    order = TokenOrder(1, 4)
    for index in range(1, 1000):
        order.push(tokens(index, index))
    assert given(order, tokens(0, 0)) == [0, 1, 2, 3, 4]


def test_a_gap_is_seen() -> None:
    order = TokenOrder(1, 9)
    order.claim("b", Epoch(0, 1), {0: 1})
    assert order.gaps() == {0: 0}
    given(order, tokens(0, 10))
    assert not order.gaps()
    order.push(tokens(2, 12, epoch=(0, 1)))
    assert order.gaps() == {0: 1}


# Random lives


class World:
    """One choice on its way through instances, which push what they draw in any order, repeatedly and late.

    Who speaks without right says 1000 + its index, so that a wrong token shows.
    """

    def __init__(self, seed: int, order: TokenOrder) -> None:
        self.random = random.Random(seed)
        self.order = order
        self.length = self.random.randrange(1, 30)
        self.got: list[Piece] = []
        self.sent: list[pb.Tokens] = []
        self.epoch = Epoch()
        self.drawn = 0

    def truth(self, index: int) -> int:
        return 7 * index % 501

    def step(self) -> None:
        event = self.random.choice(["draw", "draw", "draw", "push", "repeat", "move", "recover", "stray"])
        if event == "draw" and self.drawn < self.length:
            finish = "stop" if self.drawn == self.length - 1 else ""
            self.sent.append(tokens(self.drawn, self.truth(self.drawn), epoch=self.epoch, finish=finish))
            self.drawn += 1
        elif event == "push" and self.sent:
            self.push(self.sent.pop(self.random.randrange(len(self.sent))))
        elif event == "repeat" and self.sent:
            self.push(self.random.choice(self.sent))
        elif event == "move":
            self.epoch = Epoch(self.epoch.attempt, self.epoch.move + 1)
            assert self.order.claim(f"to {self.epoch}", self.epoch, {0: self.drawn})
        elif event == "recover":
            self.epoch = Epoch(self.epoch.attempt + 1, 0)
            self.order.fence(self.epoch)
            self.drawn = len(self.got)
        elif event == "stray" and self.epoch != (0, 0):
            older = Epoch(self.epoch.attempt, self.epoch.move - 1)
            if self.epoch.move == 0:
                older = Epoch(self.epoch.attempt - 1, self.random.randrange(4))
            index = self.drawn if older.attempt == self.epoch.attempt else self.random.randrange(30)
            self.push(tokens(index, 1000 + index, epoch=older))

    def push(self, message: pb.Tokens) -> None:
        self.got += self.order.push(message)[0]

    def run(self) -> list[int | None]:
        for _ in range(80):
            self.step()
        while not (self.got and self.got[-1].finish):
            for message in self.sent:
                self.push(message)
            self.sent.clear()
            while self.drawn < self.length:
                finish = "stop" if self.drawn == self.length - 1 else ""
                self.sent.append(tokens(self.drawn, self.truth(self.drawn), epoch=self.epoch, finish=finish))
                self.drawn += 1
            if not self.sent:
                break
        return [piece.token for piece in self.got]


def lives(count: int, make: Callable[[], TokenOrder]) -> bool:
    """Whether every life gives each token once and in order."""
    for seed in range(count):
        world = World(seed, make())
        if world.run() != [world.truth(index) for index in range(world.length)]:
            return False
    return True


def test_every_life_gives_each_token_once_and_in_order(full: bool) -> None:
    assert lives(20_000 if full else 600, lambda: TokenOrder(1, 64))


class KeepsRepeats(TokenOrder):
    def push(self, tokens: pb.Tokens) -> tuple[list[Piece], bool]:
        pieces, allowed = super().push(tokens)
        again = [Piece(0, tokens.index, token, "") for token in tokens.tokens]
        return pieces or (again if allowed else []), allowed


class TakesAnyEpoch(TokenOrder):
    def push(self, tokens: pb.Tokens) -> tuple[list[Piece], bool]:
        tokens.epoch.attempt, tokens.epoch.move = self.epoch
        return super().push(tokens)


class ForgetsTheClaimsLength(Ownership):
    def bound(self, epoch: Epoch, choice: int) -> int | None:
        return 0 if epoch.attempt != self.epoch.attempt or epoch > self.epoch else None


class FencesTheSourceAtOnce(Ownership):
    def bound(self, epoch: Epoch, choice: int) -> int | None:
        return None if epoch == self.epoch else 0


def owned(mutant: type[Ownership]) -> TokenOrder:
    order = TokenOrder(1, 64)
    order.ownership = mutant()
    return order


@pytest.mark.parametrize("mutant", [KeepsRepeats, TakesAnyEpoch], ids=lambda mutant: mutant.__name__)
def test_a_wrong_order_fails_some_life(mutant: type[TokenOrder]) -> None:
    assert not lives(600, lambda: mutant(1, 64))


@pytest.mark.parametrize(
    "mutant", [ForgetsTheClaimsLength, FencesTheSourceAtOnce], ids=lambda mutant: mutant.__name__
)
def test_a_wrong_ownership_fails_some_life(mutant: type[Ownership]) -> None:
    assert not lives(600, lambda: owned(mutant))
