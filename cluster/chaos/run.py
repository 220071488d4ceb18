"""Runs a scenario against a cluster: undisturbed first, then with its faults, and gives the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer
from cluster.chaos.faults import Injector
from cluster.chaos.load import drive
from cluster.chaos.scenario import Scenario
from cluster.chaos.verdict import Verdict, judge, ledger, moves
from cluster.control_client import ControlClient
from engine.errors import TandemError, Unreachable

LOOK = 0.5
"""Seconds between two looks at which gateways there are."""

QUIET = 60.0
"""Seconds that the cluster may take to be whole and idle after the load."""


class Gateways:
    """The addresses of the gateways, as the controller knows them; the last known while it is away."""

    def __init__(self, control: ControlClient, status: pb.ClusterStatus) -> None:
        self._control = control
        self._urls = [one.url for one in status.gateways]

    def __call__(self) -> Sequence[str]:
        return self._urls

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            with contextlib.suppress(TandemError):
                status = await asyncio.to_thread(self._control.status)
                self._urls = [one.url for one in status.gateways] or self._urls


async def run(scenario: Scenario, control: ControlClient, say: Callable[[str], None]) -> Verdict:
    """The verdict. Raises Unreachable if there is no cluster, or it is not ready."""
    status = await asyncio.to_thread(control.status)
    if not status.ready or not status.gateways:
        raise Unreachable("the cluster is not ready: see `tandem status`")
    gateways = Gateways(control, status)
    model = status.model.name
    stamp = f"chaos-{int(time.time())}"
    load = scenario.load
    say(f"{load.requests} requests undisturbed")
    undisturbed = await drive(load, model, gateways, f"{stamp}-calm")

    def done(answer: Answer) -> None:
        if not answer.whole:
            say(f"{answer.ask.name}: {answer.error or 'cut off'}")

    say("the same with faults")
    injector = Injector(control, load.seed, say)
    watching = asyncio.create_task(gateways.watch())
    harm = asyncio.create_task(injector.run(scenario.faults))
    try:
        end = time.monotonic() + load.duration

        def more() -> bool:
            return time.monotonic() < end if load.duration else not harm.done()

        answers = await drive(load, model, gateways, f"{stamp}-harm", more=more, done=done)
        harm.cancel()
        books, after = await _quiet(control)
    finally:
        for task in (watching, harm):
            task.cancel()
        await asyncio.gather(watching, harm, return_exceptions=True)
    return judge(scenario, undisturbed, answers, injector.done, books, moves(status, after))


async def _quiet(control: ControlClient) -> tuple[str, pb.ClusterStatus]:
    """Wait until the pools are whole and idle; what is wrong with the books then, and the last status."""
    end = time.monotonic() + QUIET
    wrong, status = "the controller does not answer", pb.ClusterStatus()
    while time.monotonic() < end:
        with contextlib.suppress(TandemError):
            status = await asyncio.to_thread(control.status)
            wrong = ledger(status)
            short = [pool.name for pool in status.pools if pool.ready != pool.target]
            if not wrong and not short:
                return "", status
            wrong = wrong or f"{short[0]} has fewer instances than it should"
        await asyncio.sleep(LOOK)
    return wrong, status
