"""The embedded model's greedy answers are token for token those of transformers on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.assets import Assets
from model.runner import ModelRunner
from model.tokenizer import Tokenizer
from tests.model.generate import GREEDY, generate
from tests.model.identity import DATA, TIE, Identity, answers


@pytest.fixture
def check(runner: ModelRunner) -> Identity:
    return Identity(runner)


def compare(
    runner: ModelRunner, check: Identity, count: int, chunk: int, together: int, tokens: int = 64
) -> None:
    chosen = answers()[:: len(answers()) // count]
    samplings = [replace(GREEDY, max_tokens=tokens)] * len(chosen)
    outputs = generate(
        runner, [answer.prompt for answer in chosen], samplings, chunk=chunk, together=together
    )
    for answer, output in zip(chosen, outputs, strict=True):
        check.take(answers().index(answer), [drawn.token for drawn in output])
    check.done()


def test_sixteen_at_once_with_chunks_of_sixteen(runner: ModelRunner, check: Identity, full: bool) -> None:
    compare(runner, check, count=40 if full else 20, chunk=16, together=16, tokens=64 if full else 24)


@pytest.mark.parametrize("chunk", [64, 10**6])
def test_one_at_a_time(runner: ModelRunner, check: Identity, full: bool, chunk: int) -> None:
    compare(runner, check, count=40 if full else 2, chunk=chunk, together=1)


def test_prompts_are_tokenised_as_transformers_does(embedded: Assets) -> None:
    tokenizer = Tokenizer(embedded)
    for answer in answers():
        assert tuple(tokenizer.encode(answer.text)) == answer.prompt


def test_a_wrong_token_is_not_excused(check: Identity) -> None:
    tokens = list(answers()[0].tokens)
    tokens[5] += 1
    with pytest.raises(AssertionError, match="token 5"):
        check.take(0, tokens)


def test_a_tie_is_excused_only_if_what_follows_is_right(
    check: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answers()[3]
    monkeypatch.setattr("tests.model.identity.TIE", max(answer.gaps) + 1)
    other = [*answer.tokens[:10], answer.tokens[10] + 1, *answer.tokens[11:]]
    with pytest.raises(AssertionError, match="below the best"):
        check.take(3, other)


def test_the_recorded_answers_are_the_oracle_s(
    oracle: Callable[..., None], embedded: Assets, full: bool, tmp_path: Path
) -> None:
    if not full:
        return
    oracle("greedy.py", embedded.path, DATA / "prompts.json", tmp_path / "answers.json")
    for new, recorded in zip(json.loads((tmp_path / "answers.json").read_text()), answers(), strict=True):
        assert tuple(new["prompt"]) == recorded.prompt
        first = next((n for n in range(64) if new["tokens"][n] != recorded.tokens[n]), None)
        assert first is None or recorded.gaps[first] < TIE
