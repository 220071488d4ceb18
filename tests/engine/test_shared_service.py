"""One account per tenant over all instances: every token counts once, whatever moves, repeats or is lost."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sequence import SequenceKey
from engine.service import Counters, MovingAverage
from engine.shared_service import Ledger, News, Served, SharedCounters
from tests.engine.mutants import mutate


class World:
    """Three instances and a ledger; choices grow, move and end, and messages are lost."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.instances = [SharedCounters() for _ in range(3)]
        self.ledger = Ledger(SharedCounters())
        self.where: dict[SequenceKey, int] = {}
        self.tokens: dict[SequenceKey, tuple[str, int, int]] = {}

    def step(self) -> None:
        rng = self.rng
        match rng.randrange(5):
            case 0:
                key = SequenceKey(f"r{len(self.tokens)}", 0)
                self.where[key] = rng.randrange(3)
                self.tokens[key] = (f"tenant-{rng.randrange(3)}", rng.randrange(1, 50), 0)
                self._charge(key)
            case 1 | 2 if self.where:
                key = rng.choice(list(self.where))
                tenant, prompt, output = self.tokens[key]
                self.tokens[key] = (tenant, prompt, output + rng.randrange(1, 9))
                self._charge(key)
            case 3 if self.where:
                key = rng.choice(list(self.where))
                self.instances[self.where[key]].leave(key)
                self.where[key] = rng.randrange(3)
                self._charge(key)
            case 4 if self.where:
                key = rng.choice(list(self.where))
                self.instances[self.where.pop(key)].end(key)

    def exchange(self, *, lose: bool = False) -> None:
        for one in self.instances:
            one.adopt(self.ledger.service)
            news = one.news()
            if not lose:
                self.ledger.hear(news)
                if self.rng.random() < 0.2:
                    self.ledger.hear(news)

    def _charge(self, key: SequenceKey) -> None:
        self.instances[self.where[key]].charge(key, *self.tokens[key])

    def served(self) -> dict[str, float]:
        """The oracle: the cost of what each choice came to."""
        totals: dict[str, float] = {}
        for tenant, prompt, output in self.tokens.values():
            totals[tenant] = totals.get(tenant, 0.0) + prompt + 2 * output
        return totals


@given(st.integers(0, 10**6))
def test_every_token_counts_once_through_moves_repeats_and_lost_messages(seed: int) -> None:
    world, lost = World(seed), False
    for _ in range(120):
        world.step()
        if world.rng.random() < 0.3:
            lost = not lost and world.rng.random() < 0.3
            world.exchange(lose=lost)
    world.exchange()
    world.exchange()
    assert dict(world.ledger.service) == pytest.approx(world.served())
    for one in world.instances:
        one.adopt(world.ledger.service)
        assert one.service == pytest.approx(world.served())


def test_mutant_an_account_per_instance_counts_what_moved_twice() -> None:
    key, ledger = SequenceKey("r", 0), Ledger(SharedCounters())
    for instance in ("a", "b"):
        renamed = SequenceKey(f"{instance}/r", 0)
        ledger.hear(News((Served(renamed, "t", 10, 5),)))
    assert ledger.service["t"] == 2 * (10 + 2 * 5)
    ledger = Ledger(SharedCounters())
    for _ in ("a", "b"):
        ledger.hear(News((Served(key, "t", 10, 5),)))
    assert ledger.service["t"] == 10 + 2 * 5


def test_what_others_served_decides_here() -> None:
    here, there, ledger = SharedCounters(), SharedCounters(), Ledger(SharedCounters())
    there.charge(SequenceKey("r", 0), "greedy", 100, 100)
    here.charge(SequenceKey("s", 0), "modest", 10, 10)
    for one in (there, here, here):
        one.adopt(ledger.service)
        ledger.hear(one.news())
    here.adopt(ledger.service)
    assert here.service == {"greedy": 300.0, "modest": 30.0}


