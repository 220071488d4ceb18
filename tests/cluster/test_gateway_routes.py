"""Everything else at the address: keys, origins, models, tokens, health."""

from __future__ import annotations

import httpx

from cluster.config import GatewayConfig
from cluster.config_security import TenantLimits
from cluster.http_frame import BehindServe
from cluster.limits import Limits
from tests.cluster.asking import CHAT, on_cluster, refused
from tests.cluster.local_cluster import LocalCluster

# Keys and origins


def test_with_keys_only_who_has_one_comes_in() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic key-2"}):
            response = await client.get("/v1/models", headers=headers)
            refused(response, 401, "invalid_api_key", None)
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models", headers={"authorization": "Bearer key-2"})).status_code == 200
        assert (await client.get("/health")).status_code == 200

    on_cluster(run, config=GatewayConfig(api_keys=("key-1", "key-2")))


def test_browsers_come_in_from_listed_origins_only() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            response = await client.options(CHAT, headers={"origin": origin})
            assert (response.status_code == 204) == allowed
            assert (response.headers.get("access-control-allow-origin") == origin) == allowed
            exposed = response.headers.get("access-control-expose-headers", "").split(", ")
            assert ({"x-request-id", "retry-after", *told} <= set(exposed)) == allowed

    told = Limits(TenantLimits(requests={"acme": 60}, tokens={"acme": 6000})).headers("acme")
    assert len(told) == 6
    on_cluster(run, config=GatewayConfig(cors_origins=("https://a.example",)))


def test_behind_serves_proxy_the_request_id_is_the_proxys_to_tell() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        transport = httpx.ASGITransport(BehindServe(cluster.app))
        async with httpx.AsyncClient(transport=transport, base_url="http://serve") as behind:
            assert "x-request-id" not in (await behind.get("/version")).headers

    on_cluster(run)


# The rest


def test_the_model_is_listed() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["tiny"]
        assert (await client.get("/v1/models/tiny")).json()["max_model_len"] == 200

    on_cluster(run)


def test_text_becomes_tokens_and_tokens_text() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        tokens = (await client.post("/tokenize", json={"prompt": "é!", "return_token_strs": True})).json()
        assert (tokens["tokens"], tokens["count"], tokens["token_strs"][-1]) == ([195, 169, 33], 3, "!")
        text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()
        assert text == {"prompt": "é!"}

    on_cluster(run)


def test_a_gateway_is_ready_while_there_are_instances() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for path in ("/health", "/ready", "/ping"):
            assert (await client.get(path)).status_code == 200
            assert (await client.head(path)).status_code == 200

    on_cluster(run)


def test_without_an_instance_a_gateway_is_not_ready() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        for path in ("/health", "/ready"):
            assert (await client.get(path)).status_code == 503

    on_cluster(run, instances=0)


def test_a_gateway_that_leaves_is_alive_but_not_ready() -> None:
    async def run(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        cluster.service.draining = True
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503

    on_cluster(run)
