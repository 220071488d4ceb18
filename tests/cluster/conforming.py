"""What every answer of a gateway is held against: OpenAI's own schemas, llm-comply and schemathesis."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from llm_comply import result as comply
from llm_comply import runner
from llm_comply.config import ComplianceConfig
from llm_comply.schema import SpecLoader
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
SPEC = resources.files("llm_comply") / "specs" / "openai_chat.json"
BEYOND_TEXT = {"chat-image-input": "messages.0.content.1.type"}
"""What asks for a model that sees: one that does not is to say so, and name the part."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def openai_schemas() -> dict[str, Any]:
    """OpenAI's OpenAPI document, in the words of JSON Schema."""
    return dict(_modern(json.loads(SPEC.read_text())))


def _modern(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON Schema."""
    if isinstance(schema, list):
        return [_modern(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _modern(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def valid(spec: dict[str, Any], name: str, value: object) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def valid_completion(spec: dict[str, Any], chunk: dict[str, Any]) -> None:
    """The schema is that of whole answers; chunks before the last have no reason yet, as OpenAI's own."""
    choices = [one | {"finish_reason": one["finish_reason"] or "stop"} for one in chunk["choices"]]
    valid(spec, "CreateCompletionResponse", chunk | {"choices": choices})


def chunks(url: str, path: str, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
    """Those of a whole stream."""
    answer = requests.post(f"{url}/v1/{path}", json=body, headers=headers, timeout=60)
    data = [
        line.removeprefix("data: ")
        for line in answer.content.decode().splitlines()
        if line.startswith("data: ")
    ]
    assert data and data[-1] == "[DONE]", answer.text
    return [json.loads(line) for line in data[:-1]]


def complies(url: str, case: Any, **headers: str) -> None:
    """One of llm-comply's probes; the one with an image is refused and names it."""
    config = ComplianceConfig(
        base_url=f"{url}/v1", api_key="none", model="tiny", verbose=True, extra_headers=headers
    )
    result: comply.TestResult = runner.TestRunner(config, [case], SpecLoader(str(SPEC))).run_one(case)
    if case.id in BEYOND_TEXT:
        assert "HTTP 400" in result.errors[0]
        assert result.response["error"]["param"] == BEYOND_TEXT[case.id]
        return
    assert result.status in (comply.TestStatus.PASSED, comply.TestStatus.SKIPPED), result.errors
    assert not result.warnings


def withstands(url: str, label: str, mode: GenerationMode, examples: int, **fields: Any) -> None:
    """An operation answers whatever schemathesis makes up as our OpenAPI document says; what is to be valid
    has `fields` in it."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    (operation,) = [found.ok() for found in schema.get_all_operations() if found.ok().label == label]

    @seed(20)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and mode is GenerationMode.POSITIVE:
            case.body |= {"model": "tiny", "max_tokens": 2, "max_completion_tokens": None, "min_tokens": None}
            case.body |= fields
            case.body.pop("best_of", None)
        case.call_and_validate(base_url=url, checks=CHECKS)

    run()
