"""The curl lines of docs/api.md and docs/observability.md are typed, and answered as the pages say.

To servers of this process, or with --full to a real cluster.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from cluster.admin_server import AdminServer
from cluster.config_admin import AdminConfig
from tests.cluster.conftest import Cluster
from tests.cluster.doubles import HastyRunner
from tests.cluster.local_cluster import in_a_thread, served_in_a_thread
from tests.cluster.made_up import CONFIG, Fleet, controlling, seen

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
API = [block for block in BLOCK.findall((DOCS / "api.md").read_text(encoding="utf-8")) if "curl" in block]
(ADMIN,) = [
    block
    for block in BLOCK.findall((DOCS / "observability.md").read_text(encoding="utf-8"))
    if "curl" in block
]
MODEL = "SmolLM2-135M-Instruct"
TOKEN = "an admin token for tests"
LIMIT = 120.0

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl on the PATH")


def typed(script: str) -> str:
    """What is printed; curl says no more than the page lets it, but a refusal ends it."""
    quiet = "curl() { command curl -sS --fail-with-body --noproxy '*' \"$@\"; }"
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{quiet}\n{script}"], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, full: bool) -> Cluster | None:
    """A cluster of Ray's, in the tier that has time for one."""
    return request.getfixturevalue("session_cluster") if full else None


@pytest.fixture(scope="module")
def gateway(real: Cluster | None) -> Iterator[tuple[str, str]]:
    """Its URL, and the name of its model."""
    if real is not None:
        yield real.url, "tiny"
        return
    with served_in_a_thread(make_runner=HastyRunner, max_length=4000, blocks=4096) as url:
        yield url, "tiny"


@asynccontextmanager
async def _admin() -> AsyncIterator[str]:
    config = CONFIG.model_copy(update={"admin": AdminConfig(port=0, token=TOKEN)})
    async with controlling(Fleet(), config) as controller:
        await seen(controller, "ready", 3)
        server = AdminServer(controller)
        server.start()
        try:
            yield controller.admin
        finally:
            await server.close()


@pytest.fixture
def admin(real: Cluster | None) -> Iterator[tuple[str, str]]:
    """The admin port's URL and token."""
    if real is None:
        with in_a_thread(_admin()) as url:
            yield url, TOKEN
        return
    try:
        yield real.status().admin, "test-admin"
    finally:
        real.restore()


def asked(block: str) -> dict[str, Any]:
    """The body that a block sends."""
    body: dict[str, Any] = json.loads(block.partition("-d '")[2].rpartition("'")[0])
    return body


def test_the_pages_have_what_is_typed_here() -> None:
    assert [next(iter({"stream", "response_format", "tools"} & asked(block).keys())) for block in API] == [
        "stream", "response_format", "tools"
    ]  # fmt: skip
    assert ADMIN.count("curl") >= 2


@pytest.mark.parametrize("block", API, ids=["stream", "structured", "tools"])
def test_what_api_md_shows_is_answered(gateway: tuple[str, str], block: str, full: bool) -> None:
    url, model = gateway
    assert "http://127.0.0.1:8000/" in block and MODEL in block
    answer = typed(block.replace("http://127.0.0.1:8000", url).replace(MODEL, model))
    body = asked(block)
    if body.get("stream"):
        assert answer.rstrip().endswith("data: [DONE]")
        chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        return
    (choice,) = json.loads(answer)["choices"]
    if choice["finish_reason"] == "length":
        assert full, "a model of random weights may find no end; the one of a script does"
        return
    if "tools" in body:
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert list(json.loads(call["function"]["arguments"])) == ["city"]
    else:
        schema = body["response_format"]["json_schema"]["schema"]
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_what_observability_md_shows_is_answered(admin: tuple[str, str]) -> None:
    url, token = admin
    assert "ADMIN=http://127.0.0.1:8001/admin/v1 " in ADMIN and "\nTOKEN=… " in ADMIN
    script = ADMIN.replace("http://127.0.0.1:8001", url).replace("TOKEN=…", f"TOKEN='{token}'")
    pools, scaled = typed(script.replace("\ncurl", "\necho; curl")).split("\n")[1:]
    assert {one["name"] for one in json.loads(pools)["items"]} == {"prefill", "decode"}
    assert json.loads(scaled)["items"][0]["target"] == 3
    headers = {"authorization": f"Bearer {token}"}
    now = httpx.get(f"{url}/admin/v1/pools/decode", headers=headers, trust_env=False).json()
    assert now["items"][0]["target"] == 3


def test_a_line_that_is_refused_is_noticed(gateway: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match="model_not_found"):
        typed(API[0].replace("http://127.0.0.1:8000", gateway[0]))
