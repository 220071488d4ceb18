"""The console's pages: HTML that is made here, of what `/admin/v1` answers, for a browser that is logged in.

GET   /console, /console/{instances,requests,migrations,events,config}     pages, whole without JavaScript
GET   /console/history                                                     JSON for the graphs
POST  /console/{pools,instances,requests}/{name}/{action}                  with X-CSRF-Token
GET, POST  /console/login, POST /console/logout
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from cluster.admin_auth import COOKIE, CSRF_HEADER, Gate
from cluster.console.client import AdminClient, Refused
from cluster.console.drawings import migration_bars, phase_bars
from cluster.console.words import FILTERS
from cluster.http_frame import json_response, read_body

HERE = Path(__file__).parent
FORM_LIMIT = 16 * 2**10
WINDOW = 300.0
"""Seconds that the timeline of migrations shows."""

DECISIONS = 50
"""Of the scheduler, that the page of events shows."""

PAGES = ("instances", "requests", "migrations", "events", "config")
ACTIONS = {
    "pools": {"scale"},
    "instances": {"cordon", "uncordon", "drain", "role"},
    "requests": {"migrate"},
}


class Console:
    """Renders pages; one per admin port. `secure` where it is served over TLS."""

    def __init__(self, client: AdminClient, gate: Gate, *, secure: bool) -> None:
        self._client = client
        self._gate = gate
        self._secure = secure
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.filters.update(FILTERS)

    async def page(self, request: Request, name: str, flash: str = "", *, failed: bool = False) -> Response:
        """One page with what the cluster is at, or the way to the login."""
        session = self._session(request)
        if not session:
            return self._login_page(401)
        try:
            status = (await self._client.read("status"))[0]
            data = await self._data(name, request, status)
        except Refused as refused:
            return self._render("missing", refused.status, {"message": refused.message, "page": name})
        context = {
            "page": name,
            "here": _address(request, name),
            "status": status,
            "csrf": self._gate.csrf(session),
            "flash": flash,
            "failed": failed,
        }
        return self._render(name, 200, context | data)

    async def act(self, request: Request, kind: str, name: str, action: str) -> Response:
        """Carry out what a button asks for, and show the page again with what came of it."""
        session = self._session(request)
        if not session:
            return self._login_page(401)
        if not self._gate.csrf_is(session, request.headers.get(CSRF_HEADER, "")):
            message = "Changes need JavaScript: this one came without the token of your session."
            return self._render("missing", 403, {"message": message, "page": kind})
        if action not in ACTIONS.get(kind, ()):
            return self._render("missing", 404, {"message": "There is no such action.", "page": kind})
        form = await _form(request)
        page = "overview" if kind == "pools" else kind
        try:
            done = await self._client.act(kind, name, action, **_body(action, form))
        except Refused as refused:
            return await self.page(request, page, refused.message, failed=True)
        return await self.page(request, page, _told(name, action, done))

    async def login(self, request: Request) -> Response:
        form = await _form(request)
        if not self._gate.token_is(form.get("token", "").strip()):
            return self._login_page(401, "This is not the admin token.")
        answer = RedirectResponse("/console", 303)
        answer.set_cookie(
            COOKIE,
            self._gate.open(),
            max_age=int(self._gate.lifetime),
            path="/console",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )
        return answer

    def logout(self, request: Request) -> Response:
        answer = RedirectResponse("/console", 303)
        answer.delete_cookie(COOKIE, path="/console", httponly=True, samesite="strict")
        return answer

    async def history(self, request: Request) -> Response:
        if not self._session(request):
            return json_response({"items": []}, status=401)
        return json_response({"items": await self._client.read("history")})

    async def _data(self, name: str, request: Request, status: dict[str, Any]) -> dict[str, Any]:
        """What a page shows beyond the status. Raises Refused."""
        read = self._client.read
        match name:
            case "overview":
                history = await read("history")
                return {"latest": history[-1] if history else None, "events": (await read("events"))[-8:]}
            case "requests":
                return {"requests": await read("requests"), "timelines": await read("timelines", most=50)}
            case "request":
                wanted = request.path_params["name"]
                found = await read("timelines", wanted)
                moves = await read("migrations", request=wanted)
                bars = [(one, phase_bars(one)) for one in found]
                return {"name": wanted, "bars": bars, "moves": moves}
            case "migrations":
                moves = await read("migrations")
                return {"moves": moves, "window": WINDOW, "bars": migration_bars(moves, time.time(), WINDOW)}
            case "events":
                kind = request.query_params.get("kind", "") if request.method == "GET" else ""
                events = await read("events")
                kinds = sorted({one["kind"] for one in events})
                shown = [one for one in events if kind in ("", one["kind"])]
                decisions = (await read("explanations"))[-DECISIONS:]
                return {"events": shown, "kinds": kinds, "kind": kind, "decisions": decisions}
            case "config":
                wanted = request.query_params.get("q", "").lower()
                values = await read("config")
                return {"values": [one for one in values if wanted in one["key"]], "q": wanted}
        return {}

    def _session(self, request: Request) -> str:
        """The session of a browser that is logged in, ''."""
        cookie = request.cookies.get(COOKIE, "")
        return cookie if self._gate.knows(cookie) else ""

    def _login_page(self, status: int, problem: str = "") -> Response:
        return self._render("login", status, {"problem": problem, "page": "login"})

    def _render(self, name: str, status: int, context: dict[str, Any]) -> Response:
        text = self._templates.get_template(f"{name}.html.jinja").render(context)
        return Response(text, status, media_type="text/html")


def mount_console(app: FastAPI, gate: Gate, token: str, *, secure: bool) -> None:
    """Add the console to the application that has `/admin/v1`."""
    console = Console(AdminClient(app, token), gate, secure=secure)
    app.mount("/console/static", StaticFiles(directory=HERE / "static"), name="static")

    @app.get("/")
    async def root() -> Response:
        return RedirectResponse("/console", 307)

    @app.get("/console")
    async def overview(request: Request) -> Response:
        return await console.page(request, "overview")

    @app.get("/console/history")
    async def history(request: Request) -> Response:
        return await console.history(request)

    @app.post("/console/login")
    async def login(request: Request) -> Response:
        return await console.login(request)

    @app.post("/console/logout")
    async def logout(request: Request) -> Response:
        return console.logout(request)

    @app.get("/console/requests/{name}")
    async def describe(request: Request, name: str) -> Response:
        return await console.page(request, "request")

    @app.post("/console/{kind}/{name}/{action}")
    async def act(request: Request, kind: str, name: str, action: str) -> Response:
        return await console.act(request, kind, name, action)

    for name in PAGES:
        _add_page(app, console, name)


def _add_page(app: FastAPI, console: Console, name: str) -> None:
    @app.get(f"/console/{name}")
    async def page(request: Request) -> Response:
        return await console.page(request, name)


def _address(request: Request, name: str) -> str:
    """Where the page can be fetched again: an action shows it under an address that takes POST alone."""
    if request.method == "GET":
        return request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return "/console" if name == "overview" else f"/console/{name}"


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form that was sent. Raises RequestTooLarge."""
    data = await read_body(request, FORM_LIMIT)
    return dict(parse_qsl(data.decode("utf-8", "replace")))


def _body(action: str, form: dict[str, str]) -> dict[str, object]:
    """What the API is told; it says itself what is wrong with it."""
    match action:
        case "scale":
            given = form.get("replicas", "")
            return {"replicas": int(given) if given.isdecimal() else given}
        case "role":
            return {"role": form.get("role", "")}
        case "migrate":
            return {"to": form.get("to", "")}
    return {}


def _told(name: str, action: str, done: list[dict[str, Any]]) -> str:
    """What was done, in one sentence."""
    match action:
        case "scale":
            return f"{name} is to have {done[0]['target']} instances (it was {done[0]['previous']})."
        case "migrate":
            one = done[0]
            why = f": {one['detail']}" if one["detail"] else ""
            return f"{one['request_id']} to {one['destination']}: {one['outcome']}{why}."
        case "drain":
            return f"{name} is being drained: its requests are moved away."
        case "role":
            return f"{name} is drained and goes on in its new role."
    return f"{name} is {action}ed."
