"""Who comes in at the gateway, and how much of it each tenant gets; with OpenAI's own client too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from cluster.config import GatewayConfig
from cluster.config_security import TenantLimits
from cluster.keys import draw, hashed
from tests.cluster.asking import CHAT, HELLO, TEXT, on_cluster, refused
from tests.cluster.doubles import SCRIPT, ScriptedRunner, until
from tests.cluster.local_cluster import LocalCluster, served_in_a_thread

ACME, ZETA, NOBODY = draw(), draw(), draw()
KEYS = GatewayConfig(
    api_keys=(hashed(ACME, "acme"), hashed(ZETA, "zeta"), hashed(NOBODY)),
    metrics_token="only-for-prometheus",
)
MESSAGES: list[Any] = HELLO


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = TenantLimits(requests={"zeta": 2}, tokens={"*": 1_000_000}, priority={"acme": 3})
    with served_in_a_thread(config=KEYS, tenants=limits, blocks=1024) as address:
        yield address


def client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.mark.parametrize(
    ("key", "priority", "status"),
    [(ACME, 3, 200), (ACME, 4, 400), (NOBODY, 1, 400), (NOBODY, -9, 200)],
    ids=["as much as it may", "more", "more than no entry gives", "less"],
)
def test_a_tenant_goes_before_others_only_as_far_as_it_may(
    url: str, key: str, priority: int, status: int
) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "priority": priority}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=bearer(key), trust_env=False)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"]["param"] == "priority"


# OpenAI's client


WRONG = {
    "a word": "wrong",
    "a prefix": "tk-",
    "one letter less": ACME[:-1],
    "one letter more": ACME + "x",
    "its hash": hashed(ACME),
    "its line in the config": hashed(ACME, "acme"),
}


@pytest.mark.parametrize("key", WRONG.values(), ids=WRONG)
def test_openais_client_sees_an_authentication_error(url: str, key: str) -> None:
    with client(url, key) as openais, pytest.raises(openai.AuthenticationError) as caught:
        openais.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


def test_openais_client_with_a_key_gets_its_answer_and_what_is_left(url: str) -> None:
    with client(url, ACME) as openais:
        raw = openais.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, max_tokens=4)
        assert raw.parse().choices[0].message.content == SCRIPT[:4]
    assert raw.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert "x-ratelimit-limit-requests" not in raw.headers


def test_openais_client_sees_a_rate_limit_error_and_when_to_come_back(url: str) -> None:
    with client(url, ZETA) as openais:
        for _ in range(2):
            openais.completions.create(model="tiny", prompt="hi", max_tokens=1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                openais.completions.create(model="tiny", prompt="hi", max_tokens=1, stream=stream)
            headers = caught.value.response.headers
            assert 1 <= int(headers["retry-after"]) <= 30, "two a minute: one in thirty seconds"
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert (caught.value.type, caught.value.code) == ("rate_limit_exceeded", "tenant_quota")
            assert "zeta" in caught.value.message
    with client(url, ACME) as openais:
        openais.completions.create(model="tiny", prompt="hi", max_tokens=1)


# What a key opens


def test_without_a_key_only_health_is_open() -> None:
    """Every route of the OpenAPI document, and what is not in it."""

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json", headers=bearer(ACME))).json()
        routes = [(method, path) for path, methods in document["paths"].items() for method in methods]
        assert len(routes) > 10
        opened = set()
        for method, path in [*routes, ("get", "/"), ("get", "/docs"), ("post", "/admin/v1/pools")]:
            for headers in ({}, bearer("wrong"), {"authorization": f"Basic {ACME}"}, bearer("")):
                response = await client.request(method, path.replace("{model}", "tiny"), headers=headers)
                if response.status_code == 401:
                    assert response.json()["error"]["code"] == "invalid_api_key"
                else:
                    opened.add(path)
        assert opened == {"/health", "/ready", "/ping"}

    on_cluster(run, config=KEYS)


def test_the_metrics_token_opens_metrics_and_nothing_else() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        headers = bearer("only-for-prometheus")
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        assert (await client.get("/metrics", headers=bearer(ACME))).status_code == 200
        assert (await client.get("/load", headers=headers)).status_code == 200
        for path in ("/v1/models", "/version", "/openapi.json"):
            refused(await client.get(path, headers=headers), 401, "invalid_api_key", None)

    on_cluster(run, config=KEYS)


def test_neither_keys_nor_prompts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "prompt": "my little secret", "max_tokens": 2}
        for key in (ACME, NOBODY, "a-wrong-key"):
            await client.post(TEXT, json=body, headers=bearer(key))

    with caplog.at_level(logging.DEBUG, logger="tandem"):
        on_cluster(run, config=KEYS)
    for secret in (ACME, NOBODY, "a-wrong-key", "my little secret"):
        assert secret not in caplog.text


# Tenants


def test_the_tenant_is_the_keys_and_not_what_the_client_says() -> None:
    seen: list[tuple[str, str]] = []

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        drive = cluster.driver.run

        def spy(request: Any, *arguments: Any, **more: Any) -> Any:
            seen.append((request.tenant, request.salt))
            return drive(request, *arguments, **more)

        cluster.driver.run = spy  # type: ignore[method-assign]
        for key in (ACME, NOBODY):
            body = {"model": "tiny", "prompt": "hi", "max_tokens": 1, "user": "zeta"}
            assert (await client.post(TEXT, json=body, headers=bearer(key))).status_code == 200

    on_cluster(run, config=KEYS)
    assert seen == [("acme", "acme"), ("zeta", "")], "a key of nobody leaves it to the client"


def test_tenants_do_not_share_the_prefix_cache() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        async def cached(key: str) -> int:
            body = {"model": "tiny", "prompt": "a prompt of several blocks", "max_tokens": 1}
            usage = (await client.post(TEXT, json=body, headers=bearer(key))).json()["usage"]
            return int((usage["prompt_tokens_details"] or {"cached_tokens": 0})["cached_tokens"])

        assert await cached(ACME) == 0
        assert await cached(ACME) > 0
        assert await cached(ZETA) == 0, "a hit would tell zeta what acme has asked"
        assert await cached(ZETA) > 0

    on_cluster(run, config=KEYS)


def test_a_tenant_cannot_come_back_to_the_request_of_another() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 3}
        named = {"x-request-id": "same", "x-tandem-resumable": "1", "last-event-id": ""}
        first = asyncio.create_task(client.post(TEXT, json=body, headers=bearer(ACME, **named)))
        await until(lambda: len(cluster.driver.runs) == 1)
        other = asyncio.create_task(client.post(TEXT, json=body, headers=bearer(ZETA, **named)))
        await until(lambda: len(cluster.driver.runs) == 2)
        runner.gate.set()
        answers = [await first, await other]
        assert [one.status_code for one in answers] == [200, 200]
        assert {one.headers["x-request-id"] for one in answers} == {"same"}

    on_cluster(run, config=KEYS, make_runner=lambda: runner)


def test_requests_at_the_same_time_are_refused_until_one_ends() -> None:
    runner = ScriptedRunner()
    runner.gate.clear()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 2}
        first = asyncio.create_task(client.post(CHAT, json=body, headers=bearer(ACME)))
        await until(lambda: cluster.driver.runs)
        second = await client.post(CHAT, json=body, headers=bearer(ACME))
        refused(second, 429, "tenant_quota", None)
        assert second.headers["retry-after"] == "1"
        runner.gate.set()
        assert (await first).status_code == 200
        assert (await client.post(CHAT, json=body, headers=bearer(ACME))).status_code == 200

    on_cluster(run, config=KEYS, make_runner=lambda: runner, tenants=TenantLimits(concurrent={"acme": 1}))


def test_a_request_that_fails_or_whose_client_leaves_frees_its_place() -> None:
    runner = ScriptedRunner()

    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        bad = await client.post(TEXT, json={**body, "prompt": "x" * 500}, headers=bearer(ACME))
        assert bad.status_code == 400
        runner.gate.clear()
        leaving = asyncio.create_task(client.post(TEXT, json=body, headers=bearer(ACME)))
        await until(lambda: cluster.driver.runs)
        leaving.cancel()
        runner.gate.set()
        await until(lambda: not cluster.driver.runs)
        assert (await client.post(TEXT, json=body, headers=bearer(ACME))).status_code == 200

    on_cluster(run, config=KEYS, make_runner=lambda: runner, tenants=TenantLimits(concurrent={"acme": 1}))


def test_tokens_of_the_answer_are_charged() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 20, "ignore_eos": True}
        first = await client.post(TEXT, json=body, headers=bearer(ACME))
        assert first.status_code == 200
        refusal = await client.post(TEXT, json=body, headers=bearer(ACME))
        refused(refusal, 429, "tenant_quota", None)
        assert refusal.headers["x-ratelimit-remaining-tokens"] == "0"
        assert 1 <= int(refusal.headers["retry-after"]) <= 120

    on_cluster(run, config=KEYS, tenants=TenantLimits(tokens={"acme": 10}))
