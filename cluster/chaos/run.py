"""Runs a scenario against a cluster: undisturbed first, then with its faults, and gives the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from cluster import control_pb2 as pb
from cluster.chaos.client import Answer
from cluster.chaos.faults import Injector
from cluster.chaos.footprint import Footprint
from cluster.chaos.likeness import bound_of, settle
from cluster.chaos.load import Access, drive
from cluster.chaos.scenario import Load, Scenario
from cluster.chaos.verdict import Aftermath, Verdict, by_outcome, judge, ledger, moves
from cluster.chaos.victims import processes
from cluster.control_client import ControlClient
from cluster.settings_change import flat
from engine.errors import InvalidKey, TandemError, Unreachable

LOOK = 0.5
"""Seconds between two looks at which gateways there are."""

REACH = 10.0
"""Seconds in which the gateways must accept a connection as long as nothing is broken."""

QUIET = 60.0
"""Seconds that the cluster may take to be whole and idle after the load."""

Advance = Callable[[int, int], None]
"""Told how much of a phase is done, and of how much."""
Phase = Callable[[str], contextlib.AbstractContextManager[Advance]]
"""Told what a phase is, for as long as it lasts."""


class Sight:
    """What the controller said last; while it is away, what was known before stays.

    `moved` counts the moves that came to an end, by cause and outcome, over the lives of all controllers.
    """

    def __init__(self, control: ControlClient, status: pb.ClusterStatus) -> None:
        self._control = control
        self.status = status
        self.gateways = [one.url for one in status.gateways]
        self.moved: Counter[tuple[str, str]] = Counter()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            with contextlib.suppress(TandemError):
                self.see(await asyncio.to_thread(self._control.status))
                self.gateways = [one.url for one in self.status.gateways] or self.gateways

    def see(self, status: pb.ClusterStatus) -> None:
        """What it says now."""
        self.moved += moves(self.status, status)
        self.status = status


async def run(
    scenario: Scenario,
    control: ControlClient,
    say: Callable[[str], None],
    *,
    api_key: str | None = None,
    trust: Callable[[str], ssl.SSLContext | None] = lambda url: None,
    phase: Phase | None = None,
) -> Verdict:
    """The verdict. `trust` gives for a gateway's URL whose certificates are believed and which one is shown.
    `phase` shows what is under way; without it `say` is told the titles.

    Raises Unreachable if there is no cluster, or it is not ready; InvalidKey or TandemError, before any
    fault, if a request fails undisturbed.
    """
    status = await asyncio.to_thread(control.status)
    if not status.ready or not status.gateways:
        raise Unreachable("the cluster is not ready: see `tandem status`")
    sight, footprint = Sight(control, status), Footprint()
    stamp, model, load = f"chaos-{int(time.time())}", status.model.name, scenario.load
    access = Access(api_key, trust(sight.gateways[0]))
    during = phase or (lambda title: _said(say, title))
    undisturbed = await _undisturbed(load, model, sight, f"{stamp}-calm", access, during)
    bound = await asyncio.to_thread(_bound, control, status)
    _, sight.status = await _quiet(control)
    await asyncio.to_thread(footprint.begin, processes(sight.status))
    injector = Injector(control, load.seed, say)
    harm = asyncio.create_task(injector.run(scenario.faults))
    watching = [
        asyncio.create_task(sight.watch()),
        asyncio.create_task(footprint.watch(lambda: processes(sight.status))),
    ]
    try:
        with during("the same with faults") as advance:
            begun = time.monotonic()

            def more() -> bool:
                return time.monotonic() < begun + load.duration if load.duration else not harm.done()

            def told(answer: Answer) -> None:
                settle([answer], undisturbed, bound)
                if not answer.whole:
                    say(f"{answer.ask.name}: {answer.error or 'cut off'}")
                advance(*_far(scenario, time.monotonic() - begun, len(injector.done)))

            answers = await drive(
                load, model, lambda: sight.gateways, f"{stamp}-harm", access=access, more=more, done=told
            )
        harm.cancel()
        await asyncio.gather(harm, return_exceptions=True)
        if not harm.cancelled():
            harm.result()
        with during("waiting until the pools are whole and idle"):
            books, after = await _quiet(control)
        await _end(watching)
        sight.see(after)
        await asyncio.to_thread(footprint.look, processes(after))
        left = await footprint.left(after)
    finally:
        await _end([*watching, harm])
    aftermath = Aftermath(
        books,
        tuple(left),
        tuple(footprint.growths()),
        moves=by_outcome(sight.moved),
        asked=by_outcome(sight.moved, "operator"),
    )
    return judge(scenario, undisturbed, answers, injector.done, aftermath, bound)


async def _undisturbed(
    load: Load, model: str, sight: Sight, prefix: str, access: Access, during: Phase
) -> list[Answer]:
    """The answers to all requests, each once. Raises as `_require` does."""
    with during(f"{load.requests} requests undisturbed") as advance:
        answered = count(1)
        answers = await drive(
            *(load, model, lambda: sight.gateways, prefix),
            access=access,
            reach=REACH,
            all_whole=True,
            done=lambda answer: advance(next(answered), load.requests),
        )
    _require(answers)
    return answers


@contextlib.contextmanager
def _said(say: Callable[[str], None], title: str) -> Iterator[Advance]:
    say(title)
    yield lambda done, total: None


def _far(scenario: Scenario, seconds: float, faults: int) -> tuple[int, int]:
    """How much of the load with faults is over: of its seconds, where they are given, else of the faults."""
    planned = sum(one.count if one.every else 1 for one in scenario.faults)
    done, total = (int(seconds), int(scenario.load.duration)) if scenario.load.duration else (faults, planned)
    return min(done, total), total


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel them, and wait for what they have under way."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _bound(control: ControlClient, status: pb.ClusterStatus) -> float | None:
    """What log-probabilities may differ by here."""
    return bound_of(status.model.dtype, exact=bool(flat(control.config())["engine.exact"]))


def _require(answers: Sequence[Answer]) -> None:
    """Raises InvalidKey, Unreachable or TandemError: where requests fail undisturbed, faults show nothing."""
    broken = [answer for answer in answers if not answer.whole]
    if not broken:
        return
    answer = broken[0]
    message = f"no fault was begun, since a request failed undisturbed: {answer.error or 'it was cut off'}"
    if answer.status == 401:
        raise InvalidKey(f"{message} (name a key with --api-key or OPENAI_API_KEY)")
    raise TandemError(message) if answer.connections else Unreachable(message)


async def _quiet(control: ControlClient) -> tuple[str, pb.ClusterStatus]:
    """Wait until the pools are whole and idle; what is wrong with the books then, and the last status."""
    end = time.monotonic() + QUIET
    wrong, status = "the controller does not answer", pb.ClusterStatus()
    while time.monotonic() < end:
        with contextlib.suppress(TandemError):
            status = await asyncio.to_thread(control.status)
            wrong = _wrong(status)
            if not wrong:
                break
        await asyncio.sleep(LOOK)
    return wrong, status


def _wrong(status: pb.ClusterStatus) -> str:
    """Why the cluster is not whole and idle; "" if it is."""
    if not status.pools:
        return "the controller knows of no pools"
    short = [pool.name for pool in status.pools if pool.ready != pool.target]
    return ledger(status) or (f"{short[0]} has fewer instances than it should" if short else "")
