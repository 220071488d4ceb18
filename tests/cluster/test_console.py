"""The console as a browser without JavaScript sees it: who may come in, what pages say, what buttons do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import httpx
import pytest

from cluster import control_pb2 as pb
from cluster.admin import build_admin
from cluster.admin_auth import COOKIE, Gate
from cluster.admin_service import AdminService
from cluster.console.pages import PAGES, mount_console
from cluster.controller import Controller
from tests.cluster.made_up import Fleet, controlling, run, seen

TOKEN = "an admin token for tests"
EVERY = ["/console", *(f"/console/{name}" for name in PAGES)]
VOID = {"meta", "link", "img", "input", "br", "rect", "hr", "circle", "path"}


class Page(HTMLParser):
    """What a page links to and says; wrong nesting is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Browser:
    """A client with cookies, on a cluster of made-up instances."""

    def __init__(self, controller: Controller, fleet: Fleet) -> None:
        self.controller = controller
        self.fleet = fleet
        app = build_admin(AdminService(controller), Gate(TOKEN, 60.0))
        mount_console(app, Gate(TOKEN, 60.0), TOKEN, secure=False)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://admin")

    async def login(self, token: str = TOKEN) -> httpx.Response:
        return await self.client.post("/console/login", data={"token": token})

    async def page(self, path: str, status: int = 200) -> Page:
        answer = await self.client.get(path)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        return Page(answer.text)

    async def click(self, path: str, csrf: str | None = None, **form: str) -> Page:
        """A button of a page that JavaScript sends."""
        if csrf is None:
            text = (await self.client.get("/console")).text
            found = re.search(r'"X-CSRF-Token": "([0-9a-f]+)"', text)
            assert found is not None
            csrf = found[1]
        answer = await self.client.post(path, data=form, headers={"x-csrf-token": csrf})
        return Page(answer.text)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    fleet = Fleet()
    async with controlling(fleet) as controller:
        await seen(controller, "ready", 3)
        browser = Browser(controller, fleet)
        async with browser.client:
            yield browser


def with_browser(test: Callable[[Browser], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with browsing() as browser:
            await test(browser)

    run(inside())


@pytest.mark.parametrize("path", EVERY)
def test_a_page_is_shown_to_who_is_logged_in_only(path: str) -> None:
    async def test(browser: Browser) -> None:
        stranger = await browser.page(path, 401)
        assert "Admin token" in stranger.words
        assert "decode-0" not in stranger.words
        await browser.login()
        page = await browser.page(path)
        assert "Log out" in page.words
        assert [one for one in page.all("a") if one.get("aria-current") == "page"]

    with_browser(test)


def test_the_cookie_is_the_servers_alone() -> None:
    async def test(browser: Browser) -> None:
        answer = await browser.login()
        cookie = answer.headers["set-cookie"]
        assert re.search(r"HttpOnly.*; Path=/console; SameSite=strict", cookie)
        assert TOKEN not in cookie
        assert answer.status_code == 303

    with_browser(test)


def test_another_token_or_an_altered_cookie_lets_nobody_in() -> None:
    async def test(browser: Browser) -> None:
        assert (await browser.login("wrong")).status_code == 401
        assert COOKIE not in browser.client.cookies
        await browser.login()
        expiry, _, signature = browser.client.cookies[COOKIE].partition(".")
        for forged in (f"{int(expiry) + 9}.{signature}", f"{expiry}.{'0' * 64}", f"{expiry}.", "x", ""):
            browser.client.cookies.clear()
            browser.client.cookies.set(COOKIE, forged, path="/console")
            await browser.page("/console", 401)

    with_browser(test)


def test_sessions_end() -> None:
    now = 1000.0
    gate = Gate(TOKEN, 60.0, lambda: now)
    session = gate.open()
    assert gate.knows(session)
    now = 1061.0
    assert not gate.knows(session)
    assert not Gate("another", 60.0, lambda: 1000.0).knows(session)


def test_logging_out_ends_the_session_in_the_browser() -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        await browser.client.post("/console/logout")
        await browser.page("/console", 401)

    with_browser(test)


def test_pages_say_what_the_cluster_is_at() -> None:
    async def test(browser: Browser) -> None:
        browser.fleet["decode-0"].run("chat~1-0")
        browser.controller.events.add("scaled", "decode", "from 1 to 2, <b>by request</b>")
        await browser.login()
        instances = await browser.page("/console/instances")
        for name in ("prefill-0", "decode-0", "decode-1"):
            assert name in instances.words
        assert len(instances.all("meter")) == 3
        assert "chat~1-0" in (await browser.page("/console/requests")).words
        events = await browser.page("/console/events?kind=scaled")
        assert "from 1 to 2, <b>by request</b>" in events.words, "it is shown, not obeyed"
        assert not events.all("b")
        assert "made-up" not in events.words
        config = await browser.page("/console/config?q=control.beat")
        assert "10ms" in config.words
        browser.controller.origins = {"control.beat": "tandem.yaml:4:9"}
        assert "tandem.yaml:4:9" in (await browser.page("/console/config?q=control.beat")).words
        assert "control.token" not in config.words

    with_browser(test)


def test_a_secret_is_on_no_page() -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        for path in EVERY:
            text = (await browser.client.get(path)).text
            assert TOKEN not in text
            assert "secret" not in re.findall(r'"([^"]*)"', text)

    with_browser(test)


@pytest.mark.parametrize("path", EVERY)
def test_a_page_needs_nothing_from_elsewhere_and_no_code_of_its_own(path: str) -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        page = await browser.page(path)
        wanted = [one.get("src") for one in page.all("script")] + [one["href"] for one in page.all("link")]
        assert wanted
        for target in wanted:
            assert target is not None, "a script within the page"
            assert target.startswith("/console/static/")
            assert (await browser.client.get(target)).status_code == 200
        assert not page.all("style")
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name == "style" or name.startswith("on")], tag

    with_browser(test)


@pytest.mark.parametrize("path", EVERY)
def test_every_action_is_confirmed_and_every_field_has_a_name(path: str) -> None:
    async def test(browser: Browser) -> None:
        browser.fleet["decode-0"].run("chat~1-0")
        await browser.login()
        page = await browser.page(path)
        labels = {one.get("for") for one in page.all("label")}
        for form in page.all("form"):
            if "hx-post" in form:
                assert form["hx-confirm"]
                assert form["action"] == form["hx-post"]
        for field in page.all("input") + page.all("select"):
            assert field.get("type") == "hidden" or field.get("aria-label") or field.get("id") in labels
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))

    with_browser(test)


