"""Sizes the pools by their load: looks at them at even times, and acts where the pool is its own to size.

    every period: loads, ages, attainment, forecast ─▶ Autoscaler.decide ─▶ Resize ─▶ target │ change of role

A pool whose size an operator has set is looked at all the same: what would have been done is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.events import Events
from cluster.explanations import Explanations
from cluster.figures import Figures
from cluster.member import Member, State
from cluster.policies import autoscaling_settings
from cluster.pool import Pool
from cluster.scaling import Scaling, forecast_of
from engine.errors import TandemError
from global_scheduler.attainment import Attainment, together
from global_scheduler.autoscaling import Autoscaler, PoolState, Resize, held
from global_scheduler.forecast import Forecast, growth
from global_scheduler.placement import DECODE, PREFILL
from global_scheduler.scheduler import Scheduler

logger = logging.getLogger("tandem.controller")

DEMAND = 30.0
"""Seconds after which a request that found no instance is no reason to have one; the time between two looks
comes on top."""

ChangeRole = Callable[[str, str, float], Awaitable[object]]


@dataclass(slots=True)
class _Watch:
    """What was seen of one pool: since when each instance has been ready, and the course of its load."""

    forecast: Forecast
    ready: dict[str, float] = field(default_factory=dict)


class PoolScaler:
    """Runs in the controller's event loop: `run` until it is cancelled."""

    def __init__(
        self,
        config: Config,
        pools: Mapping[str, Pool],
        *,
        scheduler: Scheduler,
        events: Events,
        explanations: Explanations,
        change_role: ChangeRole,
        gateways: Callable[[], Iterable[pb.Gateway]],
    ) -> None:
        self._settings = {PREFILL: config.pools.prefill, DECODE: config.pools.decode}
        self._configured = {name: Scaling.of(pool) for name, pool in self._settings.items()}
        self.scaling = dict(self._configured)
        self._bounded: set[str] = set()
        self._sized: set[str] = set()
        self._pools = pools
        self._scheduler = scheduler
        self._events = events
        self._explanations = explanations
        self._change_role = change_role
        self._gateways = gateways
        self.figures = Figures()
        self._window = config.observe.window
        self._turning: dict[str, str] = {}
        self._in_vain = float("-inf")
        self._period = min(pool.autoscale.period for pool in self._settings.values())
        self._watches = {
            name: _Watch(forecast_of(pool.autoscale, self._period)) for name, pool in self._settings.items()
        }
        self._start_timeout = config.control.start_timeout
        self._drain_timeout = config.control.drain_timeout
        self._bound()

    async def run(self) -> None:
        """Look and act, again and again."""
        while True:
            await asyncio.sleep(self._period)
            await self.step(time.monotonic())

    async def step(self, now: float) -> None:
        """One look at all pools, and what follows from it."""
        states = [self._state(pool, now) for pool in self._pools.values()]
        mine = [state for state in states if self.scaling[state.name].automatic]
        for state in states:
            if state not in mine:
                self._autoscaler.opinion(state, now)
        resizes = self._autoscaler.decide(mine, now)
        lent = {resize.donor for resize in resizes if resize.donor is not None}
        for resize in resizes:
            if resize.pool not in lent:
                await self._act(resize)

    def set(
        self,
        name: str,
        *,
        replicas: int | None,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
        dry_run: bool = False,
    ) -> pb.ScaleReply:
        """An operator's wish. Raises RefusedError for what no pool may have; then nothing has changed."""
        pool, before = self._pools[name], self.scaling[name]
        wanted = Scaling(
            (before.automatic or automatic) and replicas is None,
            before.least if least is None else least,
            before.most if most is None else most,
        )
        target = pool.target if replicas is None else replicas
        wanted.check(name, target, explicit=replicas is not None)
        reply = pb.ScaleReply(
            previous=pool.target,
            target=target,
            autoscale=wanted.automatic,
            autoscale_ended=before.automatic and not wanted.automatic,
            least=wanted.least,
            most=wanted.most,
        )
        if dry_run:
            return reply
        self.scaling[name] = wanted
        if replicas is not None or automatic:
            self._sized.add(name)
        self._bound()
        if wanted.automatic != before.automatic:
            who = "the controller sizes it again" if wanted.automatic else "an explicit size was asked for"
            self._events.add("autoscale", name, f"{'on' if wanted.automatic else 'off'}: {who}")
        if (wanted.least, wanted.most) != (before.least, before.most):
            self._bounded.add(name)
            self._events.add("bounds", name, f"{wanted.least} to {wanted.most} instances, by request")
        if target != reply.previous:
            self._resized(name, reply.previous, target, "by request")
            pool.scale(target)
        return reply

    def in_vain(self, now: float) -> None:
        """A request has found no instance."""
        self._in_vain = now

    def memo(self) -> dict[str, list[int]]:
        """What an operator has asked for, beside what the config said then."""
        return {
            name: [*scaling.to_list(), *self._configured[name].to_list()]
            for name, scaling in self.scaling.items()
        }

    def restore(self, memo: Mapping[str, Sequence[int]]) -> None:
        """Go on as an earlier controller was asked to, where the config says what it said then."""
        for name, values in memo.items():
            if name in self.scaling and self._configured[name].to_list() == list(values[3:]):
                self.scaling[name] = Scaling.from_list(values[:3])
        self._bound()

    def describe(self, message: pb.Pool) -> None:
        """Say who sizes the pool, and what is thought of its size."""
        scaling = self.scaling[message.name]
        message.autoscale, message.least, message.most = scaling.automatic, scaling.least, scaling.most
        configured = self._configured[message.name]
        apart = (scaling.least, scaling.most) != (configured.least, configured.most)
        message.bounded = apart or message.name in self._bounded
        moved = not scaling.automatic and message.target != self._settings[message.name].replicas
        turned = scaling.automatic != configured.automatic
        message.sized = moved or turned or message.name in self._sized
        message.wish = max(0, self._autoscaler.wishes.get(message.name, message.target))
        message.opinion = self._autoscaler.explanations.get(message.name, "")

    def opinions(self) -> list[pb.Explanation]:
        """What is thought of each pool at the moment."""
        return [
            pb.Explanation(
                time=time.time(),
                kind="opinion",
                subject=name,
                outcome=f"{self._pools[name].target} instances, {self._autoscaler.wishes[name]} wished",
                reason=why + ("" if self.scaling[name].automatic else "; autoscaling is off"),
            )
            for name, why in self._autoscaler.explanations.items()
        ]

    def _bound(self) -> None:
        """The bounds have changed: what is remembered of wishes begins anew."""
        own = {
            name: autoscaling_settings(pool, self.scaling[name].least, self.scaling[name].most)
            for name, pool in self._settings.items()
        }
        self._autoscaler = Autoscaler(own[DECODE], own)

    def _state(self, pool: Pool, now: float) -> PoolState:
        watch, scale = self._watches[pool.role], self._settings[pool.role].autoscale
        ready = {one.name for one in pool.members.values() if one.state is State.READY and not one.cordoned}
        watch.ready = {name: watch.ready.get(name, now) for name in ready}
        loads = tuple(load for load in self._scheduler.view.loads(now) if load.instance in ready)
        starting = [
            one
            for one in pool.members.values()
            if one.state is State.STARTING and time.time() - one.started < self._start_timeout
        ]
        return PoolState(
            pool.role,
            pool.target,
            loads,
            {name: now - since for name, since in watch.ready.items()},
            self._attained(pool.role),
            growth(watch.forecast, held(loads), round(scale.horizon / self._period)),
            starting=len(starting) + self._changing(pool.role),
            lends=scale.role_change,
            in_vain=pool.role == DECODE and now - self._in_vain < DEMAND + self._period,
        )

    def _attained(self, role: str) -> Attainment | None:
        """Of the requests that ended lately at all gateways, those that met the objective of this phase."""
        told = [one.lately for one in self._gateways()]
        return together(
            self._window, ((one.began, one.ttft_met if role == PREFILL else one.tpot_met) for one in told)
        )

    def _changing(self, role: str) -> int:
        """Instances of other pools that are being emptied to come to this one."""
        emptying = {
            name
            for pool in self._pools.values()
            for name, one in pool.members.items()
            if one.emptying is not None and self._turning.get(name) != pool.role
        }
        self._turning = {name: to for name, to in self._turning.items() if name in emptying}
        return sum(to == role for to in self._turning.values())

    async def _act(self, resize: Resize) -> None:
        pool, reason = self._pools[resize.pool], resize.reason
        if resize.donor is not None:
            refused = await self._lend(resize, resize.donor)
            if refused is None:
                return
            reason = f"{resize.otherwise}; {refused}"
        self._resized(resize.pool, pool.target, resize.target, reason)
        pool.target = resize.target
        pool.kick()

    async def _lend(self, resize: Resize, donor: str) -> str | None:
        """Have an instance of `donor` change its role; gives why none does, and nothing has changed then."""
        giver = min(_ready(self._pools[donor]), key=lambda one: (one.requests, one.name), default=None)
        if giver is None:
            return f"{donor} has no instance that is ready to change its role"
        try:
            await self._change_role(giver.name, resize.pool, self._drain_timeout)
        except TandemError as error:
            return f"{giver.name} does not change its role: {error.message}"
        self._turning[giver.name] = resize.pool
        self._events.add("autoscale", resize.pool, f"{giver.name} changes its role: {resize.reason}")
        outcome = f"{giver.name} from {donor} to {resize.pool}"
        self._explanations.add("resize", resize.pool, outcome, resize.reason)
        self._explanations.add("resize", donor, outcome, resize.reason)
        return None

    def _resized(self, name: str, before: int, after: int, reason: str) -> None:
        self.figures.resized(name, before, after, reason)
        self._events.add("scaled", name, f"from {before} to {after}, {reason}")
        self._explanations.add("resize", name, f"from {before} to {after} instances", reason)


def _ready(pool: Pool) -> list[Member]:
    return [one for one in pool.members.values() if one.state is State.READY and not one.cordoned]
