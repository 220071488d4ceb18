"""The control port: who may call, what errors look like at the caller, and how fast a placement is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from cluster import control_pb2 as pb
from cluster import control_pb2_grpc
from cluster.config import Config, ControlConfig
from cluster.control import SchedulerService, serve_control
from cluster.controller import Controller
from cluster.rpc import channel, error_from, error_message, listen, raised, server
from cluster.scheduler_client import SchedulerClient
from engine import errors
from engine.errors import InvalidKey, NotFound, Overloaded, RefusedError, SetupError, TandemError
from engine.status import InstanceStatus

CONFIG = Config(control=ControlConfig(token="secret"))


class Nobody:
    """A fleet whose instances never come."""

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> None:
        raise TandemError("there are no machines")

    async def existing(self) -> list[None]:
        return []


@asynccontextmanager
async def serving(config: Config = CONFIG) -> AsyncIterator[tuple[Controller, str]]:
    controller = Controller(config, Nobody(), version="1.2")  # type: ignore[arg-type]
    await controller.start()
    port, address = await serve_control(controller)
    try:
        yield controller, address
    finally:
        await port.stop(None)
        await controller.close()


def run(test: object) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test  # type: ignore[misc]

    asyncio.run(bounded())


def test_the_secret_opens_the_port() -> None:
    async def test() -> None:
        async with serving() as (_, address), channel(address, "secret") as line:
            status = await control_pb2_grpc.ControlStub(line).GetStatus(pb.StatusRequest(), timeout=5)
            assert status.version == "1.2"

    run(test())


@pytest.mark.parametrize("token", ["wrong", "secre", "secrets"])
def test_another_secret_does_not(token: str) -> None:
    async def test() -> None:
        async with serving() as (_, address), channel(address, token) as line:
            with pytest.raises(InvalidKey), raised():
                await control_pb2_grpc.ControlStub(line).GetStatus(pb.StatusRequest(), timeout=5)
            with pytest.raises(InvalidKey), raised():
                async for _ in control_pb2_grpc.ControlStub(line).WatchEvents(pb.EventsRequest(), timeout=5):
                    pass

    run(test())


def test_no_secret_does_not_and_no_server_runs_without_one() -> None:
    async def test() -> None:
        async with serving() as (_, address), grpc.aio.insecure_channel(address) as line:
            with pytest.raises(InvalidKey), raised():
                await control_pb2_grpc.ControlStub(line).GetStatus(pb.StatusRequest(), timeout=5)
        with pytest.raises(SetupError, match=r"control\.token"):
            server("")

    run(test())


def test_an_error_comes_back_of_its_class_with_its_message_and_parameter() -> None:
    async def test() -> None:
        async with serving() as (_, address), channel(address, "secret") as line:
            control = control_pb2_grpc.ControlStub(line)
            with pytest.raises(NotFound, match="did you mean prefill") as caught, raised():
                await control.Scale(pb.ScaleRequest(pool="prefil", replicas=1), timeout=5)
            assert caught.value.param == "pool"
            with pytest.raises(RefusedError, match="--min 0 as well"), raised():
                await control.Scale(pb.ScaleRequest(pool="decode", replicas=0), timeout=5)

    run(test())


def leaves(cls: type[TandemError]) -> list[type[TandemError]]:
    below = [c for c in cls.__subclasses__() if c.__module__ == errors.__name__]
    return [cls] if not below else [leaf for child in below for leaf in leaves(child)]


@pytest.mark.parametrize("cls", leaves(TandemError))
def test_every_kind_of_error_survives_the_way(cls: type[TandemError]) -> None:
    error = error_from(error_message(cls("a reason", param="some.path")))
    assert (type(error), error.message, error.param) == (cls, "a reason", "some.path")


def test_an_unknown_kind_of_error_is_still_an_error() -> None:
    assert error_from(pb.Error(code="from_the_future", message="x")).message == "x"


def test_where_nobody_listens_the_caller_is_told_to_try_later() -> None:
    async def test() -> None:
        async with channel("127.0.0.1:1", "secret") as line:
            with pytest.raises(Overloaded, match="does not answer"), raised():
                await control_pb2_grpc.ControlStub(line).GetStatus(pb.StatusRequest(), timeout=5)

    run(test())


def test_a_taken_port_is_named_with_its_setting() -> None:
    async def test() -> None:
        first = server("secret")
        port = int(listen(first, "127.0.0.1", 0, setting="control.port").rpartition(":")[2])
        with pytest.raises(SetupError, match=rf"127\.0\.0\.1:{port} .*control\.port"):
            listen(server("secret"), "127.0.0.1", port, setting="control.port")
        await first.stop(None)

    run(test())


def test_events_are_given_from_an_id_on_and_then_as_they_come() -> None:
    async def test() -> None:
        async with serving() as (controller, address), channel(address, "secret") as line:
            control = control_pb2_grpc.ControlStub(line)
            old = [event async for event in control.WatchEvents(pb.EventsRequest(), timeout=5)]
            last = old[-1].id if old else 0
            watch = control.WatchEvents(pb.EventsRequest(follow=True, after=last), timeout=5)
            controller.events.add("tested", "a", "first")
            controller.events.add("tested", "b", "second")
            seen: list[str] = []
            async for event in watch:
                if event.kind == "tested":
                    seen.append(event.reason)
                if len(seen) == 2:
                    break
            assert seen == ["first", "second"]

    run(test())


def test_a_placement_error_is_raised_at_the_gateway() -> None:
    async def test() -> None:
        async with serving() as (_, address):

            async def discover() -> str:
                return address

            client = SchedulerClient(discover, "secret", timeout=5)
            with pytest.raises(errors.NoPrefillInstance):
                await client.place(pb.PlaceRequest(request_id="r", prompt_tokens=9, max_tokens=1))
            await client.close()

    run(test())


def test_a_gateway_finds_the_controller_again_at_its_new_port() -> None:
    async def test() -> None:
        where = [""]

        async def discover() -> str:
            return where[0]

        client = SchedulerClient(discover, "secret", timeout=5)
        async with serving() as (_, where[0]):
            assert (await client.join(pb.Gateway(name="g"))).gateways[0].name == "g"
        async with serving() as (_, where[0]):
            with pytest.raises(Overloaded):
                await client.join(pb.Gateway(name="g"))
            assert (await client.join(pb.Gateway(name="g"))).gateways[0].name == "g"
        await client.close()

    run(test())


def test_a_gateway_asks_for_the_moves_of_a_request() -> None:
    async def test() -> None:
        async with serving() as (controller, address):

            async def discover() -> str:
                return address

            for name in ("r~1-0", "s~1-0"):
                controller.migrations.add(pb.Migration(request_id=name, outcome="committed", stages=2))
            client = SchedulerClient(discover, "secret", timeout=5)
            (move,) = await client.migrations("r~1-0")
            assert (move.request_id, move.stages) == ("r~1-0", 2)
            await client.close()

    run(test())


def test_one_call_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def slow(self: object, request: pb.PlaceRequest, context: object) -> pb.Placement:
            asked.set()
            await answered.wait()
            return pb.Placement(reason="late")

        async def failing(self: object, request: pb.Gateway, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

        monkeypatch.setattr(SchedulerService, "Place", slow)
        monkeypatch.setattr(SchedulerService, "Join", failing)
        async with serving() as (_, address):

            async def discover() -> str:
                return address

            client = SchedulerClient(discover, "secret", timeout=5)
            waiting = asyncio.create_task(client.place(pb.PlaceRequest()))
            await asked.wait()
            with pytest.raises(Overloaded):
                await client.join(pb.Gateway())
            answered.set()
            assert (await waiting).reason == "late"
            await client.close()

    run(test())


class Searching:
    """Where the controller is, which nobody learns before `found`; `asked` counts who wanted to."""

    def __init__(self) -> None:
        self.found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()
        self.asked = 0

    async def discover(self) -> str:
        self.asked += 1
        self.begun.set()
        return await asyncio.shield(self.found)


def test_all_who_wait_for_a_controller_that_is_away_wait_for_one_search() -> None:
    async def test() -> None:
        searching = Searching()
        client = SchedulerClient(searching.discover, "secret", timeout=0.2)
        waiting = [client.place(pb.PlaceRequest(request_id=str(number))) for number in range(20)]
        answers = await asyncio.gather(*waiting, client.join(pb.Gateway()), return_exceptions=True)
        assert {type(answer) for answer in answers} == {Overloaded}
        assert "it is started again (TimeoutError)" in str(answers[0])
        assert searching.asked == 1
        with pytest.raises(Overloaded):
            await client.join(pb.Gateway())
        assert searching.asked == 2
        await client.close()

    run(test())


def test_who_leaves_does_not_end_the_search_of_the_others() -> None:
    async def test() -> None:
        searching = Searching()
        client = SchedulerClient(searching.discover, "secret", timeout=5)
        async with serving() as (_, address):
            first, second = (asyncio.create_task(client.join(pb.Gateway(name=name))) for name in "ab")
            await searching.begun.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            searching.found.set_result(address)
            assert [one.name for one in (await second).gateways] == ["b"]
            assert first.cancelled() and searching.asked == 1
            await client.close()

    run(test())


def test_a_client_that_is_closed_searches_no_more() -> None:
    async def test() -> None:
        before = asyncio.all_tasks()
        searching = Searching()
        client = SchedulerClient(searching.discover, "secret", timeout=5)
        waiting = asyncio.create_task(client.join(pb.Gateway()))
        await searching.begun.wait()
        await client.close()
        await asyncio.gather(waiting, return_exceptions=True)
        assert asyncio.all_tasks() == before

    run(test())


def place_times(count: int) -> list[float]:
    times: list[float] = []

    async def test() -> None:
        async with serving() as (controller, address), channel(address, "secret") as line:
            for name in ("prefill-0", "decode-0", "decode-1"):
                role = name.partition("-")[0]
                status = InstanceStatus(instance=name, role=role, blocks_total=10**6)
                controller.scheduler.observe(status, time.monotonic())
            stub = control_pb2_grpc.SchedulerStub(line)
            for number in range(count):
                request = pb.PlaceRequest(request_id=str(number), prompt_tokens=9, max_tokens=9)
                begun = time.perf_counter()
                await stub.Place(request, timeout=5)
                times.append(time.perf_counter() - begun)

    run(test())
    return sorted(times[count // 10 :])


def test_a_placement_takes_about_a_millisecond() -> None:
    times = place_times(200)
    assert times[len(times) // 2] < 0.005
