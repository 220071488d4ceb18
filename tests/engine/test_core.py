"""What one instance does with requests from submission to their last token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.errors import Conflict, ContextLengthExceeded, InvalidParameter, Overloaded
from engine.planner import Planner
from engine.request import Request
from engine.sequence import Epoch, FinishReason, Sequence
from tests.engine.mutants import mutate
from tests.engine.toy import EOS, Bench, alone, prompt, request


def test_a_request_gets_the_tokens_it_would_get_alone() -> None:
    bench, one = Bench(), request("a", prompt(37), 20)
    bench.core.submit(one)
    bench.drain()
    assert bench.output("a") == alone(one)
    assert bench.finish("a") is FinishReason.LENGTH


@pytest.mark.parametrize("budget", [1, 3, 4, 7, 16, 64])
def test_chunk_size_changes_no_token(budget: int) -> None:
    bench, one = Bench(budget=budget), request("a", prompt(33), 9)
    bench.core.submit(one)
    bench.drain()
    assert bench.output("a") == alone(one)
    assert bench.core.status().chunks == -(-33 // budget)


def test_nothing_is_drawn_before_the_last_chunk() -> None:
    bench = Bench(budget=8)
    bench.core.submit(request("a", prompt(20), 1))
    bench.drain()
    assert [plan.works[0].draw is not None for plan in bench.runner.plans] == [False, False, True]


def test_requests_that_join_and_leave_at_any_time_get_the_tokens_they_would_get_alone(full: bool) -> None:
    bench = Bench(total=200, budget=24)
    requests = [
        request(f"r{i}", prompt(1 + (11 * i) % 40, i % 5), 1 + (7 * i) % 30, seed=i, ignore_eos=i % 3 > 0)
        for i in range(2000 if full else 200)
    ]
    for i, one in enumerate(requests):
        bench.core.submit(one)
        for _ in range(i % 4):
            bench.step()
    bench.drain()
    assert {one.id: bench.output(one.id) for one in requests} == {one.id: alone(one) for one in requests}


def first_steps(bench: Bench) -> dict[str, int]:
    steps: dict[str, int] = {}
    for index, plan in enumerate(bench.runner.plans):
        for work in plan.works:
            steps.setdefault(work.request_id, index)
    return steps


def crowd(bench: Bench) -> list[int]:
    """Long and short prompts in turn on a pool that holds few of them: when each first ran."""
    names = [f"r{i}" for i in range(12)]
    for i, name in enumerate(names):
        bench.core.submit(request(name, prompt(40 if i % 3 == 1 else 3, i), 6))
    bench.drain()
    steps = first_steps(bench)
    return [steps[name] for name in names]


def test_requests_start_in_the_order_of_their_arrival() -> None:
    starts = crowd(Bench(total=16, budget=64))
    assert starts == sorted(starts)


def test_skipping_who_does_not_fit_would_break_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, Planner, "_candidates", "if missing > ", "if False and missing > ")
    mutate(monkeypatch, Planner, "_plan", "admitting = admitting and ", "admitting = ")
    starts = crowd(Bench(total=16, budget=64))
    assert starts != sorted(starts)


def test_a_batch_is_never_larger_than_max_sequences() -> None:
    bench = Bench(total=200, budget=100, max_sequences=5)
    for i in range(20):
        bench.core.submit(request(f"r{i}", prompt(3, i), 4, n=1 + i % 3))
    bench.drain()
    assert max(sum(len(w.draw.choices) if w.draw else 1 for w in p.works) for p in bench.runner.plans) == 5


def test_decodes_and_a_prompt_share_a_step() -> None:
    bench = Bench(budget=8)
    bench.core.submit(request("a", prompt(4), 9))
    bench.step()
    bench.core.submit(request("b", prompt(20, 1), 9))
    bench.step()
    assert [(w.request_id, len(w.tokens)) for w in bench.runner.plans[-1].works] == [("a", 1), ("b", 7)]


def test_the_step_that_finishes_a_request_says_so_and_frees_its_blocks() -> None:
    bench = Bench(prefix_cache=False)
    bench.core.submit(request("a", prompt(9), 1))
    outcome = bench.step()
    assert outcome is not None
    assert [one.finish for one in outcome.emitted] == [FinishReason.LENGTH]
    assert bench.core.pool.free == bench.core.pool.total


def test_a_request_that_can_never_fit_is_refused_and_the_setting_named() -> None:
    with pytest.raises(ContextLengthExceeded, match=r"engine\.kv_memory"):
        Bench(total=8).core.submit(request("a", prompt(20), 14))


def test_choices_that_can_never_fit_together_are_refused() -> None:
    bench = Bench(total=8)
    bench.core.submit(request("a", prompt(8), 9, n=3))
    with pytest.raises(ContextLengthExceeded, match=r"engine\.kv_memory"):
        bench.core.submit(request("b", prompt(8), 9, n=4))


@pytest.mark.parametrize(
    ("one", "error", "names"),
    [
        (request("a", ()), InvalidParameter, "prompt"),
        (request("a", prompt(4), 0), InvalidParameter, "max_tokens"),
        (request("a", prompt(4), n=17), InvalidParameter, r"engine\.max_sequences"),
        (request("a", prompt(50), 1), ContextLengthExceeded, "50 tokens and the context ends at 50"),
    ],
    ids=["no prompt", "no output", "too many choices", "prompt as long as the context"],
)
def test_what_makes_no_sense_is_refused(one: Request, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        Bench(max_length=50).core.submit(one)


def test_a_full_queue_is_overloaded_and_says_what_to_raise() -> None:
    bench = Bench(queue_limit=2)
    for name in "ab":
        bench.core.submit(request(name, prompt(3)))
    with pytest.raises(Overloaded, match=r"engine\.queue_limit"):
        bench.core.submit(request("c", prompt(3)))
    assert bench.core.sequences("c") == []


def test_a_request_that_lives_here_is_not_taken_twice() -> None:
    bench = Bench()
    bench.core.submit(request("a", prompt(3)))
    with pytest.raises(Conflict):
        bench.core.submit(request("a", prompt(3)))


def test_a_newer_attempt_takes_the_place_of_the_older() -> None:
    bench, one = Bench(), request("a", prompt(9), 8)
    bench.core.submit(one)
    bench.step()
    bench.step()
    so_far = Sequence(one, 0, bench.output("a"))
    bench.core.submit(one, choices=[so_far], epoch=Epoch(attempt=1))
    bench.drain()
    assert bench.output("a") == alone(one)
    assert {one.epoch for one in bench.emitted[2:]} == {Epoch(attempt=1)}


def test_a_recovered_request_goes_on_with_its_unfinished_choices() -> None:
    bench, one = Bench(budget=64), request("a", prompt(10), 8, n=3)
    so_far = [Sequence(one, choice, alone(one, choice)[:4]) for choice in (0, 2)]
    bench.core.submit(one, choices=so_far)
    bench.drain()
    for choice in (0, 2):
        mine = [e.drawn.token for e in bench.emitted if e.key.choice == choice and e.drawn]
        assert mine == alone(one, choice)[4:]
    assert {e.key.choice for e in bench.emitted} == {0, 2}


def test_recovered_choices_without_output_share_their_prompt() -> None:
    bench, one = Bench(budget=64), request("a", prompt(10), 3, n=3)
    bench.core.submit(one, choices=[Sequence(one, 1), Sequence(one, 2)])
    bench.drain()
    assert [bench.output("a", choice) for choice in (1, 2)] == [alone(one, 1), alone(one, 2)]
    assert bench.core.status().prompt_tokens == 10


def test_a_choice_that_has_finished_is_not_recovered() -> None:
    one = request("a", prompt(3), 4)
    with pytest.raises(InvalidParameter, match="it has finished"):
        Bench().core.submit(one, choices=[Sequence(one, 0, [1, 2, 3, 4])])


def ending(**sampling: object) -> tuple[list[int], Bench]:
    """A request whose fifth token is the one that may end it."""
    bench, plain = Bench(), request("a", prompt(5, 3), 12)
    bench.core.submit(replace(plain, sampling=replace(plain.sampling, **sampling)))  # type: ignore[arg-type]
    bench.drain()
    return bench.output("a"), bench


def with_eos() -> tuple[tuple[int, ...], int]:
    """A prompt after which EOS is drawn within a few tokens, and at which index."""
    for salt in range(200):
        output = alone(request("a", prompt(4, salt), 30, ignore_eos=True))
        if EOS in output[2:6]:
            return prompt(4, salt), output.index(EOS)
    raise AssertionError


def test_eos_ends_a_choice_and_is_its_last_token() -> None:
    bench, (tokens, index) = Bench(), with_eos()
    bench.core.submit(request("a", tokens, 30, ignore_eos=False))
    bench.drain()
    assert len(bench.output("a")) == index + 1
    assert bench.finish("a") is FinishReason.STOP
    assert bench.emitted[-1].stop_token is None


def test_ignored_eos_does_not_end_a_choice() -> None:
    bench, (tokens, _) = Bench(), with_eos()
    bench.core.submit(request("a", tokens, 30, ignore_eos=True))
    bench.drain()
    assert len(bench.output("a")) == 30


def test_a_stop_token_ends_a_choice_and_is_named() -> None:
    token = alone(request("a", prompt(5, 3), 12))[4]
    output, bench = ending(stop_token_ids=(token,))
    assert output == alone(request("a", prompt(5, 3), 12))[: output.index(token) + 1]
    assert bench.finish("a") is FinishReason.STOP
    assert bench.emitted[-1].stop_token == token


def test_nothing_that_ends_a_choice_is_drawn_before_min_tokens() -> None:
    token = alone(request("a", prompt(5, 3), 12))[0]
    output, _ = ending(stop_token_ids=(token,), min_tokens=6, ignore_eos=False)
    assert len(output) >= 6
    assert not {token, EOS} & set(output[:6])


def test_the_context_ends_a_choice() -> None:
    bench = Bench(max_length=12)
    bench.core.submit(request("a", prompt(9), 30))
    bench.drain()
    assert len(bench.output("a")) == 3
    assert bench.finish("a") is FinishReason.LENGTH


@pytest.mark.parametrize(
    "changes", [{"presence_penalty": 0.5}, {"grammar": "start: /a+/"}], ids=["penalty", "grammar"]
)
def test_who_looks_back_is_given_the_tokens_and_others_are_not(changes: dict[str, Any]) -> None:
    bench, one = Bench(), request("a", prompt(4), 3)
    sampling = replace(one.sampling, **changes)
    bench.core.submit(replace(one, id="b", sampling=sampling))
    bench.core.submit(one)
    bench.step()
    draws = {work.request_id: work.draw for work in bench.runner.plans[-1].works}
    assert draws["b"] is not None
    assert draws["a"] is not None
    assert tuple(draws["b"].prompt) == one.prompt
    assert tuple(draws["a"].prompt) == ()


def test_waiting_and_prefill_time_come_with_the_tokens() -> None:
    bench = Bench(budget=4)
    bench.now = 10.0
    bench.core.submit(request("a", prompt(12), 2), now=9.0)
    bench.drain()
    assert (bench.emitted[0].queued, bench.emitted[0].prefilled) == (2.0, 2.0)


def test_status_counts_what_happened() -> None:
    bench = Bench(total=64, budget=8)
    bench.core.submit(request("a", prompt(12), 3))
    bench.core.submit(request("b", prompt(7, 1), 3))
    bench.step()
    status = bench.core.status()
    assert (status.running, status.waiting, status.waiting_tokens) == (1, 1, 7)
    assert status.prefill_tokens == 4, "8 of 12 have been read"
    bench.drain()
    status = bench.core.status()
    assert (status.prompt_tokens, status.output_tokens, status.arrivals) == (19, 6, 2)
    assert status.prefill_tokens == 0
    assert status.steps == len(bench.runner.plans)
