"""A request survives what happens to instances, and nothing of it survives its client."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc, rpc
from cluster.status_message import summary_of
from engine.errors import Overloaded
from engine.sequence import Epoch
from engine.status import InstanceStatus
from global_scheduler.affinity import KEY_TOKENS, prefix_keys
from global_scheduler.placement import PlacementSettings
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from migration.wire import epoch_to_wire
from tests.cluster.doubles import SCRIPT, ScriptedRunner, until
from tests.cluster.local_cluster import TOKEN, LocalCluster, local_cluster

TEXT = "/v1/completions"


class Stepwise(ScriptedRunner):
    """Takes a step only when the test permits one."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)

    def permit(self, steps: int) -> None:
        assert self.permits is not None
        self.permits.release(steps)


class Client:
    """Reads one stream from a gateway that listens."""

    def __init__(self, url: str, **body: Any) -> None:
        self.url = url
        self.body = {"model": "tiny", "prompt": "hi", "stream": True, **body}
        self.texts: dict[int, str] = {}
        self.finishes: dict[int, str] = {}
        self.errors: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.grown = asyncio.Event()

    async def read(self) -> None:
        async with (
            httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=30) as http,
            http.stream("POST", TEXT, json=self.body, headers={"accept": "text/event-stream"}) as response,
        ):
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                self.take(line)

    def take(self, line: str) -> None:
        if line.startswith("id: "):
            self.ids.append(line.rpartition(":")[2])
        if not line.startswith("data: {"):
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.errors.append(event["error"])
        for choice in event.get("choices", ()):
            self.texts[choice["index"]] = self.texts.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"]:
                self.finishes[choice["index"]] = choice["finish_reason"]
        self.grown.set()

    async def until(self, length: int) -> None:
        """Wait until choice 0 has so many characters."""
        async with asyncio.timeout(20):
            while len(self.texts.get(0, "")) < length:
                self.grown.clear()
                await self.grown.wait()


def holder(cluster: LocalCluster) -> str:
    (name,) = [name for name, each in cluster.instances.items() if each.started and not each.death.done()]
    return name


@pytest.mark.parametrize("at", [1, 5, 38, 50], ids="after {} characters".format)
def test_a_stream_goes_on_where_its_instance_died(at: int) -> None:
    """At 38 the death falls into the middle of a character."""

    async def run() -> None:
        async with local_cluster(instances=2, make_runner=Stepwise) as cluster, cluster.serve() as url:
            client = Client(url)
            reading = asyncio.create_task(client.read())
            steps = len(SCRIPT[:at].encode()) + (1 if at == 38 else 0)
            for instance in cluster.instances.values():
                instance.runner.permit(steps)
            await client.until(at)
            first = holder(cluster)
            await cluster.instances[first].kill()
            cluster.instances[first].runner.permit(10_000)
            (second,) = [name for name in cluster.instances if name != first]
            cluster.instances[second].runner.permit(10_000)
            await reading
            assert cluster.instances[second].started
            assert client.texts == {0: SCRIPT}
            assert client.finishes == {0: "stop"}

    asyncio.run(run())


@pytest.mark.parametrize("at", [3, 4, 30], ids="after {} tokens".format)
def test_a_request_whose_instance_died_goes_where_its_prompt_and_output_are_held(at: int) -> None:
    """With its fourth token it is one key long. Whoever has that is a little less free than another."""
    scheduler = Scheduler(SchedulerSettings(PlacementSettings(ranking="affinity")))
    for number, used in enumerate((0, 16, 8)):
        status = InstanceStatus(f"instance-{number}", "decode", blocks_total=64, blocks_used=used)
        scheduler.observe(status, 0.0)
    places: list[pb.PlaceRequest] = []

    async def place(request: pb.PlaceRequest) -> pb.Placement:
        places.append(request)
        found = scheduler.place(summary_of(request), 0.0)
        return pb.Placement(prefill=found.prefill, decode=found.decode, reason=found.reason)

    async def run() -> None:
        async with local_cluster(instances=3, make_runner=Stepwise) as cluster, cluster.serve() as url:
            cluster.place = place  # type: ignore[method-assign]
            client = Client(url, prompt="p" * (KEY_TOKENS - 4))
            reading = asyncio.create_task(client.read())
            # The prompt takes all of the first step.
            cluster.instances["instance-0"].runner.permit(at)
            await client.until(at)
            (request,) = [run.request for run in cluster.driver.runs.values()]
            said = (*request.prompt, *SCRIPT.encode())
            scheduler.placer.index.sent("instance-1", prefix_keys(said, request.salt), 64)
            await cluster.instances["instance-0"].kill()
            for instance in cluster.instances.values():
                instance.runner.permit(10_000)
            await reading
            assert [name for name, each in cluster.instances.items() if each.started] == [
                "instance-0",
                "instance-1" if at >= 4 else "instance-2",
            ]
            first, second = places
            assert second.prefix == list(prefix_keys(said[: len(request.prompt) + at], request.salt))
            assert not first.prefix
            assert client.texts == {0: SCRIPT}

    asyncio.run(run())


