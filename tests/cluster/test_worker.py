"""The actor of an instance without Ray: what it refuses, whom it obeys, and how it ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import TypeVar

import pytest

from cluster import control_pb2 as pb
from cluster import worker as worker_module
from cluster.config import Config, ControlConfig
from cluster.controller import Memo
from cluster.step_watch import Present
from cluster.token_rate import TokenRate
from cluster.worker import Worker
from engine.errors import Draining, Fenced, InstanceDied, ModelFileError
from engine.status import InstanceStatus
from tests.cluster.doubles import until

T = TypeVar("T")


class MadeUp:
    """An engine that does nothing."""

    def __init__(self) -> None:
        self.ended: Future[None] = Future()
        self.description = pb.Instance(device="paper")
        self.started: list[bytes] = []
        self.closed = False
        self.draining = False
        self.answers: Future[InstanceStatus] | None = None
        self.at = Present(5)

    async def open(self) -> None:
        pass

    def start(self, start: bytes) -> Future[None]:
        self.started.append(start)
        return done(None)

    def cancel(self, request_id: str) -> Future[bool]:
        return done(False)

    def status(self) -> Future[InstanceStatus]:
        return self.answers or done(InstanceStatus(instance="", role="", steps=5))

    def present(self) -> Present:
        return self.at

    def drain(self) -> None:
        self.draining = True

    async def close(self) -> None:
        self.closed = True


def done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    """The exits that the process would have made."""
    monkeypatch.setattr(worker_module.os, "_exit", made.append)
    monkeypatch.setattr(worker_module, "on_sigterm", lambda callback: None)
    monkeypatch.setattr(worker_module, "FAREWELL", 0.0)
    return made


def run(test: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test

    asyncio.run(bounded())


def worker_of(engine: MadeUp, **control: float) -> Worker:
    config = Config(control=ControlConfig(token="t", **control)).model_dump_json()  # type: ignore[arg-type]
    memo = Memo(generation=3).to_bytes()
    return Worker(lambda *_: engine, config, "decode-0", "decode", memo, 3, 2)


def told(message: bytes) -> pb.Instance:
    return pb.Instance.FromString(message)


def test_it_says_what_it_is_once_it_has_loaded(exits: list[int]) -> None:
    async def test() -> None:
        one = told(await worker_of(MadeUp()).ready())
        assert (one.name, one.role, one.state, one.device, one.pid) == (
            "decode-0", "decode", "ready", "paper", os.getpid()
        )  # fmt: skip
        assert (one.status.instance, one.status.steps) == ("decode-0", 5)

    run(test())


def test_it_goes_by_its_name_in_what_ray_writes_to_its_log(exits: list[int]) -> None:
    assert repr(worker_of(MadeUp())) == "decode-0"


def test_a_load_that_fails_says_why_each_time(exits: list[int]) -> None:
    def broken(*_: object) -> MadeUp:
        raise ModelFileError("model.gguf is cut off")

    async def test() -> None:
        worker = Worker(broken, Config().model_dump_json(), "decode-0", "decode", b"", 1, 1)
        for _ in range(2):
            with pytest.raises(ModelFileError, match="cut off"):
                await worker.ready()

    run(test())


def test_a_draining_instance_refuses_new_requests_and_keeps_the_old(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        await worker.ready()
        await worker.start(b"one")
        await worker.drain()
        with pytest.raises(Draining, match="decode-0"):
            await worker.start(b"two")
        assert engine.started == [b"one"]
        assert engine.draining
        assert told(await worker.status()).state == "draining"
        assert not engine.closed

    run(test())


def test_the_newest_controller_is_obeyed_and_an_older_one_fenced(exits: list[int]) -> None:
    async def test() -> None:
        worker = worker_of(MadeUp())
        await worker.ready()
        await worker.status(4, b"left by the fourth")
        for call in (worker.status(3, b"x"), worker.drain(3), worker.stop(3)):
            with pytest.raises(Fenced, match="generation 4"):
                await call
        assert await worker.memo() == (b"left by the fourth", "decode")
        assert told(await worker.status()).state == "ready"

    run(test())


def test_stopping_lets_go_of_everything_and_tells_who_watches(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        await worker.ready()
        watch = asyncio.create_task(worker.lifetime())
        await worker.stop()
        with pytest.raises(InstanceDied, match="stopped"):
            await watch
        assert engine.closed

    run(test())


def test_who_watches_is_answered_in_time_and_asks_again(exits: list[int]) -> None:
    async def test() -> None:
        worker = worker_of(MadeUp())
        await worker.ready()
        await worker.lifetime(0.01)
        watch = asyncio.create_task(worker.lifetime(30.0))
        await asyncio.sleep(0)
        await worker.stop()
        with pytest.raises(InstanceDied, match="stopped"):
            await watch

    run(test())


def test_an_engine_that_fails_ends_the_instance_with_its_reason(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        exited = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(worker_module.os, "_exit", exited.set_result)
        engine = MadeUp()
        worker = worker_of(engine)
        await worker.ready()
        engine.ended.set_exception(MemoryError("no more blocks on the device"))
        with pytest.raises(InstanceDied, match="MemoryError: no more blocks"):
            await worker.lifetime()
        assert await exited == 1

    run(test())


def test_an_instance_that_hears_of_no_controller_ends(exits: list[int]) -> None:
    async def test() -> None:
        worker = worker_of(MadeUp(), orphan_timeout=0.05)
        await worker.ready()
        with pytest.raises(InstanceDied, match="no controller"):
            await worker.lifetime()

    run(test())


def test_a_controllers_beat_keeps_it_and_anybody_elses_question_does_not(exits: list[int]) -> None:
    async def test() -> None:
        worker = worker_of(MadeUp(), orphan_timeout=0.2)
        await worker.ready()
        watch = asyncio.create_task(worker.lifetime())
        for _ in range(8):
            await worker.status(3)
            done, _ = await asyncio.wait([watch], timeout=0.05)
            assert not done
        while not watch.done():
            await worker.status()
        assert isinstance(watch.exception(), InstanceDied)

    run(test())


def test_while_a_step_takes_long_the_last_status_is_given(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        assert told(await worker.ready()).status.steps == 5
        engine.answers = Future()
        assert told(await worker.status()).status.steps == 5
        engine.answers.set_result(InstanceStatus(instance="", role="", steps=6))
        assert told(await worker.status()).status.steps == 6

    run(test())


def test_the_first_status_is_waited_for_however_long_the_engine_is_silent(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without blocks would have the scheduler refuse every request for good."""
    monkeypatch.setattr(worker_module, "STATUS_WAIT", 0.001)

    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        engine.answers = Future()
        ready = asyncio.create_task(worker.ready())
        await until(lambda: worker._asked is not None)
        status = asyncio.create_task(worker.status(3, b""))
        done, _ = await asyncio.wait([ready, status], timeout=0.05)
        assert not done
        engine.answers.set_result(InstanceStatus(instance="", role="", blocks_total=7))
        for answer in await asyncio.gather(ready, status):
            assert told(answer).status.blocks_total == 7

    run(test())