def test_who_comes_back_is_lifted_everywhere() -> None:
    here, there, ledger = SharedCounters(), SharedCounters(), Ledger(SharedCounters())
    here.come("busy")
    here.charge(SequenceKey("r", 0), "busy", 100, 0)
    here.come("idle")
    assert here.service["idle"] == 100.0
    ledger.hear(here.news())
    there.adopt(ledger.service)
    assert there.service == {"busy": 100.0, "idle": 100.0}


def test_choices_whose_end_nobody_tells_are_forgotten_in_the_end() -> None:
    ledger = Ledger(SharedCounters(), most=10)
    for number in range(100):
        ledger.hear(News((Served(SequenceKey(f"r{number}", 0), "t", 1, 0),)))
    assert len(ledger._open) == 10 and ledger.service["t"] == 100.0


def predicting() -> MovingAverage:
    """Foretells answers of 100 tokens."""
    predictor = MovingAverage()
    predictor.learn("t", 100)
    return predictor


@pytest.mark.parametrize("prediction", [False, True], ids=["as it comes", "predicted"])
def test_an_answer_within_one_beat_is_told_whole(prediction: bool) -> None:
    predictors = [predicting() if prediction else None for _ in range(2)]
    here, key = SharedCounters(predictor=predictors[0]), SequenceKey("r", 0)
    ledger = Ledger(Counters(predictor=predictors[1]))
    for output in range(41):
        here.charge(key, "t", 10, output)
    here.end(key)
    ledger.hear(here.news())
    assert ledger.service["t"] == here.service["t"] == 10 + 2 * 40


def test_an_end_long_after_the_last_news_is_told() -> None:
    here, key, ledger = SharedCounters(), SequenceKey("r", 0), Ledger(Counters())
    here.charge(key, "t", 10, 3)
    for _ in range(3):
        ledger.hear(here.news())
    here.end(key)
    ledger.hear(here.news())
    assert not ledger._open and ledger._counters.ended(key)


def cancelled_everywhere() -> None:
    here, key = SharedCounters(predictor=predicting()), SequenceKey("r", 0)
    ledger = Ledger(Counters(predictor=predicting()))
    here.charge(key, "t", 10, 3)
    ledger.hear(here.news())
    assert ledger.service["t"] == 10 + 2 * 100
    here.leave(key)
    ledger.hear(here.news())
    assert ledger.service["t"] == here.service["t"] == 10 + 2 * 3


def test_who_is_cancelled_pays_everywhere_for_what_he_had() -> None:
    cancelled_everywhere()


def test_mutant_a_leave_that_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Ledger, "hear", "if one.left:", "if False:")
    with pytest.raises(AssertionError):
        cancelled_everywhere()


def test_a_choice_that_left_and_goes_on_elsewhere_is_charged_on() -> None:
    here, there, key, ledger = SharedCounters(), SharedCounters(), SequenceKey("r", 0), Ledger(Counters())
    here.charge(key, "t", 10, 3)
    here.leave(key)
    there.charge(key, "t", 10, 5)
    for one in (there, here, there, here):
        ledger.hear(one.news())
    assert ledger.service["t"] == 10 + 2 * 5
    there.charge(key, "t", 10, 9)
    ledger.hear(there.news())
    assert ledger.service["t"] == 10 + 2 * 9


def test_who_waits_here_and_was_forgotten_elsewhere_keeps_what_he_had() -> None:
    """Else he would be served before all others until he had as much again."""
    here, ledger = SharedCounters(), Ledger(Counters(most_tenants=5))
    ledger.hear(News((Served(SequenceKey("r", 0), "greedy", 1000, 0, ended=True),)))
    here.adopt(ledger.service)
    here.come("greedy")
    for number in range(8):
        served = Served(SequenceKey(f"s{number}", 0), f"t{number}", 1, 0, ended=True)
        ledger.hear(News((served,)))
    assert "greedy" not in ledger.service
    here.adopt(ledger.service)
    assert here.service["greedy"] == 1000.0
    ledger.hear(here.news())
    assert ledger.service["greedy"] == 1000.0
