"""Commands in the background, and commands that are interrupted: what they began is ended or taken back."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import typer
from rich.console import Console

from cluster.cli import detach, serve, up
from cluster.cli.failures import Exit
from cluster.cli.progress import Advance, Steps
from cluster.config import Config
from cluster.local import LocalCluster
from tests.cluster.cli_controller import Controller, run

PATIENCE = 60.0
"""Seconds that Python may take to start on a busy machine."""


@pytest.mark.parametrize("flags", [["-df"], ["-d", "-f"], ["--detach", "-f"]], ids=" ".join)
@pytest.mark.parametrize("verb", [up, serve], ids=["up", "serve"])
def test_what_is_started_in_the_background_stays_there_and_starts_nothing_else(
    verb: Any, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("log: {level: info}\n")
    given = [verb.__name__.rpartition(".")[2], *flags, str(file)]
    started: list[list[str]] = []
    served: list[str | None] = []
    monkeypatch.setattr(sys, "argv", ["tandem", *given])
    monkeypatch.setattr(detach.subprocess, "Popen", lambda command, **more: started.append(command))
    monkeypatch.setattr(verb, "start_detached", lambda wait: started.append(["again"]))
    monkeypatch.setattr(verb, "run", lambda *given, log, **more: served.append(log))
    log = tmp_path / "up.log"
    detach._spawn(log)
    (command,) = started
    assert run(*command[command.index(given[0]) :]).exit_code == 0
    assert (len(started), served) == (1, [str(log)])


class Interrupted:
    """A cluster whose start is interrupted."""

    def __init__(self) -> None:
        self.stopped = 0

    def start(self, step: Callable[[str], Advance], timeout: float) -> None:
        raise KeyboardInterrupt

    def stop(self, *, drain: bool, hurry: Callable[[], bool]) -> None:
        self.stopped += 1


class Unheard(Steps):
    def __init__(self, error: BaseException) -> None:
        super().__init__(Console(quiet=True))
        self._error = error

    def say(self, text: str) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(errno.EIO, "a closed terminal"), OSError(errno.ENOSPC, ""), SystemExit(1)],
    ids=["pipe", "terminal", "disk", "rich"],
)
def test_a_cluster_is_stopped_though_nobody_can_be_told(error: BaseException) -> None:
    cluster, interrupt = Interrupted(), up.Interrupt()
    interrupt.signal = signal.SIGINT
    with pytest.raises(typer.Exit) as ended:
        up._run(cast(LocalCluster, cluster), Unheard(error), interrupt, 1.0, sample=False)
    assert cluster.stopped == 1
    assert ended.value.exit_code == Exit.INTERRUPTED


def test_a_signal_while_a_cluster_makes_its_folder_ends_that_cluster(
    state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Interrupted]()

    def create(config: Config, **more: Any) -> Interrupted:
        made.append(Interrupted())
        os.kill(os.getpid(), signal.SIGTERM)
        return made[-1]

    monkeypatch.setattr(up, "LocalCluster", create)
    monkeypatch.setattr(up, "settle", lambda config, step: config)
    monkeypatch.setattr(Interrupted, "start", lambda *given: pytest.fail("it was started"))
    told = run("up")
    assert (told.exit_code, [one.stopped for one in made]) == (Exit.FAILED, [1])
    assert "nothing is left running" in told.stderr


def test_signals_raise_again_when_they_have_been_held_back() -> None:
    interrupt = up.Interrupt()
    interrupt.quietly()
    with pytest.raises(KeyboardInterrupt), interrupt.raising():
        interrupt.handle(signal.SIGINT, None)
    interrupt.handle(signal.SIGINT, None)
    assert interrupt.again


CHAOS = """
import asyncio
import sys
from cluster.chaos.faults import Injector
from cluster.chaos.scenario import Fault
from cluster.cli import chaos
from cluster.cli.start import main

async def only_the_fault(plan, client, say, **more):
    if plan.name == "hang-decode":
        try:
            say("begun")
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(600)
    fault = Fault(at=0, kind="stop", target="decode-0", lasting=600)
    await Injector(client, 0, say).run((fault,))

chaos.run = only_the_fault
main()
"""


@contextmanager
def process(*command: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """One that is gone at the end, stopped or not."""
    with subprocess.Popen(command, **more) as started:
        try:
            yield started
        finally:
            started.kill()


def comes_to(pid: int, status: str) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if psutil.Process(pid).status() == status:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_chaos_that_is_interrupted_takes_its_faults_back(
    controller: Controller, number: signal.Signals
) -> None:
    with process("sleep", "600") as victim:
        controller.instance.pid, controller.instance.node = victim.pid, platform.node()
        chaos = [sys.executable, "-P", "-c", CHAOS, "chaos", "-f", "kill-controller"]
        with process(*chaos, env=dict(os.environ), stderr=subprocess.PIPE) as running:
            assert comes_to(victim.pid, psutil.STATUS_STOPPED)
            running.send_signal(number)
            _, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == Exit.INTERRUPTED, errors.decode()
        assert comes_to(victim.pid, psutil.STATUS_SLEEPING)


def test_chaos_that_is_interrupted_again_ends_at_once_and_says_what_stays(controller: Controller) -> None:
    chaos = [sys.executable, "-P", "-c", CHAOS, "chaos", "-f", "hang-decode"]
    with process(*chaos, env=dict(os.environ), stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        for sign in (b"begun", b"again to end at once"):
            assert sign in next(line for line in running.stderr if sign in line)
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == Exit.INTERRUPTED
    assert b"what is not taken back yet stays" in errors
