"""Whose a running request is: from the engine that has it to the console's list and the command line's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster import control_pb2 as pb
from cluster.cli.listing import REQUESTS, show
from cluster.cli.options import Listing
from cluster.status_message import request_list
from tests.cluster.test_console import Browser, with_browser
from tests.engine.toy import Bench, prompt, request


def told(tenant: str) -> pb.RequestList:
    """What an instance tells of one request."""
    bench = Bench()
    bench.core.submit(replace(request("chat~1-0", prompt(20), 9), tenant=tenant))
    return request_list(bench.core.requests(now=0.0), "decode-0", "decode")


@pytest.mark.parametrize(("tenant", "shown"), [("acme", "acme"), ("<b>", "<b>"), ("", "–")])
def test_the_console_lists_the_tenant_of_a_running_request(tenant: str, shown: str) -> None:
    async def test(browser: Browser) -> None:
        async def requests() -> bytes:
            return told(tenant).SerializeToString()

        browser.fleet["decode-0"].requests = requests  # type: ignore[method-assign]
        await browser.login()
        page = await browser.page("/console/requests")
        cells = [line.strip() for line in page.words.splitlines() if line.strip()]
        assert cells[cells.index("chat~1-0") : cells.index("20")] == [
            "chat~1-0",
            "decode-0",
            "waiting",
            shown,
        ]
        assert "PhaseTenantPrompt" in page.words

    with_browser(test)


@pytest.mark.parametrize(
    ("tenant", "shown"),
    [("acme", "acme"), ("", "-"), ("[/red]", "[/red]"), ("\x1b[2J", "?[2J")],
    ids=["a key's", "nobody's, or of an older instance", "markup", "a terminal's orders"],
)
def test_the_command_line_lists_the_tenant_of_a_running_request(
    tenant: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show(REQUESTS, told(tenant).requests, Listing.TABLE)
    head, line = capsys.readouterr().out.splitlines()
    assert line[head.index("TENANT") : head.index("PROMPT")].strip() == shown
