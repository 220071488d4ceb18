"""The controller: keeps both pools as large as they should be, and asks the scheduler where requests run.

It composes Pool × 2, Scheduler and Events, holds no state that it could not find again, and is told how to
reach instances, so that it runs on Ray as in a test without it. What it must remember over its own death
(targets, the next names) is a memo that it leaves with every instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster import control_pb2 as pb
from cluster.config import Config
from cluster.events import Events
from cluster.member import Handle, Member, State
from cluster.migrations import Migrations
from cluster.mover import Mover
from cluster.operations import Operations
from cluster.pool import Authority, Pool
from cluster.rebalance import Rebalancer
from cluster.rpc import error_message
from engine.errors import NotFound, RefusedError, TandemError
from global_scheduler.placement import DECODE, PREFILL, PlacementSettings
from global_scheduler.scheduler import Scheduler, SchedulerSettings
from global_scheduler.view import Summary

logger = logging.getLogger("tandem.controller")

GATEWAY_SILENCE = 5.0
"""Seconds without a beat after which a gateway is taken off the list."""


class FoundHandle(Handle, Protocol):
    name: str

    async def memo(self) -> tuple[bytes, str]: ...


class Fleet(Protocol):
    """How the controller reaches instances: see cluster/fleet.py."""

    def spawn(self, name: str, role: str, generation: int, memo: bytes, instances: int) -> Handle: ...

    async def existing(self) -> Sequence[FoundHandle]: ...


@dataclass(frozen=True, slots=True)
class Memo:
    """What a controller leaves with its instances for the next one."""

    generation: int = 0
    fingerprint: str = ""
    targets: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, int], ...] = ()

    def to_bytes(self) -> bytes:
        return json.dumps([self.generation, self.fingerprint, self.targets, self.names]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Memo:
        generation, fingerprint, targets, names = json.loads(data)
        return cls(generation, fingerprint, tuple(map(tuple, targets)), tuple(map(tuple, names)))


class Controller:
    """Lives in one event loop: `start`, then any method, then `close`."""

    def __init__(self, config: Config, fleet: Fleet, *, version: str) -> None:
        self.config = config
        self.events = Events(config.control.events)
        self.generation = 1
        self.fenced = ""
        self.scheduler = Scheduler(
            SchedulerSettings(
                placement=PlacementSettings(config.scheduler.local_prefill_tokens),
                queue_limit=config.engine.queue_limit,
                settle=config.scheduler.place_timeout,
                stale=max(3.0, 8 * config.control.beat),
            )
        )
        self._fleet = fleet
        self._version = version
        self._fingerprint = fingerprint(config)
        self._begun = time.monotonic()
        self._kicked = asyncio.Event()
        self._gateways: dict[str, tuple[float, pb.Gateway]] = {}
        self._reconciler: asyncio.Task[None] | None = None
        self.pools: dict[str, Pool] = {}
        self.draining = False
        members = _Members(self.pools)
        self.mover = Mover(config, self.scheduler, Migrations(config.control.events), members)
        self._rebalancer = Rebalancer(config.scheduler, self.scheduler, self.mover, members)
        self._rebalancing: asyncio.Task[None] | None = None
        self.operations = Operations(
            config,
            self.pools,
            members,
            mover=self.mover,
            scheduler=self.scheduler,
            events=self.events,
            authority=self._authority,
        )

    async def start(self) -> None:
        """Adopt what is there, then keep the pools at their targets. Returns before instances are ready."""
        found = await self._memos()
        latest = max((memo for _, memo, _ in found), key=lambda memo: memo.generation, default=Memo())
        self.generation = latest.generation + 1
        targets = {PREFILL: self.config.pools.prefill.replicas, DECODE: self.config.pools.decode.replicas}
        if latest.fingerprint == self._fingerprint:
            targets |= dict(latest.targets)
        for role, target in targets.items():
            self.pools[role] = self._pool(role, target)
            self.pools[role].next = dict(latest.names).get(role, 0)
        for handle, memo, role in found:
            self._adopt(handle, memo, role)
        self._reconciler = asyncio.create_task(self._reconcile(), name="reconcile")
        self._rebalancing = asyncio.create_task(self._rebalancer.run(), name="rebalance")

    async def close(self) -> None:
        """Stop controlling. Instances go on until they are adopted, or have been orphans too long."""
        loops = [task for task in (self._reconciler, self._rebalancing) if task is not None]
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self.operations.close()
        for pool in self.pools.values():
            await pool.close()

    def check(self) -> None:
        """Raise if this controller should be replaced: it was fenced, or its loop has ended."""
        if self.fenced:
            raise TandemError(f"fenced: {self.fenced}")
        for task in (self._reconciler, self._rebalancing):
            if task is not None and task.done():
                raise TandemError(f"the loop {task.get_name()!r} ended: {task.exception()}")

    def place(self, request: pb.PlaceRequest) -> pb.Placement:
        """Decide where a request runs; an error is part of the answer."""
        summary = Summary(
            id=request.request_id,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            choices=max(1, request.n),
            tenant=request.tenant,
            priority=request.priority,
            attempt=request.attempt,
            exclude=frozenset(request.exclude),
        )
        try:
            placement = self.scheduler.place(summary, time.monotonic())
        except TandemError as error:
            return pb.Placement(error=error_message(error))
        answer = pb.Placement(prefill=placement.prefill, decode=placement.decode, reason=placement.reason)
        if not placement.local:
            answer.decode_address.CopyFrom(self._instance(placement.decode).address)
        return answer

    def scale(self, name: str, replicas: int, *, dry_run: bool = False) -> pb.ScaleReply:
        """Set a pool's target. Raises NotFound, or RefusedError for a target that no pool may have."""
        pool = self.pools.get(name)
        if pool is None:
            near = difflib.get_close_matches(name, self.pools, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(self.pools)}"
            raise NotFound(f"no pool named {name!r}: {hint}", param="pool")
        if replicas == 0:
            raise RefusedError(
                f"{name} cannot be scaled to 0, the model would vanish: scale it to 1, "
                "or end everything with `tandem down`",
                param="replicas",
            )
        bounds = self.config.pools.prefill if name == PREFILL else self.config.pools.decode
        if not bounds.min_replicas <= replicas <= bounds.max_replicas:
            raise RefusedError(
                f"{name} may have {bounds.min_replicas} to {bounds.max_replicas} instances, not {replicas}: "
                f"change pools.{name}.min_replicas or max_replicas",
                param="replicas",
            )
        previous = pool.target
        if not dry_run and replicas != previous:
            self.events.add("scaled", name, f"from {previous} to {replicas}, by request")
            pool.scale(replicas)
        return pb.ScaleReply(previous=previous, target=replicas)

    def end(self) -> pb.ClusterStatus:
        """The cluster is about to end: the gateways take no new requests any more."""
        if not self.draining:
            self.draining = True
            self.events.add("closing", "cluster", "no new requests are taken, by request")
        return self.status()

    def join(self, gateway: pb.Gateway) -> pb.ClusterStatus:
        """A gateway's beat: list it, and tell it how things are."""
        if gateway.name not in self._gateways:
            self.events.add("joined", gateway.name, f"gateway at {gateway.url}")
        self._gateways[gateway.name] = (time.monotonic(), gateway)
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
            status.instances.extend(member.message() for member in pool.members.values())
        status.gateways.extend(gateway for _, gateway in self._gateways.values())
        known = [instance.model for instance in status.instances if instance.model.name]
        if known:
            status.model.CopyFrom(known[0])
        status.controller_pid, status.controller_node = os.getpid(), platform.node()
        status.draining = self.draining
        status.ready = not self.draining and all(
            pool.ready or (pool.name == PREFILL and not pool.target) for pool in status.pools
        )
        status.migrations.CopyFrom(self.mover.migrations.totals())
        return status

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
        return Authority(self.generation, self._memo, self._be_fenced)

    def _spawn(self, name: str, role: str) -> Handle:
        instances = sum(pool.target for pool in self.pools.values())
        return self._fleet.spawn(name, role, self.generation, self._memo(), instances)

    def _memo(self) -> bytes:
        targets = tuple((role, pool.target) for role, pool in self.pools.items())
        names = tuple((role, pool.next) for role, pool in self.pools.items())
        return Memo(self.generation, self._fingerprint, targets, names).to_bytes()

    async def _memos(self) -> list[tuple[FoundHandle, Memo, str]]:
        """Instances of an earlier controller, each with its memo and role; one that gives none is killed."""

        async def ask(handle: FoundHandle) -> tuple[FoundHandle, Memo, str] | None:
            try:
                memo, role = await handle.memo()
                return handle, Memo.from_bytes(memo), role
            except (TandemError, ValueError) as error:
                logger.warning("an instance that was found does not answer and is killed: %s", error)
                await handle.kill()
                return None

        answers = await asyncio.gather(*(ask(handle) for handle in await self._fleet.existing()))
        return [answer for answer in answers if answer is not None]

    def _adopt(self, handle: FoundHandle, memo: Memo, role: str) -> None:
        first, _, number = handle.name.rpartition("-")
        self.pools[first].next = max(self.pools[first].next, int(number) + 1)
        same = memo.fingerprint == self._fingerprint
        stale = "" if same else "it was started with another configuration"
        self.pools[role].adopt(handle.name, handle, stale=stale)

    def _be_fenced(self, reason: str) -> None:
        self.fenced = reason
        self.events.add("fenced", "controller", reason)

    async def _reconcile(self) -> None:
        while not self.fenced:
            for pool in self.pools.values():
                pool.reconcile()
            silent = time.monotonic() - GATEWAY_SILENCE
            for name in [name for name, (heard, _) in self._gateways.items() if heard < silent]:
                del self._gateways[name]
                self.events.add("left", name, "the gateway's beats have stopped")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.control.beat):
                    await self._kicked.wait()
            self._kicked.clear()


class _Members(Mapping[str, Member]):
    """The instances of all pools by name."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools

    def __getitem__(self, name: str) -> Member:
        for pool in self._pools.values():
            if name in pool.members:
                return pool.members[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        for pool in self._pools.values():
            yield from pool.members

    def __len__(self) -> int:
        return sum(len(pool.members) for pool in self._pools.values())


def fingerprint(config: Config) -> str:
    """Tells whether instances run what this controller would start: all settings but sizes and limits."""
    apart = {"pools", "gateway", "scheduler", "log", "admin", "observe"}
    relevant = config.model_dump(mode="json", exclude=apart)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]
