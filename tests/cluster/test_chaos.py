"""The chaos command: what it reads, what it counts, and what it lets pass."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
import time
from pathlib import Path
from typing import cast

import psutil
import pytest
from typer.testing import CliRunner

from cluster import control_pb2 as pb
from cluster import wall_clock
from cluster.chaos import faults
from cluster.chaos.faults import Done, Injector
from cluster.chaos.load import requests
from cluster.chaos.scenario import Expect, Fault, Load, Scenario, load, shipped
from cluster.chaos.victims import Victim, fill_disk, pick, stop, worth
from cluster.cli.main import build
from cluster.control_client import ControlClient
from engine.errors import ConfigError, InstanceDied, InvalidParameter, NotFound, Unreachable
from tests.cluster.doubles import until

KILL = Done(100.0, "kill", "decode-1", role="decode", target="decode")
SCENARIO = Scenario(
    name="made-up",
    faults=(Fault(kind="kill"),),
    expect=Expect(resume=2.0, pause=2.2, growth=1 << 20, handles=8),
)


def test_a_victim_is_found_by_kind_or_by_name_and_no_dead_one() -> None:
    here = {"node": platform.node(), "pid": os.getpid()}
    status = pb.ClusterStatus(
        controller_pid=os.getpid(),
        controller_node=platform.node(),
        gateways=[pb.Gateway(name="gateway-a", node=platform.node(), pid=2**22 + 1)],
        instances=[
            pb.Instance(name="prefill-0", role="prefill", state="ready", **here),
            pb.Instance(name="decode-0", role="decode", state="draining", **here),
            pb.Instance(name="decode-1", role="decode", state="ready", **here),
        ],
    )
    rng = random.Random(1)
    for target, name in {"decode": "decode-1", "prefill-0": "prefill-0", "controller": "controller"}.items():
        assert pick(target, status, rng).name == name
    assert {pick("instance", status, rng).name for _ in range(20)} == {"prefill-0", "decode-1"}
    for target in ("gateway", "decode-0", "nobody"):
        with pytest.raises(LookupError, match=f"no {target}"):
            pick(target, status, rng)


def test_on_a_full_disk_no_file_grows_and_afterwards_they_do(tmp_path: Path) -> None:
    file = tmp_path / "log"

    async def written() -> list[bool]:
        full = asyncio.create_task(fill_disk(os.getpid(), 0.2))
        await asyncio.sleep(0)
        tries = []
        for _ in range(2):
            try:
                file.write_bytes(b"x")
                tries.append(True)
            except OSError:
                tries.append(False)
            await full
        return tries

    assert asyncio.run(written()) == [False, True]


def test_a_wall_clock_jumps_and_is_set_right() -> None:
    before = time.time()
    assert wall_clock.take("delay=1ms clock=+3600s") == "delay=1ms"
    ahead = time.time() - before
    assert wall_clock.take("") == ""
    assert 3599 < ahead < 3700
    assert 0 <= time.time() - before < 100
    for wrong in ("clock=soon", "clock=1s clock=2s", "clock=1h"):
        with pytest.raises(InvalidParameter, match="clock"):
            wall_clock.take(wrong)


class Controller:
    """Is away for the first looks; knows this process as two instances, and requests that end too soon.

    Each instance has `busy` requests from the third look on, and remembers what it was afflicted with.
    """

    def __init__(self, away: int = 0, running: int = 1, ended: int = 10**9, busy: int = 0) -> None:
        self._away = away
        self._running = running
        self._ended = ended
        self._busy = busy
        self.looks = 0
        self.afflicted: list[tuple[str, str]] = []

    def status(self) -> pb.ClusterStatus:
        self._away -= 1
        if self._away >= 0:
            raise Unreachable("the controller is away")
        self.looks += 1
        known = pb.InstanceStatus(running=self._busy if self.looks > 2 else 0)
        here = {
            "node": platform.node(),
            "pid": os.getpid(),
            "role": "decode",
            "state": "ready",
            "status": known,
        }
        return pb.ClusterStatus(instances=[pb.Instance(name=f"decode-{number}", **here) for number in (0, 1)])

    def afflict(self, instance: str, fault: str) -> None:
        self.afflicted.append((instance, fault))

    def requests(self) -> list[pb.RunningRequest]:
        names = ("decode-0", "decode-1") if self._running else ()
        return [pb.RunningRequest(id=name, instance=name, phase="decode") for name in names]

    def migrate(self, request: str, to: str, *, wait: bool) -> None:
        self._ended -= 1
        if self._ended >= 0:
            raise NotFound(f"{request} has ended")


def inject(control: Controller, fault: Fault) -> Done:
    injector = Injector(cast("ControlClient", control), 1, lambda text: None)
    asyncio.run(injector.run((fault,)))
    (done,) = injector.done
    return done


def test_a_node_that_cannot_be_killed_is_one_failed_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "BUSY", 0.0)
    done = inject(Controller(), Fault(kind="kill_node", target="decode-0", at=0.0))
    assert (done.victim, done.role, done.target) == ("decode-0", "decode", "decode-0")
    assert "has no raylet above it" in done.error
    assert not done.carried_out


def test_an_error_that_nobody_foresaw_is_one_failed_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(size: int, seconds: float) -> None:
        raise ValueError("what is this?")

    monkeypatch.setattr(faults.victims, "take_memory", broken)
    done = inject(Controller(), Fault(kind="memory", at=0.0))
    assert done.error == "ValueError: what is this?"


def test_a_fault_waits_for_a_controller_that_is_away() -> None:
    assert inject(Controller(away=2), Fault(kind="memory", at=0.0, size=1, lasting=0.0)).carried_out


def test_what_is_to_die_must_have_a_request_as_long_as_that_can_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hang = Fault(kind="hang", target="decode-1", at=0.0, lasting=0.0)
    busy = Controller(busy=1)
    assert inject(busy, hang).carried_out
    assert busy.looks == 3
    monkeypatch.setattr(faults, "BUSY", 0.05)
    assert inject(Controller(), hang).carried_out
    assert not worth("kill", Victim("decode-0", "decode", 1, "here"), Controller(busy=1).status())
    assert worth("stop", Victim("decode-0", "decode", 1, "here"), Controller().status())
    assert worth("kill", Victim("controller", "controller", 1, "here"), Controller().status())


def test_a_step_hangs_until_the_fault_is_over() -> None:
    control = Controller(busy=1)
    inject(control, Fault(kind="hang", target="decode-0", at=0.0, lasting=0.0))
    assert control.afflicted == [("decode-0", "hang"), ("decode-0", "")]


def test_one_that_is_spared_is_hit_for_want_of_others() -> None:
    status, rng = Controller().status(), random.Random(1)
    assert {pick("decode", status, rng).name for _ in range(20)} == {"decode-0", "decode-1"}
    picked = {pick("decode", status, rng, lambda one: one.name == "decode-0").name for _ in range(20)}
    assert picked == {"decode-1"}
    assert pick("decode-0", status, rng, lambda one: True).name == "decode-0"


def test_a_fault_without_a_victim_fails_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "AIM", 0.0)
    done = inject(Controller(), Fault(kind="kill", target="decod", at=0.0))
    assert (done.victim, done.error) == ("decod", "there is no decod that could be hit")


def test_a_victim_that_dies_before_it_is_hit_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> None:
        raise InstanceDied("instance decode-1 died")

    monkeypatch.setattr(Injector, "_afflict", gone)
    done = inject(Controller(), Fault(kind="clock", target="decode", at=0.0))
    assert (done.missed, done.error) == ("instance decode-1 died", "")


@pytest.mark.parametrize(("running", "why"), [(1, "has ended"), (0, "no request decodes on decode-")])
def test_a_move_of_what_has_ended_is_missed_and_did_not_fail(
    monkeypatch: pytest.MonkeyPatch, running: int, why: str
) -> None:
    monkeypatch.setattr(faults, "MOVABLE", 0.0)
    done = inject(Controller(running=running), Fault(kind="migrate", at=0.0))
    assert why in done.missed
    assert not done.error
    assert not done.carried_out


def test_a_move_waits_for_a_request_that_can_be_moved() -> None:
    assert inject(Controller(ended=2), Fault(kind="migrate", at=0.0)).carried_out


def test_a_move_that_still_waits_when_the_load_ends_was_not_carried_out() -> None:
    injector = Injector(cast("ControlClient", Controller(running=0)), 1, lambda text: None)

    async def cut_short() -> None:
        async with asyncio.timeout(0.2):
            await injector.run((Fault(kind="migrate", at=0.0),))

    with pytest.raises(TimeoutError):
        asyncio.run(cut_short())
    assert [one.missed for one in injector.done] == ["the load ended before"]


def test_the_same_seed_asks_the_same() -> None:
    bodies = [[one.body for one in requests(Load(seed=seed), "m", "x")] for seed in (1, 1, 2)]
    assert bodies[0] == bodies[1] != bodies[2]


def test_a_load_has_requests_of_every_kind_however_short_it_is() -> None:
    bodies = [one.body for one in requests(Load(requests=8), "m", "x")]
    assert {body["temperature"] for body in bodies} == {0.0, 1.0}
    assert {body["n"] for body in bodies} == {1, 2}
    for field in ("stop", "min_tokens", "logprobs", "presence_penalty", "frequency_penalty"):
        assert len([body for body in bodies if field in body]) == 2, field
    plain = Load(requests=8, stops=0, logprobs=0, penalties=0, sampled=0)
    assert {body["temperature"] for body in (one.body for one in requests(plain, "m", "x"))} == {0.0}
    assert not any({"stop", "logprobs"} & one.body.keys() for one in requests(plain, "m", "x"))


def test_every_shipped_load_has_requests_of_several_choices() -> None:
    for name in shipped():
        assert load(name).load.choices == (1, 2), name


def test_every_shipped_scenario_can_be_read_and_says_what_it_shows() -> None:
    assert {"tiny", "mixed", "long", "rolling-restart", "kill-gateway", "kill-node"} <= set(shipped())
    for name in shipped():
        scenario = load(name)
        assert scenario.name == name
        assert scenario.about
        assert scenario.faults


def test_a_mistake_in_a_scenario_is_told_with_its_place(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "bad.yaml"  # type: ignore[operator]
    path.write_text("name: x\nload: {requets: 3}\n")
    with pytest.raises(ConfigError, match=r"bad.yaml:2:8: .*requets"):
        load(str(path))
    with pytest.raises(ConfigError, match="none of the scenarios"):
        load("nowhere")


def test_the_command_lists_what_is_shipped() -> None:
    listed = CliRunner().invoke(build(), ["chaos", "--list"])
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == shipped()


def test_a_stop_is_over_when_what_was_stopped_has_been_killed() -> None:
    async def seconds(process: subprocess.Popen[bytes]) -> float:
        stopping = asyncio.create_task(stop(process.pid, 60.0))
        await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        begun = time.monotonic()
        process.kill()
        await stopping
        return time.monotonic() - begun

    with subprocess.Popen(["sleep", "60"]) as process:
        assert asyncio.run(seconds(process)) < 30.0