def test_buttons_do_what_they_say() -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        page = await browser.click("/console/pools/decode/scale", replicas="3")
        assert "decode is to have 3 instances (it was 2)." in page.words
        assert browser.controller.pools["decode"].target == 3
        await seen(browser.controller, "ready", 4)
        browser.fleet["decode-0"].run("chat~1-0")
        page = await browser.click("/console/requests/chat~1-0/migrate", to="decode-1")
        assert "chat~1-0 to decode-1: committed." in page.words
        assert "committed" in (await browser.page("/console/migrations")).words
        page = await browser.click("/console/instances/decode-1/cordon")
        assert browser.fleet["decode-1"].cordoned
        assert "Uncordon" in page.words
        await browser.click("/console/instances/decode-1/drain")
        await seen(browser.controller, "drained")
        await browser.click("/console/instances/decode-1/uncordon")
        assert not browser.fleet["decode-1"].cordoned
        await browser.click("/console/instances/decode-1/role", role="prefill")
        await seen(browser.controller, "role")

    with_browser(test)


@pytest.mark.parametrize(
    ("path", "form", "again"),
    [
        ("/console/pools/decode/scale", {"replicas": "2"}, "/console"),
        ("/console/pools/decode/scale", {"replicas": "many"}, "/console"),
        ("/console/instances/decode-1/cordon", {}, "/console/instances"),
        ("/console/instances/decode-1/drain", {}, "/console/instances"),
        ("/console/instances/decode-1/role", {"role": "prefill"}, "/console/instances"),
        ("/console/requests/chat~1-0/migrate", {"to": "decode-1"}, "/console/requests"),
    ],
)
def test_a_page_goes_on_being_fetched_after_an_action(path: str, form: dict[str, str], again: str) -> None:
    async def test(browser: Browser) -> None:
        browser.fleet["decode-0"].run("chat~1-0")
        await browser.login()
        page = await browser.click(path, **form)
        assert [one["hx-get"] for one in page.all("div") if one.get("id") == "live"] == [again]
        await browser.page(again)

    with_browser(test)


@pytest.mark.parametrize("path", ["/console/events?kind=scaled", "/console/config?q=control"])
def test_a_page_is_fetched_again_as_it_was_asked_for(path: str) -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        page = await browser.page(path)
        assert [one["hx-get"] for one in page.all("div") if one.get("id") == "live"] == [path]

    with_browser(test)


def test_what_the_api_refuses_is_said_on_the_page() -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        page = await browser.click("/console/pools/decode/scale", replicas="0")
        assert "cannot be scaled to 0" in page.words
        assert "there is no" not in page.words
        assert [one for one in page.all("p") if one.get("class") == "flash bad"]
        page = await browser.click("/console/pools/decode/scale", replicas="many")
        assert "replicas" in page.words

    with_browser(test)


def test_nothing_is_done_without_the_sessions_own_token() -> None:
    async def test(browser: Browser) -> None:
        await browser.login()
        other = Gate(TOKEN, 60.0)
        for wrong in ("", "0" * 64, other.csrf("another session")):
            page = await browser.click("/console/instances/decode-0/cordon", wrong)
            assert "Changes need JavaScript" in page.words
        browser.client.cookies.clear()
        await browser.click("/console/instances/decode-0/cordon", "0" * 64)
        await browser.click("/console/nothing/decode-0/cordon", "0" * 64)
        assert not browser.fleet["decode-0"].cordoned

    with_browser(test)


def test_a_request_that_has_ended_is_described_phase_by_phase() -> None:
    async def test(browser: Browser) -> None:
        async def find(wanted: str, most: int = 0) -> list[pb.Timeline]:
            return [told] if wanted in ("", "chat") else []

        phases = [
            pb.Phase(name="queue", instance="prefill-0", start=0.0, seconds=0.5),
            pb.Phase(name="decode", instance="decode-1", start=0.5, seconds=1.5, tokens=30),
        ]
        told = pb.Timeline(id="chat~1-0", began=1e9, seconds=2.0, outcome="stop", ttft=0.5, phases=phases)
        browser.controller.timelines.find = find  # type: ignore[method-assign]
        await browser.login()
        page = await browser.page("/console/requests/chat")
        assert "500.0 ms" in page.words
        assert "1.50 s" in page.words
        assert {one["x"] for one in page.all("rect") if "x" in one} == {"0.0%", "25.0%"}
        missing = await browser.page("/console/requests/other", 404)
        assert "no request 'other' runs or is remembered" in missing.words

    with_browser(test)


def test_graphs_are_given_samples() -> None:
    async def test(browser: Browser) -> None:
        assert (await browser.client.get("/console/history")).status_code == 401
        await browser.login()
        assert (await browser.client.get("/console/history")).json() == {"items": []}
        await asyncio.sleep(0)

    with_browser(test)
