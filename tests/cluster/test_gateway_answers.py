"""Whole answers: what is generated, where it stops, and what is told about it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.cluster.asking import CHAT, HELLO, TEXT, ask, events, on_cluster
from tests.cluster.doubles import SCRIPT
from tests.cluster.local_cluster import LocalCluster

# Answers


def test_a_completion_goes_on_until_the_model_ends() -> None:
    answer = ask(TEXT, {"prompt": "hi"}).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (SCRIPT, "stop")
    count = len(SCRIPT.encode()) + 1
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": count,
        "total_tokens": count + 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_max_tokens_ends_with_length() -> None:
    choice = ask(TEXT, {"prompt": "hi", "max_tokens": 4}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Once", "length")


def test_without_max_tokens_the_answer_ends_where_the_context_does() -> None:
    answer = ask(TEXT, {"prompt": "hi", "ignore_eos": True}, max_length=50).json()
    assert answer["usage"]["total_tokens"] == 50


def test_without_max_tokens_the_answer_fits_the_kv_cache() -> None:
    response = ask(TEXT, {"prompt": "hi", "n": 3, "ignore_eos": True}, blocks=16, block_size=4)
    assert [choice["finish_reason"] for choice in response.json()["choices"]] == ["length"] * 3


def test_a_chat_answers_as_the_assistant() -> None:
    answer = ask(CHAT, {"messages": HELLO, "max_completion_tokens": 4}).json()
    message = answer["choices"][0]["message"]
    assert (answer["object"], message["role"], message["content"]) == ("chat.completion", "assistant", "Once")


@pytest.mark.parametrize("prompt", ["hi", [104, 105], ["hi"], [[104, 105]]], ids=str)
def test_every_form_of_prompt_is_understood(prompt: Any) -> None:
    answer = ask(TEXT, {"prompt": prompt, "max_tokens": 4, "echo": True}).json()
    assert answer["choices"][0]["text"] == "hiOnce"


def test_several_prompts_are_answered_in_their_order() -> None:
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "echo": True}
    choices = ask(TEXT, body).json()["choices"]
    assert [(choice["index"], choice["text"]) for choice in choices] == [
        (0, "aOnc"),
        (1, "ance"),
        (2, "bOnc"),
        (3, "bnce"),
    ]


def test_parts_of_a_content_are_joined() -> None:
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]
    whole = ask(CHAT, {"messages": HELLO, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    joined = ask(CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}).json()
    assert joined["usage"]["prompt_tokens"] == whole


def test_a_repeated_prompt_is_found_in_the_prefix_cache() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for cached in (0, 8):
            body = {"model": "tiny", "prompt": "0123456789", "max_tokens": 1}
            usage = (await client.post(TEXT, json=body)).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == cached

    on_cluster(run)


# Stop


@pytest.mark.parametrize(("include", "text"), [(False, "Once upon a "), (True, "Once upon a time")])
def test_a_stop_string_ends_the_answer(include: bool, text: str) -> None:
    body = {"prompt": "hi", "stop": ["time", "never"], "include_stop_str_in_output": include}
    choice = ask(TEXT, body).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", "time")


def test_a_stop_string_ends_one_choice_only() -> None:
    choices = ask(TEXT, {"prompt": "hi", "n": 2, "stop": "Once"}).json()["choices"]
    assert [choice["text"] for choice in choices] == ["", SCRIPT[1:]]


def test_a_stop_token_is_no_text() -> None:
    choice = ask(TEXT, {"prompt": "hi", "stop_token_ids": [ord(" ")]}).json()["choices"][0]
    assert (choice["text"], choice["stop_reason"]) == ("Once", 32)


def test_a_stop_string_does_not_count_before_min_tokens() -> None:
    choice = ask(TEXT, {"prompt": "hi", "stop": " ", "min_tokens": 6}).json()["choices"][0]
    assert choice["text"] == "Once upon"


def test_the_model_may_not_end_before_min_tokens() -> None:
    length = len(SCRIPT.encode())
    answer = ask(TEXT, {"prompt": "hi", "min_tokens": length + 3, "max_tokens": length + 9}).json()
    assert answer["usage"]["completion_tokens"] > length + 3


def test_the_end_of_the_answer_may_be_half_a_character() -> None:
    cut = len(SCRIPT.partition("🦊")[0].encode()) + 2
    choice = ask(TEXT, {"prompt": "hi", "max_tokens": cut}).json()["choices"][0]
    assert choice["text"] == SCRIPT.partition("🦊")[0] + "\ufffd"


# Log-probabilities


def test_a_completion_tells_log_probabilities() -> None:
    choice = ask(TEXT, {"prompt": "hi", "max_tokens": 3, "logprobs": 2}).json()["choices"][0]
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.25] * 3,
        "tokens": ["O", "n", "c"],
        "top_logprobs": [{"O": -0.25, "P": -1.5}, {"n": -0.25, "o": -1.5}, {"c": -0.25, "d": -1.5}],
    }


def test_half_a_character_is_spelled_by_its_bytes() -> None:
    at = SCRIPT.index("é")
    body = {"prompt": "hi", "max_tokens": at + 1, "logprobs": 2}
    found = ask(TEXT, body).json()["choices"][0]["logprobs"]
    assert found["tokens"][at] == "bytes:\\xc3"
    assert set(found["top_logprobs"][at]) == {"bytes:\\xc3", "bytes:\\xc4"}


def test_offsets_go_on_from_chunk_to_chunk() -> None:
    chunks = events(ask(TEXT, {"prompt": "hi", "max_tokens": 9, "logprobs": 0, "stream": True}))
    offsets = [offset for c in chunks for offset in c["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == list(range(9))


def test_a_chat_tells_log_probabilities() -> None:
    body = {"messages": HELLO, "max_tokens": 1, "logprobs": True, "top_logprobs": 1}
    found = ask(CHAT, body).json()["choices"][0]["logprobs"]
    token = {"token": "O", "logprob": -0.25, "bytes": [79]}
    assert found == {"content": [{**token, "top_logprobs": [token]}], "refusal": None}


def test_without_top_logprobs_a_chat_tells_the_drawn_ones() -> None:
    body = {"messages": HELLO, "max_tokens": 1, "logprobs": True}
    assert ask(CHAT, body).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


# Headers


def test_a_request_id_is_echoed() -> None:
    response = ask(TEXT, {"prompt": "hi", "max_tokens": 1}, {"x-request-id": "mine-1"})
    assert (response.headers["x-request-id"], response.json()["id"]) == ("mine-1", "cmpl-mine-1")


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, "é"])
def test_an_id_that_is_none_is_replaced(given: str) -> None:
    response = ask(TEXT, {"prompt": "hi", "max_tokens": 1}, {"x-request-id": given.encode()})  # type: ignore[dict-item]
    assert response.headers["x-request-id"].startswith("r-")


def test_an_error_has_a_request_id_too() -> None:
    assert ask(TEXT, {}).headers["x-request-id"].startswith("r-")


def test_the_time_taken_is_told() -> None:
    assert int(ask(TEXT, {"prompt": "hi", "max_tokens": 1}).headers["openai-processing-ms"]) >= 0


def test_instances_are_told_in_debug_only() -> None:
    body = {"prompt": "hi", "max_tokens": 3}
    assert "x-tandem-prefill-instance" not in ask(TEXT, body).headers
    told = ask(TEXT, body, {"x-tandem-debug": "1"})
    assert told.headers["x-tandem-prefill-instance"] == told.json()["tandem"]["prefill"] == "instance-0"


def test_a_stream_tells_where_it_was_decoded_at_its_end() -> None:
    body = {"prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}
    told = events(ask(TEXT, body, {"x-tandem-debug": "1"}))[-1]["tandem"]
    assert told["decode"] == "instance-0"
    assert told["ttft_ms"] > 0
