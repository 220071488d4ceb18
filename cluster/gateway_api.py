"""The routes of the gateway as one ASGI application, whoever serves it."""

from __future__ import annotations

from typing import TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cluster.gateway_service import GatewayService
from cluster.genai_metrics import GenAiMetrics
from cluster.generation import generate
from cluster.http_frame import Frame, error_response, http_error, json_response, read_body
from cluster.move_notes import MoveNotes
from cluster.openai import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse
from cluster.openai_answers import spelled
from cluster.openapi import document
from cluster.resume import digest_of
from cluster.tracing import Traced, Traces
from engine.errors import Overloaded

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

B = TypeVar("B", CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)


def build_api(
    service: GatewayService,
    traces: Traces | None = None,
    measures: GenAiMetrics | None = None,
    moves: MoveNotes | None = None,
) -> FastAPI:
    """All routes, with OpenAI's shapes for answers and errors; `moves` are for the traces."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Frame, access=service.access, origins=service.config.cors_origins)
    app.add_middleware(Traced, traces=traces, measures=measures, moves=moves)
    app.add_exception_handler(HTTPException, http_error)
    _add_openai(app, service)
    _add_tokens(app, service)
    _add_operations(app, service)
    return app


def _add_openai(app: FastAPI, service: GatewayService) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [service.model.body()]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        service.check_model(model)
        return json_response(service.model.body())

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generate(service, request, await _read(service, request, CompletionBody))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await generate(service, request, await _read(service, request, ChatBody))


def _add_tokens(app: FastAPI, service: GatewayService) -> None:
    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await _read(service, request, TokenizeBody)
        tokens = await service.tokenize(body)
        answer: dict[str, object] = {
            "count": len(tokens),
            "max_model_len": service.model.max_length,
            "tokens": tokens,
            "token_strs": None,
        }
        if body.return_token_strs:
            answer["token_strs"] = [spelled(service.tokenizer.token_bytes(token)) for token in tokens]
        return json_response(answer)

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await _read(service, request, DetokenizeBody)
        return json_response({"prompt": service.detokenize(body)})


def _add_operations(app: FastAPI, service: GatewayService) -> None:
    async def health() -> Response:
        return _yes_or(await service.healthy(), "no instance works")

    async def ready() -> Response:
        return _yes_or(await service.ready(), "a pool has no instance yet, or this gateway is leaving")

    for path, check in (("/health", health), ("/ping", health), ("/ready", ready)):
        app.add_api_route(path, check, methods=["GET", "HEAD"])

    @app.get("/version")
    async def version() -> Response:
        return json_response({"version": service.version})

    @app.get("/load")
    async def load() -> Response:
        return json_response({"server_load": len(service.driver.runs)})

    @app.get("/metrics")
    async def metrics() -> Response:
        await service.facts.refresh()
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(document(service.version))


def _yes_or(good: bool, reason: str) -> Response:
    return json_response({"status": "ok"}) if good else error_response(Overloaded(reason))


async def _read(service: GatewayService, request: Request, kind: type[B]) -> B:
    data = await read_body(request, service.config.body_limit, service.config.arrival_timeout)
    request.scope["state"]["digest"] = digest_of(request.url.path, data)
    return parse(kind, request.headers.get("content-type", ""), data)
