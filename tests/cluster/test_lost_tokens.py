"""Deaths as a gateway sees them: tokens that died with an instance, deaths that the scheduler hears last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from cluster import control_pb2 as pb
from cluster import request_driver
from cluster.request_driver import RequestDriver, Run
from cluster.token_streams import TokenStreams
from engine.errors import InstanceDied, Overloaded
from engine.request import Request, Sampling
from global_scheduler.journey import Patience
from migration import wire_pb2
from tests.cluster.doubles import until


class Fake:
    """An instance that takes what it is given; `die` ends it, `break_off` only the connection to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started: list[bytes] = []
        self.taken = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def die(self) -> None:
        self.over.set_exception(InstanceDied(self.name))

    def break_off(self) -> None:
        self.over.set_exception(Overloaded(self.name))

    async def start(self, start: bytes) -> None:
        if self.over.done():
            raise InstanceDied(f"{self.name} is dead")
        self.started.append(start)

    async def cancel(self, request_id: str) -> None:
        pass

    async def take(self, name: str, digest: str) -> bytes:
        self.taken += 1
        return b""

    async def lifetime(self) -> None:
        await asyncio.shield(self.over)


class Scene:
    """Instances a to f, and a scheduler that believes the first of `known` to be the best."""

    def __init__(self) -> None:
        self.streams = TokenStreams()
        self.instances = {name: Fake(name) for name in "abcdef"}
        self.known = list("abcdef")
        self.asked: list[set[str]] = []
        patience = Patience(attempts=4, recovery_timeout=10.0, first_pause=0.01)
        self.driver = RequestDriver("home", self.streams, self, self.instances.__getitem__, patience)
        self.driver.instances.greet(self.known)

    async def place(self, request: pb.PlaceRequest) -> pb.Placement:
        self.asked.append(set(request.exclude))
        name = next((name for name in self.known if name not in request.exclude), self.known[0])
        return pb.Placement(prefill=name, decode=name, reason="the first")

    def run(self, n: int = 1) -> Run:
        sampling = Sampling(max_tokens=50, n=n)
        return self.driver.run(Request(id="r", prompt=(1, 2, 3), sampling=sampling), asyncio.Event())

    def push(self, instance: str, index: int, *, choice: int = 0, move: int = 0) -> None:
        message = pb.Tokens(
            request_id="r",
            choice=choice,
            epoch=wire_pb2.Epoch(attempt=0, move=move),
            index=index,
            tokens=[index],
            text=["x"],
        )
        self.streams.push(pb.TokenBatch(instance=instance, tokens=[message]))

    def claim(self, instance: str, move: int, **lengths: int) -> bool:
        epoch = wire_pb2.Epoch(attempt=0, move=move)
        length = {int(choice[1:]): count for choice, count in lengths.items()}
        claim = pb.ClaimRequest(request_id="r", instance=instance, epoch=epoch, length=length)
        return self.streams.claim(claim).granted

    def given(self, run: Run) -> list[int | None]:
        return [piece.token for piece in run.take()]


def play(test: Callable[[Scene], Coroutine[None, None, None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_driver, "GAP_GRACE", 0.05)

    async def whole() -> None:
        scene = Scene()
        try:
            async with asyncio.timeout(20):
                await test(scene)
        finally:
            await scene.driver.close()

    asyncio.run(whole())


def test_tokens_that_died_are_drawn_again_though_others_still_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dies with token 9 after B has claimed ten; A's 7 and 8 come only after the news of its death."""

    async def test(scene: Scene) -> None:
        run = scene.run()
        await until(lambda: scene.instances["a"].started)
        for index in range(7):
            scene.push("a", index)
        assert scene.claim("b", 1, c0=10)
        scene.instances["a"].die()
        await until(lambda: "a" in scene.driver.instances.died())
        scene.push("b", 10, move=1)
        scene.push("a", 7)
        scene.push("a", 8)
        await until(lambda: len(scene.instances["c"].started) + len(scene.instances["b"].started) == 1)
        assert scene.given(run) == list(range(9))
        assert run.progress.recoveries == 1

    play(test, monkeypatch)


def test_they_are_though_it_moves_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        run = scene.run()
        await until(lambda: scene.instances["a"].started)
        scene.push("a", 0)
        assert scene.claim("b", 1, c0=3)
        scene.instances["a"].die()
        await until(lambda: "a" in scene.driver.instances.died())
        assert scene.claim("c", 2, c0=4)
        await until(lambda: run.progress.recoveries == 1)

    play(test, monkeypatch)


def test_they_are_though_another_choice_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        run = scene.run(n=2)
        await until(lambda: scene.instances["a"].started)
        scene.push("a", 0, choice=0)
        scene.push("a", 0, choice=1)
        assert scene.claim("b", 1, c0=1, c1=2)
        scene.instances["a"].die()
        await until(lambda: "a" in scene.driver.instances.died())
        index = 1
        while not run.progress.recoveries:
            scene.push("b", index, choice=0, move=1)
            index += 1
            await asyncio.sleep(0.01)

    play(test, monkeypatch)


def test_tokens_that_come_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        run = scene.run()
        await until(lambda: scene.instances["a"].started)
        assert scene.claim("b", 1, c0=5)
        scene.instances["a"].die()
        await until(lambda: "a" in scene.driver.instances.died())
        for index in range(5):
            await asyncio.sleep(0.02)
            scene.push("a", index)
        await asyncio.sleep(0.2)
        assert run.progress.recoveries == 0
        assert scene.given(run) == list(range(5))

    play(test, monkeypatch)


def test_all_instances_that_die_at_once_cost_a_request_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler hears of it last."""

    async def test(scene: Scene) -> None:
        run = scene.run()
        await until(lambda: scene.instances["a"].started)
        scene.push("a", 0)
        scene.known = list("abcde")
        for name in scene.known:
            scene.instances[name].die()
        await until(lambda: len(scene.asked) >= 8)
        assert not run.ended
        assert set("abcde") <= scene.asked[-1]
        scene.known = ["f"]
        await until(lambda: scene.instances["f"].started)

    play(test, monkeypatch)


def test_an_instance_that_only_could_not_be_reached_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        scene.known = ["a"]
        scene.instances["a"].break_off()
        scene.instances["a"] = Fake("a")
        await until(lambda: "a" not in scene.driver.instances.known())
        scene.run()
        await until(lambda: scene.instances["a"].started)
        assert not scene.driver.instances.died()

    play(test, monkeypatch)


def test_a_full_gateway_takes_nothing_from_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have given up nobody would go on with."""

    async def test(scene: Scene) -> None:
        monkeypatch.setattr(request_driver, "MOST_RUNS", 0)
        with pytest.raises(Overloaded):
            await scene.driver.take("r", b"", ["a"])
        assert not scene.instances["a"].taken

    play(test, monkeypatch)
