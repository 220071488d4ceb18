"""The gateway of a real cluster: two pools of Ray actors, KV that moves between them, and Serve around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest

from cluster import control_pb2 as pb
from tests.cluster import streams
from tests.cluster.conftest import Cluster

LONG = "a prompt of more than thirty-two tokens, so that it is prefilled in the other pool"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": LONG, "temperature": 0, "ignore_eos": True, **fields}


def idle(cluster: Cluster) -> None:
    """No block is in use on any instance."""
    cluster.until(
        lambda status: all(
            not (
                one.status.blocks_used
                or one.status.blocks_reserved
                or one.status.running
                or one.status.waiting
            )
            for one in status.instances
        )
    )


def reference(cluster: Cluster, **fields: Any) -> str:
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body(**fields), timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_a_long_prompt_is_prefilled_in_one_pool_and_decoded_in_the_other(cluster: Cluster) -> None:
    asked = body(max_tokens=20)
    headers = {"x-tandem-debug": "1"}
    answer = httpx.post(
        f"{cluster.url}/v1/completions", json=asked, headers=headers, timeout=60, trust_env=False
    ).json()
    assert answer["tandem"]["prefill"].startswith("prefill-")
    assert answer["tandem"]["decode"].startswith("decode-")
    assert answer["usage"]["completion_tokens"] == 20
    idle(cluster)


def test_a_request_that_has_ended_tells_where_its_time_went(cluster: Cluster) -> None:
    headers = {"x-request-id": "told-afterwards"}
    answer = httpx.post(
        f"{cluster.url}/v1/completions",
        json=body(max_tokens=5),
        headers=headers,
        timeout=60,
        trust_env=False,
    )
    # Its last phase ends when the answer has been sent, which the client may have read by then.
    cluster.until(lambda _: not any(one.running for one in cluster.control.timelines("told-afterwards")))
    (told,) = cluster.control.timelines("told-afterwards")
    assert (told.outcome, told.output_tokens) == ("length", answer.json()["usage"]["completion_tokens"])
    # Whether another instance decodes is for the scheduler to say.
    assert {"place", "prefill", "decode"} <= {phase.name for phase in told.phases}


def test_the_openai_sdk_streams_from_two_pools(cluster: Cluster) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as api:

            async def ask(number: int) -> tuple[list[str], int]:
                stream = await api.chat.completions.create(
                    model="tiny",
                    messages=[{"role": "user", "content": f"{LONG} {number}"}],
                    max_completion_tokens=30,
                    seed=number,
                    n=2,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                texts, count = ["", ""], 0
                async for chunk in stream:
                    for choice in chunk.choices:
                        texts[choice.index] += choice.delta.content or ""
                    count = chunk.usage.completion_tokens if chunk.usage else count
                return texts, count

            answers = await asyncio.gather(*map(ask, range(8)))
            assert [count for _, count in answers] == [60] * 8
            again = await asyncio.gather(*map(ask, range(8)))
            assert answers == again

    asyncio.run(run())
    idle(cluster)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_every_block_in_both_pools(cluster: Cluster, stream: bool) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=cluster.url, trust_env=False) as client:
            asked = client.post("/v1/completions", json=body(max_tokens=3000, stream=stream, n=2))
            asking = asyncio.create_task(asked)
            await asyncio.to_thread(
                cluster.until, lambda status: any(one.status.running for one in status.instances)
            )
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(run())
    idle(cluster)


def test_a_stream_goes_on_when_its_decode_instance_is_killed(cluster: Cluster) -> None:
    whole = reference(cluster, max_tokens=400)
    pids = {one.name: one.pid for one in cluster.ready("decode")}
    asked = body(max_tokens=400, stream=True)

    async def run() -> None:
        text, killed = "", False
        async with (
            httpx.AsyncClient(base_url=cluster.url, trust_env=False, timeout=60) as client,
            client.stream("POST", "/v1/completions", json=asked, headers={"x-tandem-debug": "1"}) as response,
        ):
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    text += event["choices"][0]["text"]
                if not killed and len(text) > 30:
                    name = response.headers["x-tandem-decode-instance"]
                    os.kill(pids[name], signal.SIGKILL)
                    killed = True
        assert killed
        assert text == whole

    asyncio.run(run())


def test_metrics_tell_of_every_instance(cluster: Cluster) -> None:
    reference(cluster, max_tokens=3)

    def told(status: pb.ClusterStatus) -> bool:
        """The gateway's picture is up to a second old."""
        text = httpx.get(f"{cluster.url}/metrics", trust_env=False).text
        wanted = [
            f'vllm:kv_cache_usage_perc{{engine="{one.name}",model_name="tiny"}}' for one in status.instances
        ]
        return all(
            line in text for line in [*wanted, 'tandem_pool_replicas{pool="decode",state="ready"} 2.0']
        )

    cluster.until(told)


def test_a_request_that_can_never_fit_is_refused_at_the_door(cluster: Cluster) -> None:
    asked = body(max_tokens=4000, n=64)
    answer = httpx.post(f"{cluster.url}/v1/completions", json=asked, timeout=60, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def gateway_process() -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if "ServeReplica:tandem:Gateway" in " ".join(process.cmdline()):
            return process
    raise AssertionError("no gateway runs")


def test_clients_of_a_killed_gateway_come_back_and_have_the_same_text(cluster: Cluster, full: bool) -> None:
    if not full:
        pytest.skip("Serve takes half a minute to start another gateway: run with --full")
    whole = streams.reference(cluster, 1500)
    clients = [streams.Returning(cluster, f"back-{number}", 1500) for number in range(4)]
    with ThreadPoolExecutor(len(clients)) as pool:
        reading = [pool.submit(client.read, 90.0) for client in clients]
        assert all(client.begun.wait(30) for client in clients)
        gateway_process().kill()
        for done in reading:
            done.result(120)
    assert [client.text for client in clients] == [whole] * 4
    assert {client.connections for client in clients} == {2}
    idle(cluster)