def test_an_engine_that_fails_before_its_first_status_fails_the_start(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        engine.answers = Future()
        engine.answers.set_exception(Draining("the engine loop has been stopped"))
        with pytest.raises(Draining, match="has been stopped"):
            await worker.ready()

    run(test())


def test_it_tells_how_many_tokens_it_draws_a_second(
    exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        engine = MadeUp()
        now = 100.0
        worker = worker_of(engine)
        monkeypatch.setattr(worker, "_rate", TokenRate(lambda: now))
        assert not told(await worker.ready()).HasField("tokens_per_second")
        now = 102.0
        engine.answers = done(InstanceStatus(instance="", role="", output_tokens=50))
        assert told(await worker.status()).tokens_per_second == 25.0

    run(test())


def test_a_beat_tells_of_the_step_under_way(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine)
        assert pb.Beat.FromString(await worker.beat()) == pb.Beat()
        await worker.ready()
        engine.at = Present(6, 32, 0.5, 3.0)
        assert pb.Beat.FromString(await worker.beat()) == pb.Beat(step=6, tokens=32, elapsed=0.5, limit=3.0)

    run(test())


def test_an_engine_that_answers_nobody_between_two_steps_shows_in_the_beat(exits: list[int]) -> None:
    async def test() -> None:
        engine = MadeUp()
        worker = worker_of(engine, step_floor=0.01, step_factor=2.0)
        await worker.ready()
        engine.answers = Future()
        await worker.status()
        beat = pb.Beat.FromString(await worker.beat())
        assert beat.elapsed > beat.limit == 0.02

    run(test())


def test_sigterm_is_noticed_where_the_main_thread_never_runs_python() -> None:
    script = (
        "import os, signal, sys, threading\n"
        "from cluster.termination import on_sigterm\n"
        "def arm():\n"
        "    on_sigterm(lambda: (print('noticed', flush=True), os._exit(0)))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "thread = threading.Thread(target=arm)\n"
        "thread.start()\n"
        "thread.join()\n"
        "lock = threading.Lock()\n"
        "lock.acquire()\n"
        "lock.acquire()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, "noticed\n")


def test_mutant_a_python_signal_handler_is_refused_outside_the_main_thread() -> None:
    script = (
        "import signal, threading\n"
        "thread = threading.Thread(target=signal.signal, args=(signal.SIGTERM, lambda *_: None))\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert "signal only works in main thread" in ended.stderr
