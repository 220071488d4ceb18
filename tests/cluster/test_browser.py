"""The console in a real Chromium, on a real cluster under load: it is shown, it works, it is quiet.

TANDEM_BROWSER=/usr/bin/chromium python -m pytest -m browser             with --update-golden: new screenshots
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.streams import Client, reference

CHROMIUM = os.environ.get("TANDEM_BROWSER", "")
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WAIT = 20_000
LONG = 3_800
"""Tokens: with its prompt nearly all that the context has, some ten seconds on a busy machine."""
PAGES = ["overview", "instances", "requests", "migrations", "events", "config"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="TANDEM_BROWSER names no Chromium; see docs/observability.md"),
]


@contextmanager
def load(cluster: Cluster, streams: int = 6) -> Iterator[list[int]]:
    """Requests without end from several clients; gives the statuses of those that have ended."""
    over, statuses = threading.Event(), list[int]()
    asked = {"model": "tiny", "prompt": "one two three " * 12, "max_tokens": 120, "ignore_eos": True}
    body = asked | {"user": "acme"}

    def ask() -> None:
        with httpx.Client(base_url=cluster.url, timeout=60, trust_env=False) as client:
            while not over.is_set():
                statuses.append(client.post("/v1/completions", json=body).status_code)

    clients = [threading.Thread(target=ask) for _ in range(streams)]
    for client in clients:
        client.start()
    try:
        yield statuses
    finally:
        over.set()
        for client in clients:
            client.join(60)


def until(condition: Callable[[], object]) -> None:
    """What happens in another thread."""
    end = time.monotonic() + WAIT / 1000
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class Seen:
    """What a page logs and asks for, beyond what it should."""

    def __init__(self, page: object, home: str) -> None:
        self.wrong: list[str] = []
        page.on("console", lambda message: self.wrong.append(message.text))  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: self.wrong.append(str(error)))  # type: ignore[attr-defined]
        page.on(  # type: ignore[attr-defined]
            "request", lambda asked: asked.url.startswith((home, "data:")) or self.wrong.append(asked.url)
        )


@contextmanager
def browser(scheme: str, *, scripts: bool = True) -> Iterator[object]:
    """A page in a Chromium of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = chromium.new_context(
            color_scheme=scheme,
            java_script_enabled=scripts,
            viewport={"width": 1280, "height": 860},
        )
        page = context.new_page()
        page.set_default_timeout(WAIT)
        try:
            yield page
        finally:
            chromium.close()


def log_in(page: object, home: str) -> None:
    page.goto(f"{home}/console")  # type: ignore[attr-defined]
    page.fill("#token", "test-admin")  # type: ignore[attr-defined]
    page.keyboard.press("Enter")  # type: ignore[attr-defined]
    # The form's page has the same address: what tells them apart is what it shows.
    page.wait_for_selector("#live")  # type: ignore[attr-defined]


@pytest.fixture
def home(cluster: Cluster) -> str:
    return cluster.status().admin


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_shown_under_load_and_say_nothing_on_the_console(
    cluster: Cluster, home: str, scheme: str, pytestconfig: pytest.Config
) -> None:
    with load(cluster) as statuses, browser(scheme) as page:
        log_in(page, home)
        # The refused first page is all that a browser may log.
        seen = Seen(page, home)
        page.wait_for_selector(".spark canvas")
        page.wait_for_function("document.querySelectorAll('.spark canvas').length === 8")
        page.wait_for_timeout(4000 if pytestconfig.getoption("--update-golden") else 0)
        for name in PAGES:
            page.goto(f"{home}/console" if name == "overview" else f"{home}/console/{name}")
            page.wait_for_selector("#live")
            if name == "overview":
                page.wait_for_selector(".spark canvas")
            assert page.locator("nav a[aria-current=page]").inner_text().lower() == name
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            if pytestconfig.getoption("--update-golden") and (scheme == "light" or name == "overview"):
                IMAGES.mkdir(exist_ok=True)
                if name == "config":
                    page.goto(f"{home}/console/config?q=pools")  # other settings are of this machine
                    page.wait_for_selector("#live")
                dark = "-dark" if scheme == "dark" else ""
                page.screenshot(path=IMAGES / f"console-{name}{dark}.png")
        assert seen.wrong == []
    assert set(statuses) == {200}


