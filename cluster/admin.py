"""The admin port as one ASGI application: `/admin/v1` in JSON, and the console, which asks nothing else.

GET   /admin/v1/{status,pools,instances,requests,timelines,migrations,events,explanations,history,config}
POST  /admin/v1/pools/{name}/scale                                                   {"replicas": 3}
POST  /admin/v1/instances/{name}/{cordon,uncordon,drain,role}                        {"role": "decode"}
POST  /admin/v1/requests/{id}/migrate                                                {"to": "decode-1"}
POST  /admin/v1/{apply,restart,rebalance}                                            {"what": "decode"}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.admin_auth import Gate
from cluster.admin_service import AdminService
from cluster.http_frame import error_response, http_error, json_response, read_body
from cluster.openai import parse
from cluster.openai_errors import as_tandem
from engine.errors import InvalidKey, InvalidParameter, RefusedError, TandemError

BODY_LIMIT = 64 * 2**10
API = "/admin/v1"
HEADERS = {
    # data: is for the pictures within pico.css, which are no request.
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}

Seconds = Annotated[float, Field(ge=0, le=86_400)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    def check(self) -> None:
        """What `parse` asks of a body: nothing beyond its types here."""


Replicas = Annotated[int, Field(ge=0, le=100_000)]


class ScaleBody(_Body):
    """`min` and `max` are the pool's bounds; `auto` lets the controller set its target."""

    replicas: Replicas | None = None
    min: Replicas | None = None
    max: Replicas | None = None
    auto: bool = False
    dry_run: bool = False

    def check(self) -> None:
        if not self.auto and self.replicas is self.min is self.max is None:
            raise InvalidParameter("give replicas, min, max or auto", param="replicas")


class ApplyBody(_Body):
    """Settings by dotted path; what is not named stays as it is."""

    settings: Annotated[dict[str, Any], Field(min_length=1, max_length=1000)]
    dry_run: bool = False


class RestartBody(_Body):
    """`what` is a pool, an instance, `all` instances, or `controller`."""

    what: Annotated[str, Field(min_length=1, max_length=256)]
    dry_run: bool = False


class RebalanceBody(_Body):
    dry_run: bool = False


class NoBody(_Body):
    pass


class DrainBody(_Body):
    deadline: Seconds = 0.0


class RoleBody(_Body):
    role: Literal["prefill", "decode"]
    deadline: Seconds = 0.0


class MigrateBody(_Body):
    to: Annotated[str, Field(max_length=256)]
    wait: bool = True


B = TypeVar("B", bound=_Body)