def test_all_choices_of_a_request_go_on() -> None:
    async def run() -> None:
        async with (
            local_cluster(instances=2, make_runner=Stepwise, blocks=256) as cluster,
            cluster.serve() as url,
        ):
            client = Client(url, n=3, stop=["upon a tim"])
            reading = asyncio.create_task(client.read())
            for instance in cluster.instances.values():
                instance.runner.permit(7)
            await client.until(5)
            first = holder(cluster)
            await cluster.instances[first].kill()
            for instance in cluster.instances.values():
                instance.runner.permit(10_000)
            await reading
            assert client.texts == {0: "Once ", 1: "nce ", 2: "ce "}

    asyncio.run(run())


def test_a_stream_without_any_instance_ends_with_an_error() -> None:
    async def run() -> None:
        async with local_cluster(instances=1, make_runner=Stepwise) as cluster, cluster.serve() as url:
            client = Client(url)
            reading = asyncio.create_task(client.read())
            runner = cluster.instances["instance-0"].runner
            runner.permit(4)
            await client.until(4)
            await cluster.instances["instance-0"].kill()
            runner.permit(10_000)
            await reading
            assert client.texts == {0: "Once"}
            assert [error["type"] for error in client.errors] == ["overloaded"]

    asyncio.run(run())


def test_positions_count_on_over_a_death() -> None:
    async def run() -> None:
        async with local_cluster(instances=2, make_runner=Stepwise) as cluster, cluster.serve() as url:
            client = Client(url, max_tokens=12)
            reading = asyncio.create_task(client.read())
            for instance in cluster.instances.values():
                instance.runner.permit(6)
            await client.until(6)
            await cluster.instances[holder(cluster)].kill()
            for instance in cluster.instances.values():
                instance.runner.permit(10_000)
            await reading
            positions = [int(position.rstrip(".")) for position in client.ids]
            assert positions == sorted(set(positions))
            assert positions[-1] == 12

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_blocks_within_a_step(stream: bool) -> None:
    async def run() -> None:
        async with local_cluster(make_runner=Stepwise) as cluster, cluster.serve() as url:
            instance = cluster.instances["instance-0"]
            body = {"model": "tiny", "prompt": "hi", "stream": stream, "n": 2}
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                asking = asyncio.create_task(http.post(TEXT, json=body))
                instance.runner.permit(6)
                await until(lambda: instance.runner.steps >= 6)
                assert instance.core.pool.used > 0
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: instance.cancelled)
            # The step in flight is the last that the request is in.
            instance.runner.permit(1)
            await cluster.idle()
            assert instance.runner.steps <= 7

    asyncio.run(run())


def test_a_client_that_leaves_while_it_is_queued_leaves_nothing() -> None:
    async def run() -> None:
        async with local_cluster(make_runner=Stepwise) as cluster, cluster.serve() as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
                asking = asyncio.create_task(http.post(TEXT, json={"model": "tiny", "prompt": "hi"}))
                await until(lambda: cluster.instances["instance-0"].started)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: cluster.instances["instance-0"].cancelled)
            cluster.instances["instance-0"].runner.permit(1)
            await cluster.idle()

    asyncio.run(run())


