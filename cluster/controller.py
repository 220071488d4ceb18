"""The controller: keeps both pools as large as they should be, and asks the scheduler where requests run.

It composes Pool × 2, Scheduler and Events, holds no state that it could not find again, and is told how to
reach instances, so that it runs on Ray as in a test without it. What it must remember over its own death
(targets, the next names) is a memo that it leaves with every instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cluster import control_pb2 as pb
from cluster.adoption import Adoption, Found, FoundHandle
from cluster.autoscaler import PoolScaler
from cluster.config import Config
from cluster.events import Events
from cluster.explanations import Explanations, explain
from cluster.figures import Figures
from cluster.gateways import Gateways
from cluster.member import Handle, Member, State
from cluster.members import Members
from cluster.memo import Editions, Memo, latest
from cluster.migrations import Migrations
from cluster.mover import Mover
from cluster.operations import Operations
from cluster.policies import scheduler_settings
from cluster.pool import Authority, Pool
from cluster.rebalance import Rebalancer
from cluster.recording import Recorder
from cluster.rollout import Rollout
from cluster.rpc import error_message
from cluster.settings_change import base_digest, fingerprint, with_settings
from cluster.status_message import summary_of
from cluster.tenants import TenantAccounts
from cluster.timelines import TimelineFinder
from cluster.tls import cluster_tls
from engine.errors import NoDecodeInstance, NoPrefillInstance, NotFound, TandemError
from global_scheduler.freeness import freeness
from global_scheduler.placement import DECODE, PREFILL
from global_scheduler.scheduler import Scheduler
from global_scheduler.view import Load

logger = logging.getLogger("tandem.controller")


class Fleet(Protocol):
    """How the controller reaches instances: see cluster/fleet.py."""

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> Handle: ...

    async def existing(self) -> Sequence[FoundHandle]: ...

    def renewed(self, config: Config) -> Fleet: ...


class Controller:
    """Lives in one event loop: `start`, then any method, then `close`."""

    def __init__(self, config: Config, fleet: Fleet, *, version: str) -> None:
        """`config` is what the application was deployed with; `config` of the object what is in force."""
        self.deployed = config
        self.origins: Mapping[str, str] = {}
        """Where the deployed values come from, by dotted path, as far as that was told."""
        self._base = base_digest(config)
        self.events = Events(config.control.events)
        self.migrations = Migrations(config.control.events)
        self.explanations = Explanations(config.scheduler.decisions)
        self.generation = 1
        self._editions = Editions()
        self.fenced = ""
        self.draining = False
        self.leave: Callable[[], None] | None = None
        """Ends the process, for a supervisor that starts another controller."""
        self._fleet = fleet
        self._version = version
        self._begun = time.monotonic()
        self._kicked = asyncio.Event()
        self._gateways = Gateways(self.events)
        self.admin = ""
        self.figures = Figures()
        self.timelines = TimelineFinder(
            self._gateways.listed,
            config.control.token or "",
            cluster_tls(config.security.cluster_tls),
        )
        self._changes: dict[str, object] = {}
        self.declared = ""
        self._door = asyncio.Lock()
        self._loops: list[asyncio.Task[None]] = []
        self._adoption = Adoption(config.control)
        self._assemble(config)

    def _assemble(self, config: Config) -> None:
        """Everything that is built from the settings; the pools are empty."""
        self.config = config
        self._model = pb.Model(name=config.model.name or "", path=config.model.path or "")
        self.scheduler = Scheduler(scheduler_settings(config))
        if config.scheduler.record is not None:
            self.scheduler.tape = Recorder(Path(config.scheduler.record))
        self.pools: dict[str, Pool] = {}
        members = Members(self.pools)
        self.mover = Mover(config, self.scheduler, self.migrations, members)
        self.rebalancer = Rebalancer(config, self.scheduler, self.mover, members)
        self.rollout = Rollout(
            config.control, self.pools, self.events, version=self._version, settings=fingerprint(config)
        )
        self.operations = Operations(
            config,
            self.pools,
            members,
            mover=self.mover,
            scheduler=self.scheduler,
            events=self.events,
            authority=self._authority,
            rebalancer=self.rebalancer,
            bounds=lambda role: self.scaler.scaling[role],
        )
        self.scaler = PoolScaler(
            config,
            self.pools,
            scheduler=self.scheduler,
            events=self.events,
            explanations=self.explanations,
            change_role=self.operations.change_role,
            gateways=self._gateways.listed,
        )
        self.scaler.figures = self.figures

    async def start(self) -> None:
        """Adopt what is there, then keep the pools at their targets. Returns before instances are ready."""
        adoption = Adoption(self.config.control, await self._fleet.existing())
        last = latest(await adoption.memos())
        if last.base == self._base:
            self.declared = last.declared
            if last.changes:
                self._changes = dict(last.changes)
                config = with_settings(self.deployed, self._changes)
                self._fleet = self._fleet.renewed(config)
                self._assemble(config)
        self._take_up(adoption, last)

    async def renew(self, changes: Mapping[str, object]) -> None:
        """Begin anew with other settings, by dotted path. Instances go on and are adopted again.

        Raises ConfigError, and changes nothing then.
        """
        async with self._door:
            wanted = {**self._changes, **changes}
            config = with_settings(self.deployed, wanted)
            adoption = Adoption(config.control, await self._fleet.existing())
            await adoption.memos()
            await self.close()
            try:
                adoption.ask(await self._fleet.existing())
            except Exception:  # of whatever kind: without its loops nobody would control anything
                logger.exception("instances that were started meanwhile cannot be found")
            memo = self._memo()
            self._changes, self._fleet = dict(wanted), self._fleet.renewed(config)
            self._assemble(config)
            self._take_up(adoption, memo)

    async def close(self) -> None:
        """Stop controlling. Instances go on until they are adopted, or have been orphans too long."""
        loops, self._loops = self._loops, []
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self._adoption.close()
        await self.operations.close()
        await self.timelines.close()
        for pool in self.pools.values():
            await pool.close()

    def check(self) -> None:
        """Raise if this controller should be replaced: it was fenced, or its loop has ended."""
        if self.fenced:
            raise TandemError(f"fenced: {self.fenced}")
        for task in self._loops:
            if task.done():
                raise TandemError(f"the loop {task.get_name()!r} ended: {task.exception()}")

    def place(self, request: pb.PlaceRequest) -> pb.Placement:
        """Decide where a request runs; an error is part of the answer."""
        summary = summary_of(request)
        begun = time.perf_counter()
        try:
            placement = self.scheduler.place(summary, time.monotonic())
        except TandemError as error:
            if isinstance(error, NoPrefillInstance | NoDecodeInstance):
                self.scaler.in_vain(time.monotonic())
            self.figures.decided(time.perf_counter() - begun)
            self.explanations.add("refusal", summary.id, error.code, error.message)
            return pb.Placement(error=error_message(error))
        self.figures.decided(time.perf_counter() - begun)
        self.explanations.add(
            "placement", summary.id, f"{placement.prefill} → {placement.decode}", placement.reason
        )
        answer = pb.Placement(prefill=placement.prefill, decode=placement.decode, reason=placement.reason)
        if not placement.local:
            answer.decode_address.CopyFrom(self._instance(placement.decode).address)
        return answer

    def scale(
        self,
        name: str,
        replicas: int | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
        automatic: bool = False,
        dry_run: bool = False,
    ) -> pb.ScaleReply:
        """Set a pool's target or bounds, or let the controller set the target.

        Raises NotFound, or RefusedError for what no pool may have.
        """
        pool = self.pools.get(name)
        if pool is None:
            near = difflib.get_close_matches(name, self.pools, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(self.pools)}"
            raise NotFound(f"no pool named {name!r}: {hint}", param="pool")
        return self.scaler.set(
            name, replicas=replicas, least=least, most=most, automatic=automatic, dry_run=dry_run
        )

    def explain(self, subject: str) -> pb.ExplanationList:
        """Why a request went where it did, a pool has its size, an event came. Raises NotFound."""
        return explain(subject, self.explanations, self.migrations, self.events, self.scaler.opinions())

    def end(self) -> pb.ClusterStatus:
        """The cluster is about to end: the gateways take no new requests any more."""
        if not self.draining:
            self.draining = True
            self.events.add("closing", "cluster", "no new requests are taken, by request")
        return self.status()

    def join(self, gateway: pb.Gateway) -> pb.ClusterStatus:
        """A gateway's beat: list it, and tell it how things are."""
        self._gateways.beat(gateway)
        return self.status()

    def status(self) -> pb.ClusterStatus:
        """All that operators may know."""
        status = pb.ClusterStatus(version=self._version, uptime=time.monotonic() - self._begun)
        for name, pool in self.pools.items():
            status.pools.append(
                pb.Pool(
                    name=name,
                    target=pool.target,
                    ready=pool.count(State.READY),
                    starting=pool.count(State.STARTING),
                    draining=pool.count(State.DRAINING),
                )
            )
            self.scaler.describe(status.pools[-1])
            status.instances.extend(self._described(member) for member in pool.members.values())
        status.gateways.extend(self._gateways.listed())
        status.admin = self.admin
        status.figures.CopyFrom(self.figures.message())
        _add_loads(status, self.scheduler.view.loads(time.monotonic()))
        known = [instance.model for instance in status.instances if instance.model.name]
        if known:
            # It is still the model when the last of them is gone.
            self._model.CopyFrom(known[0])
        status.model.CopyFrom(self._model)
        status.controller_pid, status.controller_node = os.getpid(), platform.node()
        status.draining = self.draining
        # A pool of none was asked for: gateways stay, tell of the model and count who is refused.
        filled = [pool.ready or not pool.target for pool in status.pools]
        # Until `start` has found what there is, there are no pools.
        status.ready = bool(filled) and all(filled) and not self.draining
        status.migrations.CopyFrom(self.mover.migrations.totals())
        return status

    def _described(self, member: Member) -> pb.Instance:
        message = member.message()
        message.outdated = self.rollout.outdated(member)
        return message

    def sized(self) -> Config:
        """The settings in force, with the pools' sizes, bounds and autoscaling as they are now."""
        sizes: dict[str, object] = {}
        for role, pool in self.pools.items():
            own, name = self.scaler.scaling[role], f"pools.{role}"
            sizes |= {
                f"{name}.replicas": pool.target,
                f"{name}.min_replicas": min(own.least, pool.target),
                f"{name}.max_replicas": max(own.most, pool.target),
                f"{name}.autoscale.enabled": own.automatic,
            }
        return with_settings(self.config, sizes)

    def _instance(self, name: str) -> pb.Instance:
        return next(pool.members[name].instance for pool in self.pools.values() if name in pool.members)

    def _pool(self, role: str, target: int) -> Pool:
        return Pool(
            role,
            target,
            self.config.control,
            authority=self._authority(),
            spawn=self._spawn,
            scheduler=self.scheduler,
            mover=self.mover,
            events=self.events,
            kick=self._kicked.set,
        )

    def _authority(self) -> Authority:
        return Authority(self.generation, lambda: self._memo().to_bytes(), self._be_fenced)

    def _spawn(self, name: str, role: str) -> Handle:
        instances = sum(pool.target for pool in self.pools.values())
        return self._fleet.spawn(name, role, self.generation, self._memo().to_bytes(), instances)

    def _memo(self) -> Memo:
        memo = Memo(
            generation=self.generation,
            base=self._base,
            changes=self._changes,
            declared=self.declared,
            sizes=_sizes(self.config),
            targets={role: pool.target for role, pool in self.pools.items()},
            names={role: pool.next for role, pool in self.pools.items()},
            scaling=self.scaler.memo(),
            marked=tuple(sorted(self.rollout.marked)),
        )
        return self._editions.number(memo)

    def _take_up(self, adoption: Adoption, last: Memo) -> None:
        """Fill the pools with the instances that were found, and begin the loops."""
        self._adoption = adoption
        self.generation = last.generation + 1
        self.scaler.restore(last.scaling)
        for role, target in last.targets_for(_sizes(self.config)).items():
            self.pools[role] = self._pool(role, target)
            self.pools[role].next = last.names.get(role, 0)
        adoption.tell(lambda found: self._adopt(found, last))
        loops = {"reconcile": self._reconcile, "rebalance": self.rebalancer.run, "rollout": self.rollout.run}
        loops["autoscale"] = self.scaler.run
        if self.config.engine.queue == "fair":
            loops["tenants"] = TenantAccounts(self.config, Members(self.pools)).run
        self._loops = [asyncio.create_task(run(), name=name) for name, run in loops.items()]

    def _adopt(self, found: Found | None, last: Memo) -> None:
        if found is not None:
            name = found.handle.name
            first, _, number = name.rpartition("-")
            self.pools[first].next = max(self.pools[first].next, int(number) + 1)
            self.pools[found.role].adopt(name, found.handle)
            self.rollout.marked |= {name} & set(last.marked)
        self._kicked.set()

    def _be_fenced(self, reason: str) -> None:
        self.fenced = reason
        self.events.add("fenced", "controller", reason)

    async def _reconcile(self) -> None:
        while not self.fenced:
            # Whom a pool lacks, or has too many, is known when all that were found have answered.
            if not self._adoption.late:
                for pool in self.pools.values():
                    pool.reconcile()
            self._gateways.forget_silent()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.control.beat):
                    await self._kicked.wait()
            self._kicked.clear()


def _sizes(config: Config) -> dict[str, int]:
    """The start size of each pool."""
    return {PREFILL: config.pools.prefill.replicas, DECODE: config.pools.decode.replicas}


def _add_loads(status: pb.ClusterStatus, loads: Iterable[Load]) -> None:
    """What placing sees of each instance, with what is on its way there."""
    known = {load.instance: load for load in loads}
    for instance in status.instances:
        load = known.get(instance.name)
        if load is not None:
            instance.freeness, instance.virtual_usage = freeness(load), load.demand