class Frame:
    """Around everything: the token for `/admin/v1`, headers for browsers, and a last word on errors."""

    def __init__(self, app: ASGIApp, *, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                headers.update(HEADERS)
                # What operators see is of the moment; files of the console may be kept.
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            inside = f"{scope['path']}/".startswith(f"{API}/")
            if inside and not self._gate.bearer_is(Headers(scope=scope).get("authorization", "")):
                raise InvalidKey("the admin token is missing or wrong; send 'Authorization: Bearer TOKEN'")
            await self._app(scope, receive, answer)
        except Exception as error:
            if started:
                raise
            await admin_error(as_tandem(error))(scope, receive, answer)


def admin_error(error: TandemError) -> Response:
    """As the gateway answers, but operators are told which of their words was refused."""
    response = error_response(error)
    if isinstance(error, RefusedError) and error.param:
        body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
        response = json_response({"error": body}, status=error.status)
    return response


def build_admin(service: AdminService, gate: Gate) -> FastAPI:
    """All of `/admin/v1`, and `/health`, which is all that needs no token."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(Frame, gate=gate)
    app.add_exception_handler(HTTPException, http_error)

    @app.get("/health")
    async def health() -> Response:
        return json_response({"status": "ok"})

    _add_reads(app, service)
    _add_actions(app, service)
    return app


def _add_reads(app: FastAPI, service: AdminService) -> None:
    @app.get(f"{API}/status")
    async def status() -> Response:
        return json_response(service.status())

    @app.get(f"{API}/pools")
    @app.get(f"{API}/pools/{{name}}")
    async def pools(name: str = "") -> Response:
        return json_response(service.pools(name))

    @app.get(f"{API}/instances")
    @app.get(f"{API}/instances/{{name}}")
    async def instances(name: str = "") -> Response:
        return json_response(service.instances(name))

    @app.get(f"{API}/requests")
    @app.get(f"{API}/requests/{{name}}")
    async def requests(name: str = "") -> Response:
        return json_response(await service.requests(name))

    @app.get(f"{API}/timelines")
    @app.get(f"{API}/timelines/{{name}}")
    async def timelines(request: Request, name: str = "") -> Response:
        return json_response(await service.timelines(name, int(_number(request, "most"))))

    @app.get(f"{API}/migrations")
    async def migrations(request: Request) -> Response:
        return json_response(service.migrations(request.query_params.get("request", "")))

    @app.get(f"{API}/events")
    async def events(request: Request) -> Response:
        after, wait = _number(request, "after"), _number(request, "wait")
        return json_response(await service.events(int(after), wait))

    @app.get(f"{API}/explanations")
    @app.get(f"{API}/explanations/{{name}}")
    async def explanations(name: str = "") -> Response:
        return json_response(service.explanations(name))

    @app.get(f"{API}/history")
    async def history() -> Response:
        return json_response(service.history())

    @app.get(f"{API}/config")
    async def config() -> Response:
        return json_response(service.config())


def _add_actions(app: FastAPI, service: AdminService) -> None:
    @app.post(f"{API}/pools/{{name}}/scale")
    async def scale(name: str, request: Request) -> Response:
        body = await _read(request, ScaleBody)
        return json_response(
            service.scale(
                name,
                body.replicas,
                least=body.min,
                most=body.max,
                automatic=body.auto,
                dry_run=body.dry_run,
            )
        )

    @app.post(f"{API}/instances/{{name}}/cordon")
    async def cordon(name: str, request: Request) -> Response:
        await _read(request, NoBody)
        return json_response(await service.cordon(name, on=True))

    @app.post(f"{API}/instances/{{name}}/uncordon")
    async def uncordon(name: str, request: Request) -> Response:
        await _read(request, NoBody)
        return json_response(await service.cordon(name, on=False))

    @app.post(f"{API}/instances/{{name}}/drain")
    async def drain(name: str, request: Request) -> Response:
        body = await _read(request, DrainBody)
        return json_response(await service.drain(name, body.deadline))

    @app.post(f"{API}/instances/{{name}}/role")
    async def role(name: str, request: Request) -> Response:
        body = await _read(request, RoleBody)
        return json_response(await service.change_role(name, body.role, body.deadline))

    @app.post(f"{API}/requests/{{name}}/migrate")
    async def migrate(name: str, request: Request) -> Response:
        body = await _read(request, MigrateBody)
        return json_response(await service.migrate(name, body.to, wait=body.wait))

    @app.post(f"{API}/rebalance")
    async def rebalance(request: Request) -> Response:
        body = await _read(request, RebalanceBody)
        return json_response(await service.rebalance(dry_run=body.dry_run))

    @app.post(f"{API}/apply")
    async def apply(request: Request) -> Response:
        body = await _read(request, ApplyBody)
        return json_response(await service.apply(body.settings, dry_run=body.dry_run))

    @app.post(f"{API}/restart")
    async def restart(request: Request) -> Response:
        body = await _read(request, RestartBody)
        return json_response(service.restart(body.what, dry_run=body.dry_run))


async def _read(request: Request, kind: type[B]) -> B:
    """The body as a checked value; none stands for an empty one. Raises InvalidParameter and its kin."""
    data = await read_body(request, BODY_LIMIT)
    return parse(kind, request.headers.get("content-type", "application/json"), data or b"{}")


def _number(request: Request, name: str) -> float:
    """A query parameter that is a number of at least 0, 0 where it is absent. Raises InvalidParameter."""
    given = request.query_params.get(name, "0")
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value < 2**53:
        raise InvalidParameter(f"'{name}' must be a number of at least 0, not {given[:40]!r}", param=name)
    return value