def test_an_instance_that_woke_up_late_does_no_harm() -> None:
    """It was taken for dead and is not: what it pushes is fenced, and it drops the request."""

    async def run() -> None:
        async with local_cluster(instances=2, make_runner=Stepwise) as cluster, cluster.serve() as url:
            client = Client(url)
            reading = asyncio.create_task(client.read())
            for instance in cluster.instances.values():
                instance.runner.permit(4)
            await client.until(4)
            first = cluster.instances[holder(cluster)]
            cluster.driver._lost(first.name, "it hangs")
            first.runner.permit(10_000)
            for instance in cluster.instances.values():
                instance.runner.permit(10_000)
            await reading
            assert client.texts == {0: SCRIPT}

    asyncio.run(run())


def test_tokens_that_died_with_a_source_are_drawn_again() -> None:
    """The request moved, but the first token of its source never arrived, and the source is dead."""

    async def run() -> None:
        async with local_cluster(instances=2, make_runner=Stepwise) as cluster, cluster.serve() as url:
            client = Client(url)
            reading = asyncio.create_task(client.read())
            await until(lambda: any(each.started for each in cluster.instances.values()))
            source = cluster.instances[holder(cluster)]
            (target,) = [each for each in cluster.instances.values() if each is not source]
            (request_id,) = cluster.driver.runs
            async with rpc.channel(cluster.driver.home, TOKEN) as channel:
                claim = pb.ClaimRequest(
                    request_id=request_id,
                    instance=target.name,
                    epoch=epoch_to_wire(Epoch(0, 1)),
                    length={0: 1},
                )
                assert (await control_pb2_grpc.HomeStub(channel).Claim(claim)).granted
            await source.kill()
            source.runner.permit(10_000)
            target.runner.permit(10_000)
            await reading
            assert client.texts == {0: SCRIPT}

    asyncio.run(run())


def test_a_busy_scheduler_is_asked_again() -> None:
    async def run() -> None:
        async with local_cluster() as cluster, cluster.client() as http:
            place, refusals = cluster.place, [Overloaded("all queues are full")] * 3

            async def busy(request: pb.PlaceRequest) -> pb.Placement:
                if refusals:
                    raise refusals.pop()
                return await place(request)

            cluster.place = busy  # type: ignore[method-assign]
            response = await http.post(TEXT, json={"model": "tiny", "prompt": "hi"})
            assert response.json()["choices"][0]["text"] == SCRIPT

    asyncio.run(run())


def test_a_call_to_the_scheduler_that_breaks_off_is_made_again() -> None:
    async def run() -> None:
        async with local_cluster() as cluster, cluster.client() as http:
            place, breaks = cluster.place, [asyncio.CancelledError()] * 2

            async def breaking(request: pb.PlaceRequest) -> pb.Placement:
                if breaks:
                    raise breaks.pop()
                return await place(request)

            cluster.place = breaking  # type: ignore[method-assign]
            response = await http.post(TEXT, json={"model": "tiny", "prompt": "hi"})
            assert response.json()["choices"][0]["text"] == SCRIPT

    asyncio.run(run())


def test_a_scheduler_that_fails_is_an_answer_too() -> None:
    async def run() -> None:
        async with local_cluster() as cluster, cluster.client() as http:

            async def broken(request: pb.PlaceRequest) -> pb.Placement:
                raise RuntimeError("broken")

            cluster.place = broken  # type: ignore[method-assign]
            assert (await http.post(TEXT, json={"model": "tiny", "prompt": "hi"})).status_code == 500

    asyncio.run(run())


def test_requests_at_once_do_not_mix() -> None:
    async def run() -> None:
        async with local_cluster(instances=3, blocks=2048) as cluster, cluster.client() as http:
            bodies = [{"model": "tiny", "prompt": "x" * (1 + i), "max_tokens": 3 + 2 * i} for i in range(40)]
            answers = await asyncio.gather(*(http.post(TEXT, json=body) for body in bodies))
            texts = [answer.json()["choices"][0]["text"].replace("\ufffd", "") for answer in answers]
            whole = SCRIPT.encode()
            assert texts == [whole[: 3 + 2 * i].decode("utf-8", "ignore") for i in range(40)]

    asyncio.run(run())
