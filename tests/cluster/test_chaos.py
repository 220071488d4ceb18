"""The chaos command: what it reads, what it counts, and what it lets pass."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import psutil
import pytest
from typer.testing import CliRunner

from cluster import control_pb2 as pb
from cluster import wall_clock
from cluster.chaos import faults
from cluster.chaos.client import Answer, Ask, _event
from cluster.chaos.faults import Done, Injector
from cluster.chaos.footprint import Footprint, Growth, Held, Life, growth
from cluster.chaos.load import requests
from cluster.chaos.scenario import Expect, Fault, Load, Scenario, load, shipped
from cluster.chaos.verdict import Aftermath, Verdict, judge, ledger, moves, resume_times
from cluster.chaos.victims import Victim, fill_disk, pick
from cluster.cli.main import build
from cluster.control_client import ControlClient
from engine.errors import ConfigError, InstanceDied, InvalidParameter, NotFound, Unreachable

KILL = Done(100.0, "kill", "decode-1", role="decode", target="decode")
SCENARIO = Scenario(
    name="made-up",
    faults=(Fault(kind="kill"),),
    expect=Expect(resume=2.0, pause=2.2, growth=1 << 20, handles=8),
)


def answer(number: int = 0, text: str = "abc", **fields: object) -> Answer:
    ask = Ask(number, f"n-{number}", {"n": 1})
    whole = Answer(ask, {0: text}, {0: "length"}, [1.0, 1.1, 1.2], tokens=3, connections=1, done=True)
    return replace(whole, **fields)  # type: ignore[arg-type]


def verdict(
    answers: list[Answer], *, faults: tuple[Done, ...] = (KILL,), aftermath: Aftermath = Aftermath()
) -> Verdict:
    undisturbed = [answer(number) for number in range(3)]
    return judge(SCENARIO, undisturbed, answers, faults, aftermath)


def test_whole_answers_with_the_same_tokens_pass() -> None:
    told = verdict([answer(0), answer(1), answer(1)])
    assert told.passed
    assert (told.sent, told.finished, told.exact, told.lost) == (3, 3, 3, 0)


@pytest.mark.parametrize(
    ("bad", "figure"),
    [
        (answer(text="abd"), "changed"),
        (answer(tokens=4), "changed"),
        (answer(ends={0: "stop"}), "changed"),
        (answer(done=False), "lost"),
        (answer(ends={}), "lost"),
        (answer(error="503"), "lost"),
        (answer(repeated=1), "duplicated"),
    ],
)
def test_mutant_every_bad_answer_fails_the_run(bad: Answer, figure: str) -> None:
    told = verdict([answer(1), bad])
    assert getattr(told, figure) == 1
    assert not told.passed
    assert figure in told.failures[0]


def test_a_stream_that_stands_still_too_long_fails_the_run() -> None:
    told = verdict([answer(times=[1.0, 1.1, 3.5])])
    assert told.longest_pause == pytest.approx(2.4)
    assert "stood still for 2.40 s" in told.failures[0]


def test_a_ledger_that_does_not_balance_fails_the_run() -> None:
    assert not verdict([answer()], aftermath=Aftermath("decode-0 has 3 blocks in use, 0 reserved")).passed


def test_what_is_left_behind_fails_the_run() -> None:
    told = verdict([answer()], aftermath=Aftermath(left=("the process of decode-3",)))
    assert told.failures == ("left behind: the process of decode-3",)


def test_a_stream_that_was_hit_and_stood_still_too_long_fails_the_run() -> None:
    kill = replace(KILL, time=1.2)
    told = verdict([answer(times=[1.0, 1.1, 3.2], recoveries=1), answer(1)], faults=(kill,))
    assert told.failures == ("a stream that was hit stood still for 2.10 s, more than 2 s",)
    assert [(one.fault, one.streams) for one in told.resumes] == [("kill decode", 1)]
    assert told.injected == {"kill decode": 1}


def held(*memory: int, start: float = 0.0) -> Life:
    every = [Held(start + 60.0 * number, size, 10 + number) for number, size in enumerate(memory)]
    return Life("decode-0", "decode", psutil.Process(), every)


def test_growth_is_the_slope_that_all_processes_of_a_kind_have_in_common() -> None:
    one = growth("decode", [held(999, 1000, 2000, 3000, 4000), held(5, 50_000, 51_000, 52_000, start=900)])
    assert (one.slope, one.seconds, one.processes) == (pytest.approx(60_000), 300, 2)
    assert (one.memory, one.handles) == (52_000, 4)


def test_too_little_was_seen_to_say_how_it_grows() -> None:
    assert growth("decode", [held(1, 2, 3)]).slope is None


def test_memory_that_grows_fails_the_run_and_so_do_handles() -> None:
    grown = Growth("decode", 1, 600.0, 3 * 2.0**20, 9, 0)
    leaky = Growth("gateway", 1, 600.0, -1.0, 9, 9)
    told = verdict([answer()], aftermath=Aftermath(growth=(grown, leaky)))
    assert told.failures == (
        "decode grows by 3 MiB an hour",
        "gateway has 9 more open files and sockets than at first",
    )


def test_a_footprint_notices_a_process_that_should_be_gone_and_a_file_that_nobody_has_open() -> None:
    print_, place = Footprint(), Path("/dev/shm") / f"tandem-test-{os.getpid()}"
    with subprocess.Popen(["sleep", "60"]) as process:
        print_.look([Victim("decode-9", "decode", process.pid, platform.node())])
        place.write_bytes(b"x")
        try:
            left = asyncio.run(print_.left(pb.ClusterStatus(), 0.1))
        finally:
            place.unlink()
            process.kill()
    assert left == ["the process of decode-9", str(place)]
    assert print_.growths()[0].kind == "decode"
    assert asyncio.run(print_.left(pb.ClusterStatus())) == []


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


def test_a_fault_that_could_not_be_carried_out_fails_the_run_and_does_not_count() -> None:
    told = verdict([answer()], faults=(KILL, replace(KILL, error="decode-1 is on Ray's head node")))
    assert (told.faults, told.faults_failed) == (1, 1)
    assert told.failures == ("kill decode: 1 of 2 could not be carried out: decode-1 is on Ray's head node",)


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ((), "the load ended before"),
        ((replace(KILL, missed="no request decodes on decode-1"),), "no request decodes on decode-1"),
        ((replace(KILL, kind="stop"), replace(KILL, target="prefill")), "the load ended before"),
    ],
    ids=["none began", "nothing to do", "only others"],
)
def test_a_fault_that_was_not_carried_out_even_once_fails_the_run(faults: tuple[Done, ...], why: str) -> None:
    assert verdict([answer()], faults=faults).failures == (f"kill decode: not carried out even once: {why}",)


def test_a_fault_that_found_nothing_to_do_once_is_no_failure() -> None:
    told = verdict([answer()], faults=(replace(KILL, missed="the request has ended"), KILL))
    assert told.passed
    assert (told.faults, told.faults_failed, told.faults_missed) == (1, 0, 1)


class Controller:
    """Is away for the first looks; knows this process as two instances, and requests that end too soon."""

    def __init__(self, away: int = 0, running: int = 1, ended: int = 10**9) -> None:
        self._away = away
        self._running = running
        self._ended = ended

    def status(self) -> pb.ClusterStatus:
        self._away -= 1
        if self._away >= 0:
            raise Unreachable("the controller is away")
        here = {"node": platform.node(), "pid": os.getpid(), "role": "decode", "state": "ready"}
        return pb.ClusterStatus(instances=[pb.Instance(name=f"decode-{number}", **here) for number in (0, 1)])

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


def test_a_node_that_cannot_be_killed_is_one_failed_fault() -> None:
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


def test_an_undisturbed_run_that_failed_is_no_measure() -> None:
    told = judge(SCENARIO, [answer(error="no model")], [], [])
    assert "undisturbed: no model" in told.failures[0]


def test_the_resume_time_is_the_pause_around_the_fault_of_a_stream_that_was_hit() -> None:
    hit = answer(times=[1.0, 1.5, 2.4, 2.5], recoveries=1)
    calm = answer(times=[1.0, 2.9])
    kill, move = Done(1.6, "kill", "d", role="decode"), Done(1.7, "migrate", "d", role="decode")
    assert resume_times([hit, calm], [kill, move]) == [("kill decode", pytest.approx(0.9))]


def test_an_event_behind_the_last_position_is_a_repetition() -> None:
    one = answer(texts={}, ends={}, times=[])
    chunk = {"choices": [{"index": 0, "text": "a", "finish_reason": None}]}
    last = _event(one, chunk, "cmpl-x:5", "")
    assert _event(one, chunk, "cmpl-x:6", last) == "cmpl-x:6"
    assert one.repeated == 0
    _event(one, chunk, "cmpl-x:4", "cmpl-x:6")
    assert one.repeated == 1


def test_the_ledger_is_checked_on_every_instance() -> None:
    good = pb.InstanceStatus(blocks_total=10, blocks_free=7, blocks_cached=3)
    bad = pb.InstanceStatus(blocks_total=10, blocks_free=7, blocks_cached=2)
    used = pb.InstanceStatus(blocks_total=10, blocks_free=9, blocks_used=1)

    def status(*each: pb.InstanceStatus) -> pb.ClusterStatus:
        return pb.ClusterStatus(instances=[pb.Instance(name="decode-0", status=one) for one in each])

    assert ledger(status(good, good)) == ""
    assert "7 free + 2 cached of 10" in ledger(status(good, bad))
    assert "1 blocks in use" in ledger(status(used))


def test_moves_are_those_of_the_run() -> None:
    def status(uptime: float, committed: int) -> pb.ClusterStatus:
        counts = [pb.MigrationCount(cause="operator", outcome="committed", count=committed)]
        return pb.ClusterStatus(uptime=uptime, migrations=pb.MigrationTotals(counts=counts))

    assert moves(status(5, 3), status(9, 7)) == {"committed": 4}
    assert moves(status(5, 3), status(2, 7)) == {"committed": 7}


def test_the_same_seed_asks_the_same() -> None:
    bodies = [[one.body for one in requests(Load(seed=seed), "m", "x")] for seed in (1, 1, 2)]
    assert bodies[0] == bodies[1] != bodies[2]


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