def test_a_page_refreshes_itself_and_keeps_the_focus(cluster: Cluster, home: str) -> None:
    with browser("light") as page:
        log_in(page, home)
        page.goto(f"{home}/console/instances")
        page.focus("#cordon--decode-0, [id^='cordon--decode']")
        before = page.evaluate("document.activeElement.id")
        with page.expect_response(lambda answer: answer.request.headers.get("hx-request") == "true"):
            pass
        page.wait_for_timeout(200)
        assert page.evaluate("document.activeElement.id") == before


def test_an_instance_is_drained_from_the_page_and_no_request_is_lost(cluster: Cluster, home: str) -> None:
    last = cluster.last_event()
    name = cluster.ready("decode")[0].name
    with load(cluster) as statuses, browser("light") as page:
        log_in(page, home)
        seen = Seen(page, home)
        page.goto(f"{home}/console/instances")
        asked: list[str] = []

        def answer(dialog: object) -> None:
            asked.append(dialog.message)  # type: ignore[attr-defined]
            dialog.accept()  # type: ignore[attr-defined]

        page.on("dialog", answer)
        # By keyboard alone.
        page.focus(f"#drain--{name}")
        page.keyboard.press("Enter")
        page.wait_for_selector("#flash .flash")
        assert page.inner_text("#flash") == f"{name} is being drained: its requests are moved away."
        assert asked == [f"Move every request away from {name} and place nothing more there?"]
        cluster.event("drained", last, name)
        page.wait_for_selector(f"#uncordon--{name}")
        page.click(f"#uncordon--{name}")
        page.wait_for_selector(f"#cordon--{name}")
        assert seen.wrong == []
    assert set(statuses) == {200}


def test_a_request_is_moved_from_the_page_while_its_stream_goes_on(cluster: Cluster, home: str) -> None:
    """Everything is there before the request is, whose tokens take seconds in all."""
    with ExitStack() as stack:
        page = stack.enter_context(browser("light"))
        log_in(page, home)
        seen = Seen(page, home)
        page.goto(f"{home}/console/requests")
        asked: list[str] = []

        def answer(dialog: object) -> None:
            asked.append(dialog.message)  # type: ignore[attr-defined]
            dialog.accept()  # type: ignore[attr-defined]

        page.on("dialog", answer)
        client = stack.enter_context(Client(cluster, "mover", LONG))
        until(client.reading)
        page.reload()
        row = page.locator("tr", has=page.locator("button[id^='migrate-mover~']"))
        row.locator("button").click()
        page.wait_for_selector("#flash .flash")
        told = page.inner_text("#flash")
        found = re.fullmatch(r"(mover~\S+) to (decode-\d+): committed\.", told)
        assert found is not None, told
        moved, to = found.groups()
        assert asked == [f"Move {moved} while it runs?"]
        page.click("nav a:has-text('Migrations')")
        page.wait_for_selector("#live table tbody tr")
        assert moved in page.inner_text("#live")
        (move,) = cluster.control.migrations("mover")
        assert (move.request_id, move.destination, move.cause) == (moved, to, "operator")
        assert client.text() == reference(cluster, LONG), "no gap and no repeat"
        assert seen.wrong == []


def test_a_question_that_is_answered_no_changes_nothing(cluster: Cluster, home: str) -> None:
    name = cluster.ready("decode")[0].name
    with browser("light") as page:
        log_in(page, home)
        page.goto(f"{home}/console/instances")
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.click(f"#cordon--{name}")
        page.wait_for_timeout(300)
        assert page.locator(f"#cordon--{name}").count() == 1
    assert not any(one.cordoned for one in cluster.status().instances)


def test_a_request_that_has_ended_is_followed_phase_by_phase(
    cluster: Cluster, home: str, pytestconfig: pytest.Config
) -> None:
    with load(cluster, 3), browser("light") as page:
        log_in(page, home)
        page.goto(f"{home}/console/requests")
        page.wait_for_selector("tbody a >> nth=0")
        page.click("h2:has-text('Finished lately') ~ .scroll tbody a >> nth=0")
        page.wait_for_selector("svg.phases rect.decode")
        if pytestconfig.getoption("--update-golden"):
            page.screenshot(path=IMAGES / "console-request.png")


def test_pages_can_be_read_without_javascript(cluster: Cluster, home: str) -> None:
    with browser("light", scripts=False) as page:
        page.goto(f"{home}/console")
        page.fill("#token", "test-admin")
        page.click("button")
        for name in PAGES[1:]:
            page.click(f"nav a:has-text('{name.capitalize()}')")
            assert page.locator("h1").inner_text().lower() == name
        page.goto(f"{home}/console/instances")
        assert "decode-" in page.inner_text("table")
