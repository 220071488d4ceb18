"""Bodies of requests: what is understood, and which field is named when something is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import openai_extras
from cluster.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse
from engine.errors import (
    InvalidParameter,
    RequestError,
    UnsupportedMediaType,
    UnsupportedParameter,
)

JSON = "application/json"
TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}
OBJECT = {"type": "json_object"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def completion(**fields: Any) -> CompletionBody:
    return parse(CompletionBody, JSON, json.dumps({**TEXT, **fields}).encode())


def chat(**fields: Any) -> ChatBody:
    return parse(ChatBody, JSON, json.dumps({**CHAT, **fields}).encode())


def message(**fields: Any) -> ChatBody:
    return chat(messages=[{"role": "user", **fields}])


def test_the_defaults_are_openais() -> None:
    sampling = completion().sampling(16, seed=7)
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.seed) == (1.0, 1.0, 1, 7)
    assert (sampling.stop, sampling.logprobs, sampling.max_tokens) == ((), None, 16)


def test_a_null_is_the_default() -> None:
    fields = dict.fromkeys(set(CompletionBody.model_fields) - {"model", "prompt"})
    assert completion(**fields).sampling(16, 7) == completion().sampling(16, 7)


def test_every_parameter_reaches_the_sampling() -> None:
    sampling = completion(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        n=2,
        stop=["a", "b"],
        seed=-1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "3": 1.5},
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=[4, 4, 2],
        include_stop_str_in_output=True,
        logprobs=3,
    ).sampling(9, 7)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.n, sampling.stop, sampling.seed) == (2, ("a", "b"), 2**64 - 1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, ((3, 1.5), (5, -100.0)))
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (2, True, (4, 2))
    assert (sampling.include_stop, sampling.logprobs) == (True, 3)


def test_one_stop_string_needs_no_list() -> None:
    assert completion(stop="end").sampling(1, 0).stop == ("end",)


@pytest.mark.parametrize("top_k", [-1, 0])
def test_top_k_is_off_by_either_spelling(top_k: int) -> None:
    assert completion(top_k=top_k).sampling(1, 0).top_k == 0


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert chat(max_tokens=1, max_completion_tokens=2).limit == 2


def test_chat_logprobs_are_asked_for_in_two_fields() -> None:
    assert chat(logprobs=True, top_logprobs=4).alternatives == 4
    assert chat(logprobs=True).alternatives == 0
    assert chat(logprobs=False).alternatives is None


def test_a_developer_speaks_as_the_system() -> None:
    body = chat(messages=[{"role": "developer", "content": "be brief"}])
    assert body.conversation() == [{"role": "system", "content": "be brief"}]


WRONG: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", 10**400),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", float("nan")),
    ("min_p", -1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("n", -1),
    ("n", 0),
    ("n", 129),
    ("n", 10**399),
    ("n", "2"),
    ("n", True),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 1.0),
    ("min_tokens", -1),
    ("seed", 2**63),
    ("seed", "7"),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -2.5),
    ("repetition_penalty", 0),
    ("repetition_penalty", float("-inf")),
    ("logprobs", 6),
    ("logprobs", -1),
    ("logprobs", True),
    ("stop", 5),
    ("stop", [1]),
    ("stop", [""]),
    ("stop", "\ud800"),
    ("stop", ["x"] * 65),
    ("stop_token_ids", [-1]),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"٣": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": float("nan")}),
    ("logit_bias", {"1": "a"}),
    ("logit_bias", [1]),
    ("ignore_eos", "yes"),
    ("stream", 1),
    ("user", 5),
    ("user", "\udfff"),
    ("priority", 2**31),
    ("model", None),
    ("model", 5),
    ("prompt", None),
    ("prompt", 5),
    ("prompt", []),
    ("prompt", [1, "a"]),
    ("prompt", ["a", 1]),
    ("prompt", [[]]),
    ("prompt", [[1], []]),
    ("prompt", [-1]),
    ("prompt", [1.0]),
    ("prompt", [True]),
    ("prompt", {"a": 1}),
    ("prompt", "\ud800"),
    ("prompt", ["ok", "\ud800"]),
    ("prompt", ["x"] * 257),
]


@pytest.mark.parametrize(("param", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_wrong_value_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        completion(**{param: value})
    assert (refusal.value.param or "").partition(".")[0] == param


def test_a_number_of_thousands_of_digits_is_refused_by_name() -> None:
    with pytest.raises(InvalidParameter) as refusal:
        parse(CompletionBody, JSON, b'{"model":"m","prompt":"x","n":' + b"1" * 5000 + b"}")
    assert refusal.value.param == "n"


@pytest.mark.parametrize("missing", ["model", "prompt"])
def test_a_missing_field_is_named(missing: str) -> None:
    body = {name: value for name, value in TEXT.items() if name != missing}
    with pytest.raises(InvalidParameter, match="missing") as refusal:
        parse(CompletionBody, JSON, json.dumps(body).encode())
    assert refusal.value.param == missing


INSIDE: list[tuple[Any, str]] = [
    ([], "messages"),
    ("hi", "messages"),
    (["hi"], "messages.0"),
    ([{"content": "hi"}], "messages.0.role"),
    ([{"role": "robot", "content": "hi"}], "messages.0.role"),
    ([{"role": "user"}], "messages.0.content"),
    ([{"role": "user", "content": 5}], "messages.0.content"),
    ([{"role": "user", "content": "\ud800"}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content.0.text"),
    ([CHAT["messages"][0], {"role": "user", "content": None}], "messages.1.content"),
]


@pytest.mark.parametrize(("messages", "param"), INSIDE, ids=lambda value: repr(value)[:40])
def test_a_path_leads_to_what_is_wrong(messages: Any, param: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        chat(messages=messages)
    assert refusal.value.param == param


UNSUPPORTED: list[tuple[str, Any]] = [
    ("functions", [{}]),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("prediction", {"type": "content"}),
    ("web_search_options", {}),
    ("guided_json", {}),
    ("suffix", "x"),
    ("use_beam_search", True),
    ("bad_words", ["x"]),
    ("prompt_logprobs", 0),
]


@pytest.mark.parametrize(("param", "value"), UNSUPPORTED, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("ask", [completion, chat])
def test_what_would_change_the_meaning_is_refused_by_name(ask: Any, param: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        ask(**{param: value})
    assert refusal.value.param == param


NEUTRAL: list[tuple[str, Any]] = [
    ("tools", []),
    ("tools", None),
    ("tool_choice", "none"),
    ("response_format", {"type": "text"}),
    ("modalities", ["text"]),
    ("suffix", ""),
    ("use_beam_search", False),
]


@pytest.mark.parametrize(("param", "value"), NEUTRAL, ids=lambda value: repr(value)[:30])
def test_a_field_that_asks_for_nothing_is_accepted(param: str, value: Any) -> None:
    assert chat(**{param: value})


@pytest.mark.parametrize("name", ["function_call", "audio"])
def test_what_else_a_message_may_hold_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        chat(messages=[{"role": "assistant", "content": None, name: [{"id": "1"}]}])
    assert refusal.value.param == f"messages.0.{name}"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        message(content=[{"type": "text", "text": "see"}, {"type": kind}])
    assert refusal.value.param == "messages.0.content.1.type"


@pytest.mark.parametrize("body", [completion, chat])
def test_best_of_must_be_n(body: Callable[..., object]) -> None:
    assert body(best_of=2, n=2)
    assert body(best_of=1)
    assert body(best_of=None, n=2)
    for fields in ({"best_of": 3, "n": 2}, {"best_of": 2}):
        with pytest.raises(UnsupportedParameter) as refusal:
            body(**fields)
        assert refusal.value.param == "best_of"


def test_log_probabilities_of_an_echo_are_refused() -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        completion(echo=True, logprobs=1)
    assert refusal.value.param == "logprobs"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"response_format": OBJECT, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "min_tokens"),
        ({"response_format": OBJECT, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"grammar": "x" * 8193}}, "structured_outputs.grammar"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        completion(**fields)
    assert refusal.value.param == param


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(InvalidParameter) as refusal:
        chat(top_logprobs=3)
    assert refusal.value.param == "top_logprobs"


def test_an_unknown_field_is_ignored_and_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_extras, "_warned", set())
    with caplog.at_level(logging.WARNING, logger="tandem.gateway"):
        for _ in range(3):
            completion(frobnicate=1)
    assert [record.getMessage() for record in caplog.records] == [
        "ignoring the unknown request field 'frobnicate'"
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"model": "m",}',
        b"\x00",
    ],
    ids=lambda body: repr(body)[:20],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidParameter):
        parse(CompletionBody, JSON, body)


@pytest.mark.parametrize("media", [JSON, "application/json; charset=utf-8", "Application/JSON"])
def test_json_has_many_names(media: str) -> None:
    assert parse(CompletionBody, media, json.dumps(TEXT).encode())


@pytest.mark.parametrize(
    "media", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_other_media_are_refused(media: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        parse(CompletionBody, media, json.dumps(TEXT).encode())


def test_tokenize_takes_a_prompt_or_messages() -> None:
    assert parse(TokenizeBody, JSON, b'{"prompt": ""}').prompt == ""
    for body in (b"{}", b'{"prompt": "x", "messages": [{"role": "user", "content": "x"}]}'):
        with pytest.raises(InvalidParameter):
            parse(TokenizeBody, JSON, body)


def test_detokenize_takes_token_ids() -> None:
    assert parse(DetokenizeBody, JSON, b'{"tokens": [1, 2]}').tokens == [1, 2]
    with pytest.raises(InvalidParameter):
        parse(DetokenizeBody, JSON, b'{"tokens": [-1]}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *openai_extras._NEUTRAL})


@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5),
    kind=st.sampled_from([CompletionBody, ChatBody]),
)
def test_any_body_is_accepted_or_refused_in_so_many_words(fields: dict[str, Any], kind: Any) -> None:
    body = json.dumps({**(TEXT if kind is CompletionBody else CHAT), **fields}).encode()
    refusal = refusal_of(kind, body)
    if refusal is None:
        assert parse(kind, JSON, body).sampling(5, 0).max_tokens == 5
    else:
        assert refusal.message
        assert refusal.status == 400


def refusal_of(kind: Any, body: bytes) -> RequestError | None:
    try:
        parse(kind, JSON, body)
    except RequestError as refusal:
        return refusal
    return None


@given(st.binary(max_size=60))
def test_any_bytes_are_accepted_or_refused_in_so_many_words(data: bytes) -> None:
    with pytest.raises(InvalidParameter):
        parse(CompletionBody, JSON, data)


def tool(name: str = "look", **rest: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **rest}}


NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "code"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [tool("no spaces")]}, "tools.0.function.name"),
        ({"tools": [tool()] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [tool("other")], "tool_choice": NAMED}, "tool_choice.function.name"),
        ({"tools": [tool()], "tool_choice": "required", "response_format": OBJECT}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ],
)
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        chat(**fields)
    assert refusal.value.param == param


def test_only_a_call_that_has_to_be_made_binds_the_answer() -> None:
    tools = [tool(), tool("go", parameters={"type": "object"})]
    for free in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        assert chat(tools=tools, **free).sampling(9, 0).grammar == ""
    every, named = chat(tools=tools, tool_choice="required"), chat(tools=tools, tool_choice=NAMED)
    assert "look" in every.sampling(9, 0).grammar and "go" in every.sampling(9, 0).grammar
    assert "look" in named.sampling(9, 0).grammar and '"go' not in named.sampling(9, 0).grammar
    assert [one["function"]["name"] for one in named.offered()] == ["look", "go"]
    assert chat(tools=tools, tool_choice="none").offered() == []
    once = chat(tools=tools[:1], tool_choice="required", parallel_tool_calls=False)
    assert once.sampling(9, 0).grammar == named.sampling(9, 0).grammar, "what is named is called once"
    often = chat(tools=tools[:1], tool_choice="required")
    assert often.sampling(9, 0).grammar != once.sampling(9, 0).grammar
    with pytest.raises(UnsupportedParameter, match="tools"):
        completion(tools=tools)


def test_arguments_are_an_object_where_the_schema_does_not_say_so() -> None:
    bound = chat(tools=[tool(parameters={"properties": {"a": {}}})], tool_choice=NAMED)
    assert '"type": "object"' in bound.sampling(9, 0).grammar


def test_earlier_calls_and_their_results_go_into_the_prompt() -> None:
    called = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    assistant, result = chat(messages=turns).conversation()
    assert assistant["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 1}}
    assert result == {"role": "tool", "content": "rain", "tool_call_id": "1", "name": ""}
    for wrong in ("[1]", "{", "5"):
        called["function"] = {"name": "look", "arguments": wrong}
        with pytest.raises(InvalidParameter) as refusal:
            chat(messages=turns)
        assert refusal.value.param == "messages.0.tool_calls.0.function.arguments"
