"""What the controller does in the background: rescheduling, autoscaling, and emptying instances that go."""

from __future__ import annotations

from functools import partial

from engine.core import EngineCore
from engine.sequence import Phase, Tier
from global_scheduler.autoscaling import Autoscaler, PoolState, Resize
from global_scheduler.rescheduling import Movable, Move, Rescheduler, ReschedulingSettings, choose
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
        self._targets = {pool.role: pool.replicas for pool in setup.pools}
        self._leaving: dict[str, str] = {}
        self._came: dict[str, float] = {}

    def start(self) -> None:
        setup = self.cluster.setup
        if setup.rescheduling is not None:
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
        busy = (
            core.running
            or len(core.queue)
            or any(name in (one.source.name, one.destination.name) for one in self.cluster.movements.values())
        )
        if not busy and name in self._leaving:
            del self._leaving[name]
            self.cluster.retire(name)

    def _autoscale(self) -> None:
        cluster = self.cluster
        if cluster.over or self._autoscaler is None:
            return
        now = cluster.clock.now()
        loads = cluster.scheduler.view.loads(now)
        pools = []
        for pool in cluster.setup.pools:
            if pool.role not in cluster.setup.autoscaling:
                continue
            mine = tuple(
                load for load in loads if load.role == pool.role and load.instance not in self._leaving
            )
            ages = {load.instance: now - cluster.members[load.instance].instance.born for load in mine}
            pools.append(PoolState(pool.role, self._targets[pool.role], mine, ages))
        for resize in self._autoscaler.decide(pools, now):
            self._resize(resize)
        cluster.clock.after(cluster.setup.autoscale_every, self._autoscale)

    def _resize(self, resize: Resize) -> None:
        cluster = self.cluster
        pool = next(pool for pool in cluster.setup.pools if pool.role == resize.pool)
        before = self._targets[resize.pool]
        self._targets[resize.pool] = resize.target
        cluster.scale_events.append(
            ScaleEvent(cluster.clock.now(), resize.pool, resize.target, resize.reason)
        )
        for _ in range(resize.target - before):
            cluster.clock.after(pool.start_up, partial(self._spawn, pool))
        for _ in range(before - resize.target):
            free = [name for name, one in cluster.members.items()
                    if one.pool.role == resize.pool and name not in self._leaving]  # fmt: skip
            emptiest = min(free, key=lambda name: (len(cluster.members[name].instance.core.running), name))
            self.drain(emptiest, "drained by autoscaling")

    def _spawn(self, pool: PoolSetup) -> None:
        self.cluster.spawn(pool)
