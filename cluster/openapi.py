"""The OpenAPI document of the gateway: every route, what it takes, and everything it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from cluster.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

Schema = dict[str, Any]

_REF = "#/components/schemas/{model}"
_TEXT: Schema = {"type": "string"}
_MODE: Literal["validation"] = "validation"
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Mapping[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": _REF.format(model=name)}


_TOKEN_LOGPROB = {"token": _TEXT, "logprob": _NUMBER, "bytes": _or_null(_list(_COUNT))}
_FINISH: Schema = {"enum": ["stop", "length", "tool_calls"]}
_CALL = _object(
    {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": _object({"name": _TEXT, "arguments": _TEXT}),
    }
)
_ENDED = {"finish_reason": _FINISH, "stop_reason": {"type": ["string", "integer", "null"]}}
_DEBUG = _object(
    {
        "prefill": _TEXT,
        "decode": _TEXT,
        "ttft_ms": _or_null(_NUMBER),
        "tpot_ms": _or_null(_NUMBER),
        "recoveries": _COUNT,
    }
)

_EVENT = _object({"data": _TEXT, "event": _TEXT, "id": _TEXT}, optional=("event", "id"))
"""One event of a stream. `data` is a chunk, an error, or [DONE]; `id` tells how far every choice is."""

_ANSWERS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {"message": _TEXT, "type": _TEXT, "param": _or_null(_TEXT), "code": _or_null(_TEXT)}
            )
        }
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _TEXT,
            "root": _TEXT,
            "parent": _or_null(_TEXT),
            "max_model_len": _COUNT,
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "Usage": _object(
        {
            "prompt_tokens": _COUNT,
            "completion_tokens": _COUNT,
            "total_tokens": _COUNT,
            "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
        }
    ),
    "Completion": _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "text": _TEXT,
                        "logprobs": _or_null(
                            _object(
                                {
                                    "text_offset": _list(_COUNT),
                                    "token_logprobs": _list(_NUMBER),
                                    "tokens": _list(_TEXT),
                                    "top_logprobs": _list(
                                        {"type": "object", "additionalProperties": _NUMBER}
                                    ),
                                }
                            )
                        ),
                        **_ENDED,
                    }
                )
            ),
            "usage": _ref("Usage"),
            "tandem": _DEBUG,
        },
        optional=("tandem",),
    ),
    "Chat": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _TEXT,
            "choices": _list(
                _object(
                    {
                        "index": _COUNT,
                        "message": _object(
                            {
                                "role": {"const": "assistant"},
                                "content": _or_null(_TEXT),
                                "refusal": {"type": "null"},
                                "annotations": _list({}),
                                "tool_calls": _list(_CALL),
                            },
                            optional=("tool_calls",),
                        ),
                        "logprobs": _or_null(
                            _object(
                                {
                                    "content": _list(
                                        _object(
                                            {**_TOKEN_LOGPROB, "top_logprobs": _list(_object(_TOKEN_LOGPROB))}
                                        )
                                    ),
                                    "refusal": {"type": "null"},
                                }
                            )
                        ),
                        **_ENDED,
                    }
                )
            ),
            "usage": _ref("Usage"),
            "tandem": _DEBUG,
        },
        optional=("tandem",),
    ),
    "Tokens": _object(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _list(_COUNT),
            "token_strs": _or_null(_list(_TEXT)),
        }
    ),
    "Detokenized": _object({"prompt": _TEXT}),
    "Status": _object({"status": {"const": "ok"}}),
    "Version": _object({"version": _TEXT}),
    "Load": _object({"server_load": _COUNT}),
}

_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The request took longer than it may.",
    409: "A request with this x-request-id is running.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    429: "The tenant has had what it may; see Retry-After.",
    431: "The request line and headers are too large.",
    500: "The server failed.",
    503: "No room, no instance or no time; see Retry-After.",
}
_READING = (400, 401, 404, 413, 415, 431, 500)
_GENERATING = (*_READING, 408, 409, 429, 503)


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies: list[type[BaseModel]] = [CompletionBody, ChatBody, TokenizeBody, DetokenizeBody]
    kinds = [(body, _MODE) for body in bodies]
    _, taken = models_json_schema(kinds, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tandem", "version": version, "description": "An OpenAI-compatible LLM server."},
        "paths": {
            "/v1/models": {"get": _get("The model that is served.", "Models", 401)},
            "/v1/models/{model}": {
                "get": {
                    **_get("One model.", "Model", 401, 404),
                    "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
                }
            },
            "/v1/completions": {
                "post": _post("Continue a text.", "CompletionBody", "Completion", stream=True)
            },
            "/v1/chat/completions": {
                "post": _post("Answer a conversation.", "ChatBody", "Chat", stream=True)
            },
            "/tokenize": {"post": _post("Text to token ids.", "TokenizeBody", "Tokens")},
            "/detokenize": {"post": _post("Token ids to text.", "DetokenizeBody", "Detokenized")},
            "/health": {"get": _get("Whether instances work.", "Status", 503)},
            "/ping": {"get": _get("The same as /health.", "Status", 503)},
            "/ready": {"get": _get("Whether requests are welcome.", "Status", 503)},
            "/version": {"get": _get("The server's version.", "Version")},
            "/load": {"get": _get("Requests under way here.", "Load")},
            "/metrics": {
                "get": {
                    "summary": "Metrics for Prometheus.",
                    "responses": {"200": _media("text/plain", _TEXT)},
                }
            },
            "/openapi.json": {
                "get": {"summary": "This document.", "responses": {"200": _media("application/json", {})}}
            },
        },
        "components": {
            "schemas": {**taken["$defs"], **_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _media(kind: str, schema: Schema) -> Schema:
    return {"description": "The answer.", "content": {kind: {"schema": schema}}}


def _errors(statuses: tuple[int, ...]) -> Schema:
    content = {"application/json": {"schema": _ref("Error")}}
    return {str(status): {"description": _ERRORS[status], "content": content} for status in sorted(statuses)}


def _get(summary: str, answer: str, *errors: int) -> Schema:
    return {
        "summary": summary,
        "responses": {"200": _media("application/json", _ref(answer)), **_errors((*errors, 500))},
    }


def _post(summary: str, body: str, answer: str, *, stream: bool = False) -> Schema:
    good = _media("application/json", _ref(answer))
    if stream:
        good["content"]["text/event-stream"] = {"schema": _EVENT}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {"200": good, **_errors(_GENERATING if stream else _READING)},
    }
