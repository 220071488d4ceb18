"""The chaos command: what it reads, what it counts, and what it lets pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer, Ask, _event
from cluster.chaos.faults import Done
from cluster.chaos.load import requests
from cluster.chaos.scenario import Expect, Load, Scenario, load, shipped
from cluster.chaos.verdict import Verdict, judge, ledger, moves, resume_times
from cluster.cli.main import build
from engine.errors import ConfigError

SCENARIO = Scenario(name="made-up", expect=Expect(resume=2.0))


def answer(number: int = 0, text: str = "abc", **fields: object) -> Answer:
    ask = Ask(number, f"n-{number}", {"n": 1})
    whole = Answer(ask, {0: text}, {0: "length"}, [1.0, 1.1, 1.2], tokens=3, connections=1, done=True)
    return replace(whole, **fields)  # type: ignore[arg-type]


def verdict(answers: list[Answer], *, books: str = "", faults: tuple[Done, ...] = ()) -> Verdict:
    undisturbed = [answer(number) for number in range(3)]
    return judge(SCENARIO, undisturbed, answers, faults, books, {})


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
    assert not verdict([answer()], books="decode-0 has 3 blocks in use, 0 reserved").passed


def test_a_run_whose_faults_all_failed_proves_nothing() -> None:
    assert "no fault" in verdict([answer()], faults=(Done(1.0, "kill", "decode", "no such"),)).failures[0]


def test_an_undisturbed_run_that_failed_is_no_measure() -> None:
    told = judge(SCENARIO, [answer(error="no model")], [], [], "", {})
    assert "undisturbed: no model" in told.failures[0]


def test_the_resume_time_is_the_pause_around_the_fault_of_a_stream_that_was_hit() -> None:
    hit = answer(times=[1.0, 1.5, 2.4, 2.5], recoveries=1)
    calm = answer(times=[1.0, 2.9])
    assert resume_times([hit, calm], [1.6]) == [pytest.approx(0.9)]


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
    assert {"tiny", "mixed", "long", "rolling-restart", "kill-gateway"} <= set(shipped())
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
