"""What the controller does in the background: rescheduling, autoscaling, and emptying instances that go."""

from __future__ import annotations

from collections import Counter
from functools import partial

from engine.core import EngineCore
from engine.sequence import Phase, Tier
from global_scheduler.autoscaling import Autoscaler, PoolState, Resize, held
from global_scheduler.forecast import growth
from global_scheduler.rescheduling import Movable, Move, Rescheduler, ReschedulingSettings, choose
from global_scheduler.view import Load
from migration.events import Bounds
from simulator.cluster import ScaleEvent, SimulatedCluster
from simulator.setup import PoolSetup

BOUNDS = Bounds()


class Control:
    """Acts on what the policies of `global_scheduler` decide, as the controller does in production."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        setup = cluster.setup
        self._settings = setup.rescheduling or ReschedulingSettings()
        self._rescheduler = Rescheduler(self._settings)
        self._autoscaler = (
            Autoscaler(next(iter(setup.autoscaling.values())), setup.autoscaling)
            if setup.autoscaling
            else None
        )
        self._pools = {pool.role: pool for pool in setup.pools}
        self._forecasts = {pool.role: pool.forecast() for pool in setup.pools}
        self._targets = {pool.role: pool.replicas for pool in setup.pools}
        self._starting: Counter[str] = Counter()
        self._turning: dict[str, Resize] = {}
        self._leaving: dict[str, str] = {}
        self._came: dict[str, float] = {}

    def start(self) -> None:
        setup = self.cluster.setup
        if setup.rescheduling is not None or self._autoscaler is not None:
            self.cluster.clock.after(setup.reschedule_every, self._reschedule)
        if self._autoscaler is not None:
            self.cluster.clock.after(setup.autoscale_every, self._autoscale)

    def drain(self, name: str, reason: str) -> None:
        """Place nothing more there, move what runs there elsewhere, and take it away when it is empty."""
        self._leaving[name] = reason
        self.cluster.scheduler.cordon(name)

    def _reschedule(self) -> None:
        cluster = self.cluster
        if cluster.over:
            return
        now = cluster.clock.now()
        if cluster.setup.rescheduling is not None:
            loads = cluster.scheduler.view.loads(now)
            for move in self._rescheduler.decide(loads, now, self._leaving):
                source = cluster.members[move.source].instance
                source.call(partial(self._carry_out, move))
        for name in tuple(self._leaving):
            cluster.members[name].instance.call(partial(self._retire, name))
        cluster.clock.after(cluster.setup.reschedule_every, self._reschedule)

    def _carry_out(self, move: Move, core: EngineCore) -> None:
        """The source names the request, between two of its steps."""
        cluster, now = self.cluster, self.cluster.clock.now()
        if move.source not in cluster.members or move.destination not in cluster.members:
            return
        movable = [
            Movable(
                one.request.id,
                len(one),
                one.request.priority,
                self._came.get(one.request.id, -1e18),
                waiting=one.phase is Phase.WAITING,
            )
            for one in (*core.running, *core.queue)
            if one.phase in (Phase.DECODE, Phase.WAITING)
            and one.tier is Tier.DEVICE
            and one.request.id not in cluster.movements
        ]
        leaving = move.source in self._leaving
        chosen = choose(movable, self._settings, now, largest=move.largest, leaving=leaving)
        if chosen is None:
            return
        self._came[chosen] = now
        epoch = core.sequences(chosen)[0].epoch
        source, there = (cluster.members[name].instance for name in (move.source, move.destination))
        cluster.move(chosen, source, there, epoch, BOUNDS)

    def _retire(self, name: str, core: EngineCore) -> None:
        if name not in self._leaving or not self.cluster.vacant(name):
            return
        del self._leaving[name]
        self.cluster.retire(name)
        turned = self._turning.pop(name, None)
        if turned is not None:
            assert turned.donor is not None
            gone = f"{name} becomes a {turned.pool} instance"
            self._set(turned.donor, self._targets[turned.donor] - 1, gone)
            self._set(turned.pool, self._targets[turned.pool] + 1, turned.reason)
            self.cluster.spawn(self._pools[turned.pool])

    def _autoscale(self) -> None:
        cluster = self.cluster
        if cluster.over or self._autoscaler is None:
            return
        now = cluster.clock.now()
        loads = cluster.scheduler.view.loads(now)
        pools = [
            self._state(pool, loads, now)
            for pool in cluster.setup.pools
            if pool.role in cluster.setup.autoscaling
        ]
        resizes = self._autoscaler.decide(pools, now)
        lent = {resize.donor for resize in resizes if resize.donor is not None}
        for resize in resizes:
            if resize.pool not in lent:
                self._resize(resize)
        cluster.clock.after(cluster.setup.autoscale_every, self._autoscale)

    def _state(self, pool: PoolSetup, loads: list[Load], now: float) -> PoolState:
        cluster, role = self.cluster, pool.role
        mine = tuple(load for load in loads if load.role == role and load.instance not in self._leaving)
        return PoolState(
            role,
            self._targets[role],
            mine,
            {load.instance: now - cluster.members[load.instance].instance.born for load in mine},
            cluster.attained(role),
            growth(self._forecasts[role], held(mine), pool.horizon),
            starting=self._starting[role] + sum(one.pool == role for one in self._turning.values()),
            lends=pool.lends,
        )

    def _resize(self, resize: Resize) -> None:
        if resize.donor is not None:
            giver = self._emptiest(resize.donor)
            self._turning[giver] = resize
            self.drain(giver, f"to become a {resize.pool} instance")
            return
        pool, before = self._pools[resize.pool], self._targets[resize.pool]
        self._set(resize.pool, resize.target, resize.reason)
        for _ in range(resize.target - before):
            self._starting[pool.role] += 1
            self.cluster.clock.after(pool.start_up, partial(self._spawn, pool))
        for _ in range(before - resize.target):
            self.drain(self._emptiest(resize.pool), "drained by autoscaling")

    def _set(self, role: str, target: int, reason: str) -> None:
        self._targets[role] = target
        self.cluster.scale_events.append(ScaleEvent(self.cluster.clock.now(), role, target, reason))

    def _emptiest(self, role: str) -> str:
        free = [
            name
            for name, one in self.cluster.members.items()
            if one.pool.role == role and name not in self._leaving
        ]
        return min(free, key=lambda name: (len(self.cluster.members[name].instance.core.running), name))

    def _spawn(self, pool: PoolSetup) -> None:
        self._starting[pool.role] -= 1
        self.cluster.spawn(pool)
