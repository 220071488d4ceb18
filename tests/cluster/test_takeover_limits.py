"""Clients that come back to another gateway, and the limits of their tenants."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import httpx
import pytest

from cluster import control_pb2 as pb
from cluster.config_security import TenantLimits
from cluster.gateway_service import GatewayService
from cluster.takeover import Taken, gathered, taken_message
from tests.cluster.asking import CHAT, TEXT, refused
from tests.cluster.doubles import EOS, SCRIPT, until
from tests.cluster.local_cluster import LocalCluster, LocalGateway, local_gateway
from tests.cluster.test_resume import BODY, STAYS, Stream, opened, runner_of, with_http
from tests.engine.mutants import mutate

ONCE = TenantLimits(concurrent={"*": 1})


def hear(second: LocalGateway, first: LocalCluster) -> None:
    """The controller has told the second gateway what the first one runs."""
    report = first.service.access.limits.report()
    second.service.access.limits.hear([pb.Gateway(name="first", tenants=report)])


async def begun(cluster: LocalCluster, client: httpx.AsyncClient, second: LocalGateway) -> Stream:
    """What a client has of an answer when its gateway dies; the rest has ended at the instance."""
    stream = Stream()
    runner_of(cluster).permits = permits = threading.Semaphore(8)
    hear(second, cluster)
    async with opened(client, BODY, STAYS) as response:
        await stream.read(response, lambda seen: len(seen.texts.get(0, "")) >= 4)
        hear(second, cluster)
    permits.release(1000)
    await until(lambda: not cluster.driver.runs)
    return stream


@pytest.mark.parametrize(
    "tenants",
    [ONCE, TenantLimits(requests={"*": 1}), TenantLimits(tokens={"*": 30})],
    ids=["concurrent", "requests", "tokens"],
)
def test_who_comes_back_is_not_refused_for_the_very_request_that_it_comes_for(tenants: TenantLimits) -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        async with local_gateway(cluster, tenants=tenants) as second, second.client() as other:
            stream = await begun(cluster, client, second)
            if tenants.tokens or tenants.requests:
                hear(second, cluster)
            fresh = await other.post(CHAT, json=BODY | {"stream": False})
            refused(fresh, 429, "tenant_quota", None)
            async with opened(other, BODY, STAYS | {"last-event-id": stream.last}) as response:
                await stream.read(response)
        assert stream.texts == {0: SCRIPT}
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test, tenants=tenants)


def test_who_only_says_that_it_comes_back_is_refused_like_others() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        async with local_gateway(cluster, tenants=ONCE) as second, second.client() as other:
            await begun(cluster, client, second)
            yours = {"x-request-id": "yours", "x-tandem-resumable": "1"}
            for headers in (yours, yours | {"last-event-id": "chatcmpl-yours:3"}):
                refused(await other.post(CHAT, json=BODY, headers=headers), 429, "tenant_quota", None)
        assert len(cluster.instances["instance-0"].started) == 1

    with_http(test, tenants=ONCE)


async def half_taken(cluster: LocalCluster, client: httpx.AsyncClient) -> tuple[int, int]:
    """The status of who comes back for two prompts of which one is still known, with nothing left of its
    requests; and the prompt tokens that were charged."""
    ended = pb.ChoiceTokens(tokens=SCRIPT.encode())
    ended.end.CopyFrom(pb.Tokens(index=len(SCRIPT.encode()), tokens=[EOS], finish_reason="stop"))

    async def take(name: str, digest: bytes, instances: Sequence[str]) -> dict[int, Taken]:
        return gathered([taken_message("instance-0", {}, {f"{name}~1-0": [ended]})])

    cluster.driver.take = take  # type: ignore[method-assign, assignment]
    limits = cluster.service.access.limits
    limits.close(limits.admit("", 1))
    before = limits.report()[0].tokens
    body = {"model": "tiny", "prompt": ["one", "another"], "max_tokens": 120}
    answer = await client.post(TEXT, json=body, headers=STAYS)
    if answer.status_code == 200:
        assert [choice["text"] for choice in answer.json()["choices"]] == [SCRIPT, SCRIPT]
        assert len(cluster.instances["instance-0"].started) == 1
    drawn = len(SCRIPT.encode()) + 1
    return answer.status_code, limits.report()[0].tokens - before - drawn


def test_what_is_still_known_of_a_request_is_not_lost_for_the_rest_of_it() -> None:
    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        assert await half_taken(cluster, client) == (200, len("another"))

    with_http(test, tenants=TenantLimits(requests={"*": 1}, tokens={"*": 100_000}))


def test_mutant_who_refuses_when_instances_have_let_go_loses_what_they_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch, GatewayService, "begin", "if taken else", "if not afresh else")

    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        assert (await half_taken(cluster, client))[0] == 429

    with_http(test, tenants=TenantLimits(requests={"*": 1}, tokens={"*": 100_000}))


@pytest.mark.parametrize("known", [False, True])
def test_an_instance_that_starts_is_not_asked_unless_it_ran_before(known: bool) -> None:
    """A controller that has just begun takes those that it finds for starting, and lists none before."""

    async def test(cluster: LocalCluster, client: httpx.AsyncClient) -> None:
        status, asked = cluster.status, list[str]()

        async def starting() -> pb.ClusterStatus:
            found = await status()
            found.instances.append(pb.Instance(name="decode-9", state="starting"))
            if known:
                del found.instances[0]
            return found

        async def take(name: str, digest: bytes, instances: Sequence[str]) -> dict[int, Taken]:
            asked.extend(instances)
            return {}

        cluster.status = starting  # type: ignore[method-assign]
        async with local_gateway(cluster) as second, second.client() as other:
            second.driver.take = take  # type: ignore[method-assign, assignment]
            if known:
                second.driver.instances.greet(["instance-0"])
            await other.post(CHAT, json=BODY, headers=STAYS)
        assert asked == ["instance-0"]

    with_http(test)
