"""LangChain's client of OpenAI's API against the gateway: answers, streams, usage, finish reasons, errors."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.cluster.doubles import HastyRunner
from tests.cluster.local_cluster import served_in_a_thread

ASKED = [SystemMessage("Be brief."), HumanMessage("What is a pool?")]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_in_a_thread(blocks=512, max_length=400) as url:
        yield url


def chat(url: str, **settings: object) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="tiny", max_retries=0, timeout=60, **settings
    )  # fmt: skip


def test_an_answer_has_text_usage_and_why_it_ended(url: str) -> None:
    answer = chat(url, max_tokens=12, temperature=0).invoke(ASKED)
    assert answer.text
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "tiny"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + 12


def test_a_stream_is_the_same_answer_in_pieces(url: str) -> None:
    asked = chat(url, max_tokens=12, temperature=0, stream_usage=True)
    pieces = list(asked.stream(ASKED))
    assert len(pieces) > 3
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert isinstance(whole, AIMessageChunk)
    assert whole.text == asked.invoke(ASKED).text
    assert whole.usage_metadata is not None and whole.usage_metadata["output_tokens"] == 12


def test_log_probabilities_and_stop_strings_are_passed_on(url: str) -> None:
    answer = chat(url, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2).invoke(ASKED)
    told = answer.response_metadata["logprobs"]["content"]
    assert len(told) == 8 and all(len(one["top_logprobs"]) == 2 for one in told)
    stop = answer.text[3:5]
    assert len(stop) == 2
    short = chat(url, max_tokens=8, temperature=0).invoke(ASKED, stop=[stop])
    assert short.response_metadata["finish_reason"] == "stop" and stop not in short.text


def test_many_at_once(url: str) -> None:
    answers = chat(url, max_tokens=6, temperature=0).batch([ASKED] * 8)
    assert len({answer.text for answer in answers}) == 1


def test_a_mistake_is_the_error_that_the_client_knows(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(url, temperature=9.0).invoke(ASKED)


class Look(BaseModel):
    """Look at the weather."""

    city: str


def test_calls_of_tools_are_read_from_answers_and_streams() -> None:
    with served_in_a_thread(make_runner=HastyRunner, blocks=512, max_length=900) as url:
        bound = chat(url).bind_tools([Look], tool_choice="required")
        answer = bound.invoke(ASKED)
        assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("Look", {"city": ""})]
        pieces = list(bound.stream(ASKED))
        whole = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        assert isinstance(whole, AIMessageChunk)
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("Look", {"city": ""})]
        for method in ("function_calling", "json_schema"):
            assert chat(url).with_structured_output(Look, method=method).invoke(ASKED) == Look(city="")
