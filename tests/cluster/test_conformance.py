"""Real clients and OpenAI's own schemas against a gateway that listens, in front of real engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
import requests
import schemathesis
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS
from pydantic import BaseModel
from schemathesis import GenerationMode

from tests.cluster.conforming import (
    HELLO,
    TOOLS,
    chunks,
    complies,
    openai_schemas,
    valid,
    valid_completion,
    withstands,
)
from tests.cluster.doubles import SCRIPT, HastyRunner
from tests.cluster.local_cluster import served_in_a_thread


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_in_a_thread(make_runner=HastyRunner, blocks=4096, max_length=400) as address:
        yield address


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return openai_schemas()


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


# OpenAI's own client


def test_the_sdk_reads_calls_of_functions(url: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            asked: Any = {"model": "tiny", "messages": HELLO, "tools": TOOLS, "tool_choice": "required"}
            answer = await api.chat.completions.create(**asked)
            (choice,) = answer.choices
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            assert choice.message.tool_calls is not None
            (call,) = choice.message.tool_calls
            assert call.type == "function" and call.function.name == "look"
            assert json.loads(call.function.arguments) == {"city": ""}
            async with api.chat.completions.stream(**asked) as stream:
                whole = (await stream.get_final_completion()).choices[0]
            assert whole.finish_reason == "tool_calls"
            assert whole.message.tool_calls is not None
            assert whole.message.tool_calls[0].function.arguments == call.function.arguments
            again = [*HELLO, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
            told = await api.chat.completions.create(model="tiny", messages=again, tools=asked["tools"])
            assert told.choices[0].message.content == SCRIPT

    asyncio.run(run())


def test_the_sdk_parses_an_answer_into_a_class(url: str) -> None:
    class Place(BaseModel):
        city: str
        far: bool

    async def run() -> None:
        async with client(url) as api:
            answer = await api.chat.completions.parse(model="tiny", messages=HELLO, response_format=Place)
            assert answer.choices[0].message.parsed == Place(city="", far=False)

    asyncio.run(run())


def test_the_sdk_reads_a_chat(url: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            answer = await api.chat.completions.create(model="tiny", messages=HELLO)
            assert answer.choices[0].message.content == SCRIPT
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None

    asyncio.run(run())


def test_the_sdk_reads_a_stream_of_a_chat(url: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            stream = await api.chat.completions.create(
                model="tiny",
                messages=HELLO,
                n=2,
                stream=True,
                logprobs=True,
                top_logprobs=2,
                stream_options={"include_usage": True},
            )
            texts, usage = {0: "", 1: ""}, None
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            assert texts == {0: SCRIPT, 1: SCRIPT[1:]}
            assert usage is not None

    asyncio.run(run())


def test_the_sdk_reads_completions(url: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            answer = await api.completions.create(model="tiny", prompt=["a", "b"], max_tokens=4, logprobs=1)
            assert [choice.text for choice in answer.choices] == ["Once", "Once"]
            stream = await api.completions.create(model="tiny", prompt="a", max_tokens=4, stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "Once"

    asyncio.run(run())


def test_the_sdk_lists_models(url: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            assert [model.id async for model in api.models.list()] == ["tiny"]
            assert (await api.models.retrieve("tiny")).owned_by == "tandem"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 400}, openai.BadRequestError, "messages"),
        ({"tools": [{"type": "code"}]}, openai.BadRequestError, "tools.0.type"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
    ],
)
def test_the_sdk_raises_what_fits(url: str, fields: dict[str, Any], error: type, param: str) -> None:
    async def run() -> None:
        async with client(url) as api:
            with pytest.raises(error) as raised:
                await api.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
            assert raised.value.param == param
            assert raised.value.request_id

    asyncio.run(run())


# OpenAI's own schema


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"logprobs": True, "top_logprobs": 3},
        {"stop": "time"},
        {"max_tokens": 3},
        {"tools": TOOLS, "tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
    ],
    ids=str,
)
def test_chats_are_valid(url: str, spec: dict[str, Any], fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": HELLO, **fields}
    valid(spec, "CreateChatCompletionResponse", requests.post(f"{url}/v1/chat/completions", json=body).json())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in chunks(url, "chat/completions", {**body, **options}):
        valid(spec, "CreateChatCompletionStreamResponse", chunk)


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": 3}, {"echo": True, "max_tokens": 3}], ids=str)
def test_completions_are_valid(url: str, spec: dict[str, Any], fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": "hi", **fields}
    valid(spec, "CreateCompletionResponse", requests.post(f"{url}/v1/completions", json=body).json())
    for chunk in chunks(url, "completions", {**body, "stream": True}):
        valid_completion(spec, chunk)


def test_models_and_errors_are_valid(url: str, spec: dict[str, Any]) -> None:
    valid(spec, "ListModelsResponse", requests.get(f"{url}/v1/models").json())
    valid(spec, "Model", requests.get(f"{url}/v1/models/tiny").json())
    for response in (
        requests.get(f"{url}/v1/models/other"),
        requests.get(f"{url}/nowhere"),
        requests.post(f"{url}/v1/completions", json={}),
    ):
        valid(spec, "ErrorResponse", response.json())


def test_the_schema_would_see_a_missing_field(url: str, spec: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
    answer = requests.post(f"{url}/v1/chat/completions", json=body).json()
    del answer["choices"][0]["logprobs"]
    with pytest.raises(jsonschema.ValidationError):
        valid(spec, "CreateChatCompletionResponse", answer)


# llm-comply


# It resolves references by a part of jsonschema that is going away.
@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")
@pytest.mark.parametrize("case", OPENAI_CHAT_TESTS, ids=lambda case: case.id)
def test_llm_comply(url: str, case: Any) -> None:
    complies(url, case)


# schemathesis

TAKE_A_BODY = ["POST /v1/completions", "POST /v1/chat/completions", "POST /tokenize", "POST /detokenize"]
TAKE_A_NAME = ["GET /v1/models/{model}"]
TAKE_NOTHING = [
    "GET /v1/models",
    "GET /health",
    "GET /ping",
    "GET /ready",
    "GET /version",
    "GET /load",
    "GET /metrics",
]
OPERATIONS = [*TAKE_A_BODY, *TAKE_A_NAME, *TAKE_NOTHING]
MODES = [
    *((label, GenerationMode.POSITIVE) for label in OPERATIONS),
    *((label, GenerationMode.NEGATIVE) for label in TAKE_A_BODY),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The full run asks a real cluster too."""
    if "address" in metafunc.fixturenames:
        places = ["url", "session_cluster"] if metafunc.config.getoption("--full") else ["url"]
        metafunc.parametrize("address", places, indirect=True, scope="module")


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> str:
    """A gateway in front of engines in this process, or that of a real cluster."""
    found = request.getfixturevalue(request.param)
    return str(getattr(found, "url", found))


def test_schemathesis_knows_every_route(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    assert {found.ok().label for found in schema.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(("label", "mode"), MODES, ids=lambda value: str(getattr(value, "value", value)))
def test_schemathesis(address: str, full: bool, label: str, mode: GenerationMode) -> None:
    withstands(address, label, mode, 1 if label in TAKE_NOTHING else 400 if full else 15)
