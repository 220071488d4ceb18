"""Outputs bound to a grammar: whatever is drawn, what comes out is one of its sentences."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch

from engine.plan import Draw
from engine.request import Sampling
from kernels import dispatch
from model import grammar
from model.allowed_tokens import AllowedTokens
from model.assets import Assets
from model.grammar_matcher import Matchers
from model.sampler import draw
from model.tokenizer import Tokenizer

CPU = dispatch.choose(torch.device("cpu"))
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "size": {"enum": ["small", "large", 3]},
        "near": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
    },
    "required": ["city", "size", "near"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"km": {"type": "integer", "maximum": 99}},
                        "required": ["km"], "additionalProperties": False}},
}  # fmt: skip
FUNCTIONS = {"look": CITY, "stop": {"type": "object", "properties": {}, "additionalProperties": False}}


@pytest.fixture(scope="module")
def tokenizer(embedded: Assets) -> Tokenizer:
    return Tokenizer(embedded)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> AllowedTokens:
    return AllowedTokens(lambda: tokenizer)


def walk(tokens: AllowedTokens, tokenizer: Tokenizer, text: str, seed: int) -> tuple[list[int], bool]:
    """An output drawn by lot among what is allowed, with an end as soon as it is; and whether it ended."""
    rng, output = random.Random(seed), list[int]()
    for _ in range(400):
        allowed = tokens.allowed(text, output).nonzero().flatten().tolist()
        ends = [token for token in allowed if token in tokenizer.eos_token_ids]
        if ends:
            return output, True
        output.append(rng.choice(allowed))
    return output, False


def is_city(text: str) -> bool:
    jsonschema.validate(json.loads(text), CITY)
    return True


def is_call(text: str) -> bool:
    calls = text.split("\n</tool_call>")
    assert calls.pop() == "" and len(calls) == 1
    call = json.loads(calls[0].removeprefix("<tool_call>\n"))
    jsonschema.validate(call["arguments"], FUNCTIONS[call["name"]])
    return True


CHOICES = ["a\x7fb", "sunny", 'a "quoted" one\n', "snö 🦊", "\\d"]
SENTENCES: list[tuple[str, Callable[[str], object]]] = [
    (grammar.of_schema(CITY), is_city),
    (grammar.of_calls(FUNCTIONS, many=False), is_call),
    (grammar.of_choices(CHOICES), CHOICES.__contains__),
    (grammar.of_pattern("[A-Z][a-z]{2,4}, [0-9]{4}"), re.compile("[A-Z][a-z]{2,4}, [0-9]{4}").fullmatch),
    ('start: "a"+ | "b" "c"', re.compile("a+|bc").fullmatch),
]


@pytest.mark.parametrize(("text", "holds"), SENTENCES, ids=["schema", "call", "choice", "pattern", "own"])
def test_whatever_is_drawn_is_a_sentence(
    tokens: AllowedTokens, tokenizer: Tokenizer, text: str, holds: Callable[[str], object]
) -> None:
    assert tokens._matchers.fault(text) == ""
    for seed in range(12):
        output, ended = walk(tokens, tokenizer, text, seed)
        assert ended
        assert holds(tokenizer.decode(output, skip_special=False)), tokenizer.decode(output)


def test_without_a_bound_the_same_draws_are_no_sentences(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    text = tokenizer.decode([rng.randrange(tokenizer.vocab_size) for _ in range(20)])
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        is_city(text)


def test_several_calls_follow_one_another(tokens: AllowedTokens, tokenizer: Tokenizer) -> None:
    once, call = (
        grammar.of_calls(FUNCTIONS, many=False),
        '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    )
    often = grammar.of_calls(FUNCTIONS, many=True)
    two = tokenizer.encode(f"{call}\n{call}", parse_special=False, add_bos=False)
    assert may_end(tokens, tokenizer, often, two)
    many = tokenizer.encode("\n".join([call] * (grammar.MOST_CALLS + 1)), parse_special=False, add_bos=False)
    assert not follows(tokens, often, many)
    assert not follows(tokens, once, two)


def follows(tokens: AllowedTokens, text: str, output: list[int]) -> bool:
    return all(bool(tokens.allowed(text, output[:n])[token]) for n, token in enumerate(output))


def may_end(tokens: AllowedTokens, tokenizer: Tokenizer, text: str, output: list[int]) -> bool:
    return follows(tokens, text, output) and bool(tokens.allowed(text, output)[tokenizer.eos_token_ids[0]])


def test_what_may_follow_depends_on_the_output_alone(tokens: AllowedTokens, tokenizer: Tokenizer) -> None:
    text = grammar.of_schema(CITY)
    output, _ = walk(tokens, tokenizer, text, 3)
    for length in random.Random(1).sample(range(len(output) + 1), len(output) + 1):
        fresh = AllowedTokens(lambda: tokenizer)
        fresh._matchers = tokens._matchers  # the vocabulary is read once
        assert torch.equal(tokens.allowed(text, output[:length]), fresh.allowed(text, output[:length]))


def test_twins_that_part_go_their_own_ways(tokens: AllowedTokens, tokenizer: Tokenizer) -> None:
    text = grammar.of_choices(["sun", "snow"])
    sun, snow = (tokenizer.encode(word, add_bos=False) for word in ("sun", "snow"))
    assert sun[0] != snow[0]
    assert not bool(tokens.allowed(text, [])[tokenizer.eos_token_ids[0]])
    for output in (sun, snow):
        assert may_end(tokens, tokenizer, text, output)


def test_states_that_were_forgotten_are_found_again(
    tokenizer: Tokenizer, tokens: AllowedTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.allowed_tokens.MOST_STATES", 1)
    monkeypatch.setattr("model.allowed_tokens.MOST_GRAMMARS", 1)
    small = AllowedTokens(lambda: tokenizer)
    small._matchers = tokens._matchers
    every = [text for text, _ in SENTENCES]
    outputs = [walk(tokens, tokenizer, text, 5)[0] for text in every]
    for length in range(4):
        for text, output in zip(every, outputs, strict=True):
            assert torch.equal(small.allowed(text, output[:length]), tokens.allowed(text, output[:length]))
    assert len(small._states) == len(small._grammars) == 1


def test_what_is_no_sentence_may_only_end(tokens: AllowedTokens, tokenizer: Tokenizer) -> None:
    allowed = tokens.allowed(grammar.of_choices(["sun"]), tokenizer.encode("moon", add_bos=False))
    assert sorted(allowed.nonzero().flatten().tolist()) == sorted(tokenizer.eos_token_ids)


@pytest.mark.parametrize("bad", [float("-inf"), float("nan")])
def test_a_draw_stays_inside_whatever_the_logits_are(
    tokens: AllowedTokens, tokenizer: Tokenizer, bad: float
) -> None:
    text = grammar.of_choices(["sun", "snow"])
    allowed = tokens.allowed(text, [])
    logits = torch.randn(tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    hopeless = logits.masked_fill(allowed, bad)
    for row in (logits, hopeless):
        for temperature in (0.0, 1.0):
            item = Draw(Sampling(max_tokens=9, temperature=temperature, grammar=text), (0, 1), 0)
            ((first, second),) = draw(row[None], [item], CPU, tokens)
            assert allowed[first.token] and allowed[second.token]
    free = Draw(Sampling(max_tokens=9, temperature=0.0), (0,), 0)
    ((drawn,),) = draw(logits[None], [free], CPU, tokens)
    assert not allowed[drawn.token]


def test_bias_and_penalties_choose_among_what_is_allowed(tokens: AllowedTokens, tokenizer: Tokenizer) -> None:
    text = grammar.of_choices(["sun", "snow"])
    likeliest, other = tokens.allowed(text, []).nonzero().flatten().tolist()[:2]
    logits = torch.full((tokenizer.vocab_size,), -1.0)
    logits[likeliest] = 1.0

    def drawn(**changes: Any) -> int:
        item = Draw(Sampling(max_tokens=9, temperature=0.0, grammar=text, **changes), (0,), 0)
        ((found,),) = draw(logits[None], [item], CPU, tokens)
        return found.token

    assert drawn() == likeliest
    assert drawn(logit_bias=((likeliest, -100.0), (other, 50.0))) == other


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (grammar.of_schema({"type": "nothing"}), "Invalid type"),
        (grammar.of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (grammar.of_schema({"$ref": "https://example.com/schema"}), "not"),
        (grammar.of_schema({"type": "object", "properties": {"a": {"maximum": float("inf")}}}), ""),
        (grammar.of_pattern("(a"), "unclosed group"),
        ("start: nowhere", "nowhere"),
        ("", ""),
        ('start: <|nobody|> "a"', "nobody"),
        (grammar.of_pattern("(a{500}){500}"), ""),
    ],
    ids=range(9),
)
def test_a_grammar_that_cannot_be_followed_is_refused_with_the_reason(
    tokens: AllowedTokens, text: str, reason: str
) -> None:
    found = tokens._matchers.fault(text)
    assert found and reason in found and "\n" not in found


def test_a_model_without_an_end_follows_no_grammar(embedded: Assets) -> None:
    endless = Tokenizer(dataclasses.replace(embedded, eos_token_ids=()))
    assert Matchers(endless).fault(grammar.of_schema(CITY)) == "the model has no token that ends an answer"
