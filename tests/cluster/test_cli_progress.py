"""What takes long says on stderr what it does and how far it is: a bar on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.chaos.run import _far, _said
from cluster.chaos.scenario import Fault, Load, Scenario
from cluster.cli import profile, up
from cluster.cli.chaos import _phase
from cluster.cli.output import messages
from cluster.cli.progress import Steps
from cluster.cli.simulate import LOOKS, watched
from cluster.config import Config
from cluster.local_state import LocalState
from cluster.simulation import Hardware, setup_of
from engine.cost_model import LinearCost
from global_scheduler.placement import Placement
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Summary
from simulator.network import LinkSettings
from simulator.report import summarise
from simulator.setup import Setup
from simulator.simulate import simulate
from simulator.workload.arrivals import Arrival
from simulator.workload.named import workload
from tests.cluster.cli_controller import Controller, run
from tests.cluster.test_simulate import MADE, cost

__all__ = ["cost"]

SLO = ("--slo", "ttft=1s,tpot=100ms")


def lines(stderr: str) -> list[str]:
    """With the times left out."""
    return [re.sub(r" [0-9.]+ s$", "", line.strip()) for line in stderr.splitlines()]


def both(*titles: str) -> list[str]:
    return [line for title in titles for line in (f"… {title}", f"✓ {title}")]


def test_simulate_says_what_it_reads_and_simulates(cost: str) -> None:
    told = run("simulate", "--trace", MADE, "--cost", cost, "-o", "json")
    assert lines(told.stderr) == both(f"reading {MADE}", "simulating 30 requests with config")
    assert json.loads(told.stdout)["requests"]["finished"] == 30, "data alone is on stdout"


def test_quiet_says_nothing(cost: str, tmp_path: Path) -> None:
    for verb in (
        ("simulate", "--trace", MADE, "--cost", cost),
        ("plan", "--trace", MADE, "--cost", cost, "--gpus", "2", *SLO),
        ("tls", "init", str(tmp_path / "made")),
    ):
        told = run("-q", *verb)
        assert told.exit_code == 0, told.output
        assert not told.stderr and told.stdout


def test_plan_says_what_it_searches_and_finds_meanwhile(cost: str) -> None:
    told = lines(run("plan", "--trace", MADE, "--cost", cost, "--gpus", "2", *SLO).stderr)
    assert told[:3] == [*both(f"reading {MADE}"), "… searching: together"]
    assert told[3].startswith("together: 2 together (1 GPU): ") and told[4] == "✓ searching: together"
    assert told[5] == "… searching: high affinity" and told[-1] == "✓ searching: high affinity"


def test_profile_counts_the_steps_that_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(profile, "Steps", lambda console: Counted(console, seen))

    class Assets:
        name = "tiny"

    class Runner:
        assets = Assets()

    def measure(runner: Any, grid: Any, say: Any) -> list[Any]:
        for number in range(3):
            say(f"prefill · {number}")
        raise RuntimeError("enough")

    monkeypatch.setattr("cluster.instance.load_runner", lambda config, threads: (Runner(), "cpu"))
    monkeypatch.setattr("cluster.profiling.measure", measure)
    points = ("--lengths", "1,2", "--cached", "8", "--batches", "1", "--contexts", "8,16,32")
    told = run("profile", "-w", str(tmp_path / "t.csv"), *points)
    assert str(told.exception) == "enough"
    assert seen == [(1, 7), (2, 7), (3, 7)], "2 chunks after 0 and 8 tokens, 1 batch at 3 contexts"
    assert lines(told.stderr)[:3] == [*both("loading the model"), "… measuring steps"]


class Counted(Steps):
    """Notes how far steps say to be."""

    def __init__(self, console: Any, seen: list[tuple[int, int]]) -> None:
        super().__init__(console)
        self._seen = seen

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Any]:
        with super().step(title):
            yield lambda done, total: self._seen.append((done, total))


def test_certificates_and_timelines_are_steps(controller: Controller, tmp_path: Path) -> None:
    told = run("tls", "init", str(tmp_path / "made"))
    assert lines(told.stderr) == both("making an authority and three certificates")
    told = run("tls", "renew", str(tmp_path / "made"))
    assert lines(told.stderr) == both("issuing three certificates")
    told = run("trace", "export")
    assert lines(told.stderr) == both("asking for the timelines of up to 200 requests")
    assert json.loads(told.stdout)


def test_a_start_in_the_background_is_a_step(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = LocalState(pid=1, cluster="x", scratch="/x", gateways=["http://127.0.0.1:1"], model="m")
    for verb in ("up", "serve"):
        monkeypatch.setattr(f"cluster.cli.{verb}.start_detached", lambda wait: state)
        assert lines(run(verb, "-d").stderr) == both(up.BACKGROUND)


# How far


def simulated() -> tuple[Setup, list[Arrival]]:
    cost = LinearCost(base=1e-3, per_token=1e-5, per_context=1e-8, floor=0.0)
    hardware = Hardware({"prefill": cost, "decode": cost}, 100_000, 1000, LinkSettings(1e9))
    arrivals = workload("made:rate=50,prompt=16,output=4,requests=500", seed=0, speed=1.0, requests=None)
    return setup_of(Config(), hardware), list(arrivals)


def test_a_simulation_tells_how_many_requests_have_a_place_and_comes_to_the_same() -> None:
    setup, arrivals = simulated()
    seen: list[tuple[int, int]] = []
    shown = simulate(watched(setup, len(arrivals), lambda done, of: seen.append((done, of))), arrivals)
    assert seen[-1] == (500, 500) and len(seen) <= 1.5 * LOOKS
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert summarise(shown) == summarise(simulate(setup, arrivals))


def test_who_places_instead_of_the_scheduler_is_still_asked() -> None:
    setup, arrivals = simulated()
    asked: list[tuple[str, float]] = []

    def place(scheduler: Scheduler, summary: Summary, now: float) -> Placement:
        asked.append((summary.id, now))
        return scheduler.place(summary, now)

    simulate(watched(replace(setup, dispatch=place), len(arrivals), lambda done, of: None), arrivals)
    assert len(asked) == len(arrivals)
    assert len({now for _, now in asked}) > len(arrivals) / 2, "at the time of each"


FAULTS = (Fault(kind="kill", target="decode", every=1.0, count=3), Fault(kind="kill", target="gateway"))


@pytest.mark.parametrize(
    ("duration", "seconds", "faults", "far"),
    [(0.0, 100.0, 2, (2, 4)), (0.0, 1.0, 9, (4, 4)), (60.0, 30.5, 0, (30, 60)), (60.0, 99.0, 0, (60, 60))],
)
def test_faults_are_counted_or_the_seconds_of_a_load_that_has_some(
    duration: float, seconds: float, faults: int, far: tuple[int, int]
) -> None:
    scenario = Scenario(name="x", faults=FAULTS, load=Load(duration=duration))
    assert _far(scenario, seconds, faults) == far


def test_without_a_bar_a_phase_is_said() -> None:
    said: list[str] = []
    with _said(said.append, "so many requests") as advance:
        advance(1, 2)
    assert said == ["so many requests"]


# Terminals, and nobody


def test_a_bar_is_on_stderr_and_only_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Steps(messages()).step("moving") as advance:
        advance(1, 2)
    plain = capsys.readouterr()
    assert not plain.out and "\x1b" not in plain.err and "%" not in plain.err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Steps(messages()).step("moving") as advance:
        advance(1, 2)
    shown = capsys.readouterr()
    assert not shown.out and "50%" in shown.err


class Closed(Steps):
    """Steps of a terminal that is gone."""

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Any]:
        if title == "gone":
            raise BrokenPipeError
        yield lambda done, total: None
        raise SystemExit(1)


@pytest.mark.parametrize("title", ["gone", "going"])
def test_a_phase_of_chaos_goes_on_where_nobody_sees_it(title: str) -> None:
    with _phase(Closed(messages()), title) as advance:
        advance(1, 2)


def test_what_goes_wrong_in_a_phase_of_chaos_is_not_swallowed() -> None:
    with pytest.raises(OSError, match="disk"), _phase(Steps(messages(quiet=True)), "x"):
        raise OSError("disk")
